"""docs/tour.md, followed word by word on a tiny model: each command of it ends well and prints what the tour shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT, environment, git, lend_environment, make_repository

TOUR = ROOT / "docs/tour.md"
END = "end of the command"
CLONED = "cd qlora"  # the command after which the clone is there
FIRST_RUN = "make repro"


def commands() -> list[tuple[str, list[str]]]:
    """(command, lines that the tour shows below it) of all console blocks."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", TOUR.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def words(line: str) -> str:
    """A line without what differs between models and machines: numbers, rules and spaces."""
    return " ".join(re.sub(r"[-+:|\d.,%/]+", " ", line).split())


class Shell:
    """One bash, which keeps its folder and variables from command to command, as a reader's does."""

    def __init__(self, folder: Path, variables: dict[str, str]):
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(["bash"], cwd=folder, env=variables, **options)

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
    other = tmp_path / "gemma"
    shutil.copytree(tiny_model, other)
    replaced = {"URL": str(origin), "~/gemma-3-270m": str(other)}
    shell = Shell(tmp_path, environment() | {"QLORA_VENV": ""})
    for command, shown in commands():
        for name, real in replaced.items():
            command = command.replace(name, real)
        status, printed = shell.run(command)
        assert status == 0, f"{command}\n{printed}"
        lines = {words(line) for line in printed.replace("\r", "\n").splitlines()}
        for line in filter(words, shown):
            pattern = re.compile(".*".join(re.escape(words(part)) for part in line.split("...")))
            assert any(map(pattern.fullmatch, lines)), f"{command}: {line}\n{printed}"
        if command == FIRST_RUN:  # whose results this repository's commit has
            git(clone, "add", ".")
            git(clone, "commit", "-qm", "run")
        if command == CLONED:
            lend_environment(clone)
            shutil.copytree(tiny_model, clone / "tiny")
    shell.process.terminate()
