"""Two processes on a CPU, through gloo: they train the same adapter as one process and give the same answers.

Also after one of them dies, and when a run resumes with another number of processes.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from qlora.processes import launch
from qlora.recipe.load import load_params
from qlora.recipe.schema import Quantization
from qlora.runtime.console import Refusal
from qlora.scoring import transformers_run
from qlora.weights import loading

import numpy as np
import psutil
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import make_workspace, refused
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model):
    """A workspace with prepared rows, and one process's adapter and record in models/one and results/one."""
    made = make_workspace(tmp_path_factory.mktemp("several"), tiny_model)
    made.set(
        {"lora.dtype": "float32", "train.learning_rate": 5e-4, "train.epochs": 2, "train.max_steps": 5}
    )  # so that a difference is a mistake and not rounding
    for stage in ("fetch_base", "prepare_dataset", "quantize_load_train"):
        done = made.run(stage)
        assert done.returncode == 0, done.stderr
    (made.path / "models/adapter").rename(made.path / "models/one")
    (made.path / "results/train").rename(made.path / "results/one")
    return made


def start(workspace) -> subprocess.Popen:
    command = [sys.executable, "-m", "stages.quantize_load_train"]
    return subprocess.Popen(command, cwd=workspace.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_a_checkpoint(workspace, process: subprocess.Popen) -> list[psutil.Process]:
    """Wait for a checkpoint; return the training processes that `process` has started."""
    while not list(workspace.path.glob(".checkpoints/*/checkpoint-*/complete")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    started = psutil.Process(process.pid).children()
    return [child for child in started if "stages.quantize_load_train" in child.cmdline()]


def log(folder: Path) -> list[list[float]]:
    """The numbers of results/.../log.csv; an empty field is 0."""
    with (folder / "log.csv").open() as file:
        return [[float(value or 0) for value in line.values()] for line in csv.DictReader(file)]


def assert_as_one_process(workspace) -> None:
    one, other = (load_file(workspace.path / f"models/{name}/adapter_model.safetensors") for name in ("one", "adapter"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor(log(workspace.path / "results/train")),
        torch.tensor(log(workspace.path / "results/one")),
        atol=1e-4,
        rtol=1e-4,
    )


def test_two_processes_make_the_adapter_of_one(prepared):
    prepared.set({"train.devices": 2, "train.keep": "best"})  # which is the last of these few steps
    done = prepared.run("quantize_load_train")
    prepared.set({"train.keep": "last"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 x CPU") == 1  # rank 0 alone prints the plan
    assert_as_one_process(prepared)


def test_a_process_that_dies_ends_the_run_and_one_process_resumes_it(prepared):
    prepared.set({"train.devices": 2})
    process = start(prepared)
    _, second = after_a_checkpoint(prepared, process)
    second.kill()
    _, errors = process.communicate()
    assert process.returncode == 1
    _, _, sentence = errors.rpartition("error: ")
    assert "process 1 of 2" in sentence
    assert "SIGKILL" in sentence

    prepared.set({"train.devices": 1})
    done = prepared.run("quantize_load_train")
    assert done.returncode == 0, done.stderr
    assert "checkpoint-" in done.stdout
    assert_as_one_process(prepared)


def test_an_interrupted_run_of_one_process_resumes_with_two(prepared):
    for devices, status in ((1, 1), (2, 0)):
        prepared.set({"train.devices": devices})
        process = start(prepared)
        if status:
            after_a_checkpoint(prepared, process)
            process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
        assert process.returncode == status, errors
    assert "checkpoint-" in output
    assert_as_one_process(prepared)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_both_processes_agree_on(prepared):
    prepared.set({"train.devices": 2, "train.max_steps": 500, "train.epochs": 200})
    process = start(prepared)
    after_a_checkpoint(prepared, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "dvc repro" in errors.rpartition("error: ")[2]
    assert len(list(prepared.path.glob(".checkpoints/*/checkpoint-*/rng_state_1.pth"))) == 2
    assert len(list(prepared.path.glob(".checkpoints/*/checkpoint-*/complete"))) == 2


@pytest.mark.slow
def test_a_refusal_in_every_process_is_printed_once(prepared):
    prepared.set({"train.devices": 2, "train.max_steps": 5, "train.learning_rate": 0.99, "lora.alpha": 1e30})
    done = prepared.run("quantize_load_train")
    assert refused(done).startswith(("loss ", "grad_norm "))
    assert done.stderr.count("error: ") == 1


def test_two_processes_share_the_rows_and_answer_as_one_does(prepared):
    prepared.set({"train.devices": 1, "train.max_steps": 5})
    shutil.copytree(prepared.path / "models/one", prepared.path / "models/adapter", dirs_exist_ok=True)
    answers, measures = [], []
    for processes in "12":
        done = prepared.run("evaluate", "--artifact", "adapter", "--processes", processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("evaluate@adapter") == 1
        predictions = prepared.path / "results/answers/adapter"
        rows = [json.loads(line) for line in predictions.with_suffix(".jsonl").read_text().splitlines()]
        nll = [row.pop("nll") for row in rows]
        answers.append((rows, np.load(predictions.with_suffix(".npz"))))
        measures.append(json.loads((prepared.path / "results/answers/adapter.json").read_text()) | {"nll": nll})
    (one, top), (two, top_of_two) = answers
    assert two == one
    for name in top:
        np.testing.assert_allclose(top_of_two[name], top[name], atol=1e-3)
    assert measures[1]["nll"] == pytest.approx(measures[0]["nll"], abs=2e-4)
    assert measures[1].keys() == measures[0].keys()
    for name in ("loss", "rows", "answer_tokens", "stop_rate", "size_mb"):
        assert measures[1][name] == pytest.approx(measures[0][name], abs=2e-4)


def test_a_refusal_in_every_evaluating_process_is_printed_once(prepared):
    shutil.copytree(prepared.path / "models/one", prepared.path / "models/adapter", dirs_exist_ok=True)
    (prepared.path / "models/adapter/adapter_model.safetensors").write_bytes(b"broken")
    (prepared.path / "results/answers/adapter.json").unlink(missing_ok=True)
    done = prepared.run("evaluate", "--artifact", "adapter", "--processes", "2")
    assert refused(done).startswith("models/adapter/adapter_model.safetensors is damaged")
    assert done.stderr.count("error: ") == 1
    assert not (prepared.path / "results/answers/adapter.json").exists()


def test_when_one_process_runs_out_of_memory_all_start_again_with_less(workspace):
    (workspace.path / "short_of_memory.py").write_text(
        "from qlora.processes import group, launch\n"
        "def main():\n"
        "    first = group.is_first()\n"
        "    if launch.memory_limit() > 7e9 and not first:\n"
        "        raise launch.StartAgain(7000000000)\n"
        "    print(group.gathered(launch.memory_limit()))\n"  # rank 0 waits for the other here
        "launch.work(main)\n"
    )
    done = workspace.python("-c", "from qlora.processes import launch; launch.start('short_of_memory', 2)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[7000000000.0, 7000000000.0]"


def test_sharded_codes_survive_a_copy_through_float32(tiny_model):
    model = loading.load_base(tiny_model, Quantization(compute_dtype="bfloat16"), sharded=True)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert layers
    for layer in layers:
        words = layer.weight.data
        copied = words.float().to(words.dtype)  # as FSDP gathers them, by torch's foreach copy
        assert torch.equal(copied.view(torch.uint8), words.view(torch.uint8))


def test_shares_have_each_row_once_and_about_equally_many_tokens():
    rows = [[family] * 40 + list(range(length)) for length in range(20) for family in (7, 3, 5)] + [[9] * 3]
    shares = transformers_run.shares(rows, 4)
    assert sorted(row for share in shares for row in share) == list(range(61))
    tokens = [sum(len(rows[row]) for row in share) for share in shares]
    assert max(tokens) - min(tokens) < 2 * max(map(len, rows))
    assert sum(len({rows[row][0] for row in share}) for share in shares) <= 4 + 3  # neighbours share one family at most
    assert transformers_run.shares([[1] * 90, [2] * 5, [3] * 5], 3) == [[0], [], [1, 2]]


@pytest.fixture
def settings(prepared, monkeypatch):
    """A function that returns params.train with changes and simulates a machine with so many GPUs and 4 CPUs."""
    monkeypatch.chdir(prepared.path)
    train = load_params().train
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def change(gpus: int, **values):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return train.model_copy(update={"batch_size": 4, "devices": "auto", "parallel": "ddp"} | values)

    return change


@pytest.mark.parametrize(
    ("gpus", "values", "expected"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (2, {}, 2),
        (8, {}, 4),  # one a row of a step
        (8, {"devices": 3}, 3),
        (0, {"devices": 2}, 2),
        (2, {"parallel": "fsdp"}, 2),
    ],
)
def test_processes_follow_from_parameters_and_machine(settings, gpus, values, expected):
    assert launch.wanted(settings(gpus, **values)) == expected


@pytest.mark.parametrize(
    ("gpus", "values", "reason"),
    [
        (2, {"devices": 3}, r"train\.devices: 3 .* 2 GPUs"),
        (0, {"devices": 5}, r"train\.devices: 5 .* 4 CPU"),
        (8, {"devices": 5}, r"train\.batch_size: 4 .* 5 processes"),
        (0, {"parallel": "fsdp"}, r"train\.parallel: fsdp .* none"),
        (1, {"parallel": "fsdp"}, r"train\.parallel: fsdp .* one"),
    ],
)
def test_devices_that_the_machine_lacks_are_refused(settings, gpus, values, reason):
    with pytest.raises(Refusal, match=f"^{reason}"):
        launch.wanted(settings(gpus, **values))


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"NNODES": "0"}, "NNODES"),
        ({"NNODES": "two"}, "NNODES"),
        ({"NNODES": "2"}, "NODE_RANK"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_PORT"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR"),
    ],
)
def test_wrong_variables_of_several_machines_are_refused(settings, monkeypatch, variables, named):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refusal, match=f"^{named}: "):
        launch.wanted(settings(2))
