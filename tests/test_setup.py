"""Set-up: the locks, the environment that is made from them, and the recipe to start from."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.runtime.console import Refusal
from tools import lock, repro

import pytest
from conftest import Workspace, refused
from fake_hub import COMMIT, fake_hub
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from repository import ROOT, dvc, edit_yaml, environment, git, keep_stages, make_repository

NAME = "org/tiny"
LOCKS = sorted((ROOT / "locks").glob("*.lock"))


# The locks


def locked(path: Path) -> list[str]:
    """The lock's requirements, each without its hashes; every one of them has hashes."""
    entries = path.read_text().split("\n", 1)[1].replace(" \\\n    ", " ").splitlines()
    assert all("--hash=sha256:" in entry for entry in entries)
    return [entry.partition(" --hash")[0] for entry in entries]


def test_the_locks_have_the_pins_of_the_requirements(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    lock.check()
    for path in [*ROOT.glob("requirements*.txt"), *LOCKS]:
        (tmp_path / path.parent.relative_to(ROOT)).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    monkeypatch.chdir(tmp_path)
    with Path("requirements-demo.txt").open("a") as requirements:
        requirements.write("no_such.Package[x]==1.0 # new\n")
    with pytest.raises(Refusal, match=r"requirements-demo\.txt pins no-such-package==1\.0, .*`make lock`"):
        lock.check()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_is_for_any_index(path):
    assert locked(path)
    assert "://" not in path.read_text()
    assert "--index" not in path.read_text()


def test_the_locks_are_complete_and_of_one_mind():
    """Each installed package's own requirements are in the locks, at a version that it accepts."""
    versions = {}
    for path in LOCKS:
        for entry in map(Requirement, locked(path)):
            if not entry.marker or entry.marker.evaluate():
                (pin,) = entry.specifier
                assert versions.setdefault(entry.name, pin.version) == pin.version, f"{entry.name} in {path.name}"
    checked = 0
    for package in distributions():
        if canonicalize_name(package.name) not in versions:
            continue
        if Version(package.version).public != versions[canonicalize_name(package.name)]:
            continue  # another version than the locked one may need something else
        for needed in map(Requirement, package.requires or []):
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            checked += 1
            version = versions.get(canonicalize_name(needed.name))
            assert version, f"{package.name} needs {needed.name}"
            assert needed.specifier.contains(version, prereleases=True), f"{package.name} needs {needed}"
    assert checked > 200


# The environment


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with a space and an umlaut, whose requirements are one small wheel that lies in it."""
    folder = tmp_path / "ein Prüfling"
    for name in ("environment.sh", "lock.py", "__init__.py"):
        (folder / "tools").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / name, folder / "tools" / name)
    shutil.copytree(ROOT / "qlora/runtime", folder / "qlora/runtime")
    shutil.copy(ROOT / "qlora/__init__.py", folder / "qlora/__init__.py")
    for name in ("", "-light", "-demo", "-llm-compressor", "-sql-engines"):
        (folder / f"requirements{name}.txt").write_text("small==1.0\n" if name == "-light" else "")
    wheel = folder / "small-1.0-py3-none-any.whl"
    files = {
        "small.py": "ANSWER = 42\n",
        "small-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
        "small-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files["small-1.0.dist-info/RECORD"] = record + "small-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    (folder / "locks").mkdir()
    write_lock(folder, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return folder


def write_lock(folder: Path, digest: str) -> None:
    (folder / "locks/light.lock").write_text(f"# Written\nsmall==1.0 \\\n    --hash=sha256:{digest}\n")


def make_environment(folder: Path, **changes: str) -> subprocess.CompletedProcess:
    """Run environment.sh with pip, which has no index."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ".", "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    command = ["bash", "tools/environment.sh", ".venv", "locks/light.lock"]
    return subprocess.run(command, cwd=folder, env=os.environ | offline | changes, capture_output=True, text=True)


def test_an_environment_has_what_is_locked_whatever_the_shell_says(clone):
    (clone / "other").mkdir()
    (clone / "other/small.py").write_text("raise SystemExit('this is not the locked package')\n")
    shell = {"PYTHONPATH": str(clone / "other"), "PIP_TARGET": str(clone / "other"), "CONDA_PREFIX": "/opt/conda"}
    done = make_environment(clone, LANG="C", **shell)
    assert done.returncode == 0, done.stderr
    shown = [".venv/bin/python", "-c", "import small; print(small.ANSWER, small.__file__)"]
    answer, _, where = subprocess.run(shown, cwd=clone, capture_output=True, text=True).stdout.partition(" ")
    assert answer == "42"
    assert where.startswith(str(clone / ".venv"))


def test_another_file_than_the_locked_one_is_not_installed(clone):
    write_lock(clone, "0" * 64)
    done = make_environment(clone)
    assert done.returncode != 0
    assert not list((clone / ".venv").rglob("small.py"))


def test_a_pin_that_is_not_locked_stops_the_set_up(clone):
    (clone / "requirements-light.txt").write_text("small==2.0\n")
    assert "`make lock`" in refused(make_environment(clone))


def test_a_python_that_is_too_old_missing_or_chosen_wrong(clone, tmp_path):
    """The name without a version may be missing; a newer interpreter that is there is taken instead of an old one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    old = programs / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    sentence = refused(make_environment(clone, PATH=str(programs), PYTHON=""))
    assert "Python 3.9.2" in sentence
    assert "apt install python3" in sentence
    assert "uv" in sentence
    assert "3.9.2" in refused(make_environment(clone, PATH=str(programs), PYTHON="python3"))
    old.unlink()
    assert "apt install python3" in refused(make_environment(clone, PATH=str(programs), PYTHON=""))
    newer = programs / "python3.13"
    newer.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    newer.chmod(0o755)
    done = make_environment(clone, PATH=f"{programs}:{programs}", PYTHON="")
    assert done.returncode == 0, done.stderr


# The recipe


@pytest.fixture
def on_the_hub(workspace) -> Workspace:
    workspace.set({"data.source": NAME})
    return workspace


def test_a_data_set_without_a_commit_gets_one(on_the_hub, tiny_model):
    params = on_the_hub.path / "params.yaml"
    before = params.read_text()
    cache = {"HF_HOME": str(on_the_hub.path / "hf"), "HF_HUB_OFFLINE": ""}
    with fake_hub(tiny_model, NAME) as (address, asked):
        done = on_the_hub.tool("pin", HF_ENDPOINT=address, **cache)
        assert COMMIT in done.stdout, done.stderr
        requests = len(asked)
        assert on_the_hub.tool("pin", HF_ENDPOINT=address, **cache).stdout == ""  # what is pinned stays, unasked
        assert len(asked) == requests
    assert load_params(params).data.revision == COMMIT
    changed = [
        pair for pair in zip(before.splitlines(), params.read_text().splitlines(), strict=True) if len({*pair}) > 1
    ]
    assert [after.strip() for _, after in changed] == [f"revision: {COMMIT}"]

    head, data, tail = before.partition("\ndata:")
    params.write_text(head + data + tail.replace("  revision: null\n", "", 1))  # the key can be left out
    with fake_hub(tiny_model, NAME) as (address, _):
        on_the_hub.tool("pin", HF_ENDPOINT=address, **cache)
    assert load_params(params).data.revision == COMMIT


def test_without_the_hub_there_is_no_pin_and_a_sentence(on_the_hub):
    done = on_the_hub.tool("pin", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="")
    assert "HF_ENDPOINT" in refused(done)
    assert load_params(on_the_hub.path / "params.yaml").data.revision is None


def test_a_recipe_is_started_and_unsaved_parameters_stay(workspace):
    folder = workspace.path
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    mine = (folder / "params.yaml").read_text()
    assert "in no commit" in refused(workspace.tool("recipe", "smollm2-sql"))
    assert (folder / "params.yaml").read_text() == mine
    assert "did you mean smollm2-sql?" in refused(workspace.tool("recipe", "smolm2-sql"))
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    git(folder, "add", "params.yaml")
    git(folder, "commit", "-qm", "mine")
    done = workspace.tool("recipe", "smollm2-sql")
    assert (folder / "params.yaml").read_text() == (folder / "recipes/smollm2-sql.yaml").read_text()
    assert "there is no requirements.txt here" in done.stdout, done.stderr  # the doctor ran

    # What a run pins is no change of one's own: the next recipe can be started.
    pinned = (folder / "recipes/qwen3-8b-sql.yaml").read_text().replace("revision: null", f"revision: {COMMIT}")
    (folder / "params.yaml").write_text(pinned)
    assert "in no commit" not in workspace.tool("recipe", "smollm2-sql").stderr
    assert (folder / "params.yaml").read_text() == (folder / "recipes/smollm2-sql.yaml").read_text()


# The run


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_fetched(tmp_path, tiny_model):
    large = tmp_path / "large"
    shutil.copytree(tiny_model, large)
    config = json.loads((large / "config.json").read_text())
    widths = {"hidden_size": 32768, "intermediate_size": 131072, "num_hidden_layers": 200, "layer_types": None}
    (large / "config.json").write_text(json.dumps(config | widths))
    folder = tmp_path / "für später"
    folder.mkdir()
    make_repository(folder, tiny_model)
    edit_yaml(folder / "params.yaml", lambda params: params["model"].update(id=NAME, revision=COMMIT))
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "", "HF_TOKEN": ""}
    with fake_hub(large, NAME) as (address, asked):
        command = [sys.executable, "-m", "tools.repro"]
        settings = environment() | hub | {"HF_ENDPOINT": address}
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    sentence = refused(done)
    assert "training" in sentence
    assert "problem  training" in done.stdout
    assert not [path for path in asked if path.endswith(".safetensors")]
    assert "Running stage" not in done.stdout


def test_what_is_in_the_cache_is_restored_without_checks(tmp_path, tiny_model, monkeypatch):
    make_repository(tmp_path, tiny_model)
    keep_stages(tmp_path, "fetch-base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", environment()["PATH"])
    assert repro.will_run("fetch-base")
    assert not repro.is_fetched(load_params())
    dvc(tmp_path, "repro")
    assert repro.is_fetched(load_params())
    shutil.rmtree("models/base")
    assert not repro.is_fetched(load_params())
    assert not repro.will_run("fetch-base")
