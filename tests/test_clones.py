"""The tools in clones of every shape: a project in a subfolder, a shallow clone, a path that is not ASCII."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from qlora.reporting import outcomes

import pytest
from repository import ROOT, dvc, edit_yaml, environment, git, keep_stages, make_repository, python

# Takes the place of the stages from training to report: scores that follow from lora.r.
SCORE = """
import json
from pathlib import Path
from qlora.recipe.load import load_params
from qlora.reporting import outcomes
params = load_params()
right = params.lora.r
rows = [{"id": f"f:{row}", "group": row, "messages": []} for row in range(40)]
records = [
    {"id": row["id"], "execution_accuracy": n < right, "nll": 1.0, "supervised": 1, "top1": 1, "stopped": True}
    for n, row in enumerate(rows)
]
outcomes.write(outcomes.collect(rows, {"Q8_0": records}))
found = {"metric": "execution_accuracy", "score": {"Q8_0": right / 40}, "loss": {"Q8_0": 1.0}, "validation_loss": 1.0}
Path("metrics").mkdir(exist_ok=True)
Path("metrics/summary.json").write_text(json.dumps(found))
Path("models/Q8_0").mkdir(parents=True)
Path("models/Q8_0/model.gguf").write_text(str(right))
"""


@pytest.fixture
def make(tmp_path, tiny_model):
    """A function that makes a project, at `path` inside a new Git repository."""

    def make(path: str) -> Path:
        root = tmp_path / "repository"
        folder = root / path
        folder.mkdir(parents=True)
        make_repository(folder, tiny_model, inside=None if folder == root else root)
        shutil.copy(ROOT / "Makefile", folder)
        keep_stages(folder)
        (folder / "stages/score.py").write_text(SCORE)
        stage = {"cmd": "python -m stages.score", "deps": ["stages/score.py"], "params": ["lora.r"]}
        stage |= {"outs": ["models/Q8_0"], "metrics": [{"metrics/summary.json": {"cache": False}}]}
        stage |= {"plots": [{str(outcomes.PATH): {"cache": False}}]}
        edit_yaml(folder / "dvc.yaml", lambda content: content["stages"].update(score=stage))
        edit_yaml(folder / "params.yaml", lambda params: params["evaluate"].update(artifacts=["base", "Q8_0"]))
        dvc(folder, "repro")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "run")
        git(folder, "branch", "-M", "main")
        return folder

    return make


def sweep(folder: Path) -> subprocess.CompletedProcess:
    return python(folder, "tools.sweep", "lora.r=8,24")


def test_tools_work_in_a_subfolder_of_a_repository(make, tmp_path):
    folder = make("Übung 1/models")
    dvc(folder, "cache", "dir", "--local", str(tmp_path / "cache"))
    (folder.parent / "notes.txt").write_text("of another team")
    done = sweep(folder)
    assert done.returncode == 0, done.stderr
    assert "| r=24 " in done.stdout
    assert "60.0%" in done.stdout
    again = sweep(folder)
    assert again.returncode == 0, again.stderr
    assert not git(folder, "status", "--porcelain", "--", ".").strip()

    compared = python(folder, "tools.compare", "main", "r=24")
    assert compared.returncode == 0, compared.stderr
    assert re.search(r"Q8_0 .*execution accuracy .*40\.0%.*60\.0%.*better", compared.stdout)

    git(folder, "checkout", "-qb", "rank-24")
    dvc(folder, "exp", "apply", "r=24")
    git(folder, "commit", "-qam", "rank 24")
    reported = python(folder, "tools.pr_report", "--base", "main", "--output", "report.md")
    assert reported.returncode == 0, reported.stderr
    page = (folder / "report.md").read_text()
    assert "| lora.r" in page
    assert "40.0%" in page
    assert "60.0%" in page

    pull = ["make", "--assume-old", ".venv/light", "pull-model", "TYPE=Q8_0", "REV=rank-24"]
    pulled = subprocess.run(pull, cwd=folder, env=environment(), capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    assert (folder / "served/Q8_0/model.gguf").read_text() == "24"


def test_a_sweep_in_a_shallow_clone_says_how_to_complete_it(make, tmp_path):
    folder = make("")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{folder}", str(shallow))
    done = sweep(shallow)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this clone is shallow")
    git(shallow, "fetch", "-q", "--unshallow")  # as it says
    assert sweep(shallow).returncode == 0


def test_a_sweep_without_a_name_for_git_says_how_to_give_one(make, tmp_path):
    folder = make("")
    nobody = {name: value for name, value in environment().items() if not name.startswith("GIT_")}
    nobody |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=folder, env=nobody, capture_output=True, text=True)

    command = [sys.executable, "-m", "tools.sweep", "lora.r=8"]
    done = run(*command)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Git does not know who you are")
    for advice in re.findall("`(git config [^`]*)`", done.stderr):
        run(*advice.split())
    done = run(*command)
    assert done.returncode == 0, done.stderr


def test_a_sweep_under_a_path_that_is_not_ascii_says_what_to_move(make):
    folder = make("Übung")
    done = sweep(folder)
    assert done.returncode == 1
    assert "`dvc cache dir --local /other/folder`" in done.stderr


def test_a_missing_base_of_a_report_is_named(make):
    folder = make("")
    done = python(folder, "tools.pr_report", "--base", "master", "--output", "report.md")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --base: Git knows no branch or commit master")


def test_the_base_of_a_report_is_the_main_branch_of_origin_whatever_its_name(make, tmp_path):
    folder = make("")
    assert "--base main" in python(folder, "tools.pr_report", "--output", "report.md").stderr
    git(folder, "branch", "-M", "master")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(folder), str(clone))
    git(clone, "checkout", "-q", "--detach")
    for _ in range(2):
        python(clone, "tools.pr_report", "--output", "report.md")
        assert "against `origin/master`" in (clone / "report.md").read_text()
        git(clone, "remote", "set-head", "origin", "--delete")


def test_an_unknown_or_ambiguous_experiment_is_named(make):
    folder = make("")
    done = python(folder, "tools.compare", "main", "r=99")
    assert done.returncode == 1
    assert done.stderr.startswith("error: r=99: no commit, branch, tag or experiment has this name")
