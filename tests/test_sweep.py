"""A sweep: its grid is checked first, experiments share stages, and a stopped sweep resumes."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from qlora.runtime.console import Refusal
from tools.sweep_grid import combinations, next_wave
from tools.sweep_queue import worker_devices

import pytest
from repository import ROOT, dvc, environment, git, keep_stages, make_repository, python, set_param, stage_runs


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The default recipe and dvc.yaml, in the current folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        (["lora.r=8,many"], r"r=many: lora\.r: .*'many'"),
        (["lora.rank=8,16"], r"rank=8: lora\.rank: .*\br\?"),
        (["lora.r"], r"'lora\.r'.*lora\.r=8,16,64"),
        (["gguf.types=[Q8_0],[Q4_0]"], r"gguf\.types .*stages"),
    ],
)
def test_a_grid_is_checked_before_anything_runs(recipe, grid, named):
    with pytest.raises(Refusal, match=f"^GRID.*{named}"):
        combinations(grid)


def test_a_grid_is_the_product_of_its_values(recipe):
    assert combinations(["lora.r=8,16", "lora.target_modules=[q_proj,v_proj],all-linear"]) == {
        "r=8_target_modules=q_proj-v_proj": {"lora.r": "8", "lora.target_modules": "[q_proj,v_proj]"},
        "r=8_target_modules=all-linear": {"lora.r": "8", "lora.target_modules": "all-linear"},
        "r=16_target_modules=q_proj-v_proj": {"lora.r": "16", "lora.target_modules": "[q_proj,v_proj]"},
        "r=16_target_modules=all-linear": {"lora.r": "16", "lora.target_modules": "all-linear"},
    }


def test_experiments_that_share_a_stage_run_it_once():
    """Two ranks and three merges: two trainings side by side, then the other merges find them in the cache."""
    reach = {"base": [], "train": ["r"], "merge": ["dtype", "r"]}
    experiments = {f"{r} {dtype}": {"r": r, "dtype": dtype} for r in ("8", "16") for dtype in ("a", "b", "c")}
    first = next_wave(experiments, reach, {}, {})
    assert list(first) == ["8 a", "16 a"]
    done = dict.fromkeys(first, "commit")
    assert list(next_wave(experiments, reach, done, {})) == ["8 b", "8 c", "16 b", "16 c"]
    # If the first one failed, its training is missing, and one of the others does it.
    assert list(next_wave(experiments, reach, {"8 a": "commit"}, {"16 a": "no"})) == ["8 b", "8 c", "16 b"]


@pytest.mark.parametrize(("workers", "devices"), [(None, ["2", "GPU-a1"]), (1, ["2"]), (3, ["2", "GPU-a1", "2"])])
def test_each_worker_has_a_gpu_of_those_that_this_process_may_use(monkeypatch, workers, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-a1")
    assert worker_devices(workers) == devices


def runs_of_experiments(folder: Path) -> Counter:
    """How often DVC ran each stage in the queue's experiments, by their logs."""
    logs = (folder / ".dvc/tmp/exps/run").glob("*/*.out")
    return sum((stage_runs(log.read_text()) for log in logs), Counter())


@pytest.mark.slow
def test_a_sweep_runs_each_stage_once_names_what_fails_and_resumes_after_a_stop(tmp_path, tiny_model):
    """Three layer choices, one of which fails, by two answer lengths: three trainings for six experiments."""
    folder = tmp_path / "sweep"
    make_repository(folder, tiny_model)
    keep_stages(folder, "fetch-base", "prepare-dataset", "quantize-load-train", "evaluate", "judge", "report")
    for name, value in {"artifacts": ["base", "adapter"], "max_new_tokens": 4, "gates": {}}.items():
        set_param(folder, f"evaluate.{name}", value)
    set_param(folder, "train.max_steps", 2)
    git(folder, "rm", "-q", "--cached", "data/raw/text2sql.jsonl")
    dvc(folder, "add", "-q", "data/raw/text2sql.jsonl")  # ignored by Git: the experiments' copies get it from DVC
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "settings")
    head = git(folder, "rev-parse", "HEAD")
    command = ["tools.sweep", "lora.target_modules=[q_proj],[v_proj],[nothing]", "evaluate.max_new_tokens=3,4"]
    command += ["--workers", "2"]

    first = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    output = ""
    while " done in " not in output:
        line = first.stdout.readline()
        assert line, output
        output += line
    first.send_signal(signal.SIGTERM)
    output += first.communicate()[0]
    assert first.returncode == 1
    shared = stage_runs(output)
    assert shared == Counter(["fetch-base", "prepare-dataset"])
    assert not python(folder, "dvc", "queue", "status").stdout.count("Queued")
    finished = dvc(folder, "exp", "list", "--name-only").split()
    assert finished

    second = python(folder, *command)
    assert second.returncode == 1
    assert stage_runs(second.stdout) == Counter()
    assert "2 of 6 " in second.stderr
    for tokens in (3, 4):
        assert f"target_modules=nothing_max_new_tokens={tokens}: lora.target_modules: " in second.stderr
    assert Path(folder / re.search(r"log: (\S+)", second.stderr)[1]).is_file()
    names = dvc(folder, "exp", "list", "--name-only").split()
    assert len(names) == 4
    assert set(finished) < set(names)
    runs = runs_of_experiments(folder)
    assert runs.keys().isdisjoint({"fetch-base", "prepare-dataset"})
    assert runs["evaluate@base"] == 2  # one for each answer length
    table = (folder / "results/sweep/table.md").read_text()
    assert all(name in table for name in names)
    assert "score.adapter" in table
    assert (folder / "results/sweep/lora.target_modules.svg").read_text().startswith("<?xml")
    assert git(folder, "rev-parse", "HEAD") == head
    assert not list(folder.glob(".dvc/tmp/exps/tmp*"))
