"""docs/tour.md, followed word by word on a tiny model: each command of it ends well and prints what the tour shows."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from repository import ROOT, environment, git, lend_environment, make_repository

TOUR = ROOT / "docs/tour.md"
END = "end of the command"
CLONED = "cd qlora"  # the command after which the clone is there


def commands(tour: str) -> list[tuple[str, list[str]]]:
    """(command, lines that the tour shows below it) of all its blocks."""
    found: list[tuple[str, list[str]]] = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", tour, re.MULTILINE | re.DOTALL):
        assert kind == "console", f"only console blocks are run; the tour has one of another kind: {block}"
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def words(line: str) -> str:
    """A line without what differs between models and machines: numbers, rules and spaces."""
    without_intervals = re.sub(r"\([^()]* to [^()]*\)", " ", line)
    return " ".join(re.sub(r"[-+:|\d.,%/]+", " ", without_intervals).split())


def missing(shown: list[str], printed: str) -> list[str]:
    """The lines that the tour shows and the command did not print."""
    lines = [words(line) for line in printed.replace("\r", "\n").splitlines()]
    patterns = {line: ".*".join(re.escape(words(part)) for part in line.split("...")) for line in shown if words(line)}
    return [line for line, pattern in patterns.items() if not any(re.fullmatch(pattern, real) for real in lines)]


class Shell:
    """One bash, which keeps its folder and variables from command to command, as a reader's does."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def run(self, command: str) -> tuple[int, str]:
        """The exit status, and what was printed."""
        self.process.stdin.write(f"{command}\nstatus=$?; echo; echo {END} $status\n")
        self.process.stdin.flush()
        printed = []
        for line in self.process.stdout:
            if line.startswith(END):
                return int(line.split()[-1]), "".join(printed)
            printed.append(line)
        raise AssertionError(f"bash ended in {command}: {''.join(printed)}")


@contextmanager
def bash(folder: Path, variables: dict[str, str]) -> Iterator[Shell]:
    """A shell; at the end, what it left running is ended, too."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(["bash"], cwd=folder, env=variables, start_new_session=True, **options)
    try:
        yield Shell(process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.slow
def test_each_command_of_the_tour_works(tmp_path, tiny_model):
    origin, clone = tmp_path / "origin", tmp_path / "qlora"
    origin.mkdir()
    shutil.copytree(ROOT / "docs/tour", origin / "docs/tour")
    for name in ("Makefile", "params.yaml", "requirements.txt", "requirements-light.txt", "locks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, origin / name)
    make_repository(origin, tiny_model)
    git(origin, "branch", "-M", "main")
    with bash(tmp_path, environment() | {"QLORA_VENV": ""}) as shell:
        for command, shown in commands(TOUR.read_text(encoding="utf-8")):
            status, printed = shell.run(command.replace("URL", str(origin)))
            assert status == 0, f"{command}\n{printed}"
            assert not missing(shown, printed), f"{command}\n{printed}"
            if command == CLONED:
                lend_environment(clone)
                shutil.copytree(tiny_model, clone / "tiny")


def test_a_line_that_a_command_did_not_print_is_missing():
    printed = "Running stage 'merge':\n| base | 12.5% |\nserved at http://127.0.0.1:8080\n"
    assert missing(["Running stage 'merge':", "| base | 1.0% |", "served at ...", "..."], printed) == []
    assert missing(["Running stage 'report':", "| Q8_0 | 1.0% |", "served"], printed) == [
        "Running stage 'report':",
        "| Q8_0 | 1.0% |",
        "served",
    ]


def test_a_block_that_would_not_be_run_is_refused():
    assert commands("```console\n$ make repro\nRunning\n```\n") == [("make repro", ["Running"])]
    with pytest.raises(AssertionError, match="another kind"):
        commands("```bash\nmake repro\n```\n")
