"""A Git and DVC repository with the real dvc.yaml and a tiny model, and what runs Git and DVC in it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.reporting import gates, outcomes, plots, summary
from qlora.runtime.outputs import write_text

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
TEST_ROWS = 40  # of `write_metrics`
CODE = ("stages", "qlora", "tools", "templates", "scorers")  # the folders that a run needs


def make_repository(folder: Path, model: Path, inside: Path | None = None) -> None:
    """Fill `folder` with the code, the real dvc.yaml, a small recipe for `model` and its rows; commit all of it.

    With `inside`, a folder above, that is the Git repository, and the project a subfolder of it.
    """
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(model, folder / "tiny")
    shutil.copytree(ROOT / "data/adapters", folder / "data/adapters")
    (folder / "data/raw").mkdir()
    lines = (ROOT / "data/raw/text2sql.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/raw/text2sql.jsonl").write_text("".join(lines[:600]))
    params = YAML().load(ROOT / "recipes/smollm2-sql.yaml")
    params["model"]["id"] = "./tiny"
    params["data"].update(train_rows=24, validation_rows=4, test_rows=4)
    params["train"].update(batch_size=4, micro_batch_tokens=256, eval_steps=3, checkpoint_steps=2)
    params["gguf"].update(types=["Q8_0"], imatrix=False)
    params["evaluate"].update(artifacts=["base", "merged", "Q8_0"], max_new_tokens=8, databases=2, gates={})
    YAML().dump(params, folder / "params.yaml")
    git(inside or folder, "init", "-q")
    dvc(folder, "init", "-q", *(["--subdir"] if inside else []))
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    (folder / ".gitignore").open("a").write("/tiny/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")


def lend_environment(folder: Path) -> None:
    """Make a .venv in `folder` that is this Python's, so that `make` installs nothing."""
    (folder / ".venv").mkdir()
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder / ".venv")
    for name in ("bin", "lib"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv/installed").touch()


def environment() -> dict[str, str]:
    """This process's environment, with an identity for Git, this Python first on PATH, and one thread."""
    identity = {
        f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | identity | {"PATH": path, "OMP_NUM_THREADS": "1"}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run `python -m` with these arguments in `folder`."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment(), check=True, capture_output=True, text=True
    ).stdout


def run_dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return python(folder, "dvc", *arguments)


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC, which must succeed; what it printed."""
    done = run_dvc(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stage_runs(output: str) -> Counter:
    """How often DVC ran each stage, by its output."""
    return Counter(re.findall(r"Running stage '(.+)':", output))


def ran_stages(output: str) -> set[str]:
    return set(stage_runs(output))


def repro(folder: Path) -> set[str]:
    """The stages that `dvc repro` executed (not those that it restored from the run-cache)."""
    return ran_stages(dvc(folder, "repro"))


def set_param(folder: Path, path: str, value: object) -> None:
    """Set the value of params.yaml with this dotted name, SECTION.KEY."""
    section, name = path.split(".")
    edit_yaml(folder / "params.yaml", lambda params: params[section].update({name: value}))


def edit_yaml(path: Path, edit: Callable[[dict], None]) -> None:
    yaml = YAML()
    content = yaml.load(path)
    edit(content)
    yaml.dump(content, path)


def keep_stages(folder: Path, *names: str) -> None:
    """Leave only these stages in dvc.yaml."""

    def edit(content: dict) -> None:
        for name in content["stages"].keys() - set(names):
            del content["stages"][name]
        for section in ("plots", "artifacts"):
            content.pop(section, None)

    edit_yaml(folder / "dvc.yaml", edit)


def write_metrics(folder: Path, right: int, loss: float, measured_with: str = "torch 1") -> None:
    """What `report` writes for artifacts that get the first `right` test rows right."""
    rows = [{"id": f"f:{row}", "group": row, "messages": []} for row in range(TEST_ROWS)]
    records = [
        {"id": row["id"], "execution_accuracy": number < right, "nll": loss}
        | {"supervised": 1, "top1": 1, "stopped": True}
        for number, row in enumerate(rows)
    ]
    names = ("base", "merged", "Q8_0")
    found = outcomes.collect(rows, dict.fromkeys(names, records))
    metrics = {
        name: {"execution_accuracy": right / TEST_ROWS, "loss": loss, "stop_rate": 1.0, "size_mb": 5.2}
        for name in names
    }
    with contextlib.chdir(folder):
        outcomes.write(found)
        checked = gates.check(load_params().evaluate.gates, metrics)
        summary.write(metrics, loss, checked, "text-to-sql", dict.fromkeys(names, measured_with))
    write_text(folder / "plots/artifacts.csv", plots.artifacts(metrics, found, "text-to-sql").to_csv(index=False))
    curve = "".join(f"{step},training,{loss + 1 / step}\n" for step in range(1, 200))
    write_text(folder / "plots/loss.csv", f"step,split,loss\n{curve}199,validation,9.0\n")
