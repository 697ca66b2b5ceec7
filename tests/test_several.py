"""Two processes together, on a CPU through gloo: they train the adapter of one process, also when one of them dies, and
answer the test rows as one does."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import make_workspace, refused
from safetensors.torch import load_file

from qlora.processes import several
from qlora.recipe.params import Quantization
from qlora.runtime.console import Refusal
from qlora.scoring import transformers_run as hf_inference
from qlora.weights import loading as models


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model):
    """A workspace with base.json, prepared rows and, as models/one and results/one, what one process makes of them."""
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
    """The processes that `process` has started, once a checkpoint is there."""
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
    prepared.set({"train.devices": 2})
    done = prepared.run("quantize_load_train")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan for 2 x CPU") == 1
    assert_as_one_process(prepared)


def test_a_process_that_dies_ends_the_run_and_one_process_goes_on_from_there(prepared):
    prepared.set({"train.devices": 2})
    process = start(prepared)
    _, second = after_a_checkpoint(prepared, process)
    second.kill()
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 60
    assert process.returncode == 1
    _, _, sentence = errors.rpartition("error: ")
    assert sentence.startswith("process 1 of 2 was ended by SIGKILL")

    prepared.set({"train.devices": 1})
    done = prepared.run("quantize_load_train")
    assert done.returncode == 0, done.stderr
    assert "training: 5 steps of 4 rows, from checkpoint-" in done.stdout
    assert_as_one_process(prepared)


def test_one_process_that_was_interrupted_goes_on_as_two(prepared):
    for devices, status in ((1, 1), (2, 0)):
        prepared.set({"train.devices": devices})
        process = start(prepared)
        if status:
            after_a_checkpoint(prepared, process)
            process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == status, errors
    assert "training: 5 steps of 4 rows, from checkpoint-" in output
    assert_as_one_process(prepared)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_both_processes_agree_on(prepared):
    prepared.set({"train.devices": 2, "train.max_steps": 500, "train.epochs": 200})
    process = start(prepared)
    after_a_checkpoint(prepared, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith("error: interrupted; run `dvc repro` again to go on\n")
    assert len(list(prepared.path.glob(".checkpoints/*/checkpoint-*/rng_state_1.pth"))) == 2
    assert len(list(prepared.path.glob(".checkpoints/*/checkpoint-*/complete"))) == 2


@pytest.mark.slow
def test_what_ends_every_process_is_said_once(prepared):
    prepared.set({"train.devices": 2, "train.max_steps": 5, "train.learning_rate": 0.99, "lora.alpha": 1e30})
    done = prepared.run("quantize_load_train")
    assert refused(done).startswith(("loss is ", "grad_norm is "))
    assert done.stderr.count("error: ") == 1


def test_two_processes_share_the_rows_and_answer_as_one_does(prepared):
    prepared.set({"train.devices": 1, "train.max_steps": 5})
    shutil.copytree(prepared.path / "models/one", prepared.path / "models/adapter", dirs_exist_ok=True)
    answers, measures = [], []
    for processes in "12":
        done = prepared.run("evaluate", "--artifact", "adapter", "--processes", processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("evaluate@adapter") == 1
        predictions = prepared.path / "results/predictions/adapter"
        rows = [json.loads(line) for line in predictions.with_suffix(".jsonl").read_text().splitlines()]
        nll = [row.pop("nll") for row in rows]
        answers.append((rows, np.load(predictions.with_suffix(".npz"))))
        measures.append(json.loads((prepared.path / "metrics/adapter.json").read_text()) | {"nll": nll})
    (one, top), (two, top_of_two) = answers
    assert two == one
    for name in top:
        np.testing.assert_allclose(top_of_two[name], top[name], atol=1e-3)
    assert measures[1]["nll"] == pytest.approx(measures[0]["nll"], abs=2e-4)
    assert measures[1].keys() == measures[0].keys()
    for name in ("loss", "rows", "answer_tokens", "execution_accuracy", "size_mb"):
        assert measures[1][name] == pytest.approx(measures[0][name], abs=2e-4)


def test_what_ends_every_evaluating_process_is_said_once(prepared):
    shutil.copytree(prepared.path / "models/one", prepared.path / "models/adapter", dirs_exist_ok=True)
    (prepared.path / "models/adapter/adapter_model.safetensors").write_bytes(b"broken")
    (prepared.path / "metrics/adapter.json").unlink(missing_ok=True)
    done = prepared.run("evaluate", "--artifact", "adapter", "--processes", "2")
    assert refused(done).startswith("models/adapter: broken weights")
    assert done.stderr.count("error: ") == 1
    assert not (prepared.path / "metrics/adapter.json").exists()


def test_what_one_process_has_no_memory_for_is_tried_again_by_all_with_less(workspace):
    (workspace.path / "memory.py").write_text(
        "from stages import several\n"
        "def main():\n"
        "    first = several.is_first()\n"
        "    if several.memory_limit() > 7e9 and not first:\n"
        "        raise several.StartAgain(7000000000)\n"
        "    print(several.gathered(several.memory_limit()))\n"  # the first waits for the other here
        "several.work(main)\n"
    )
    done = workspace.python("-c", "from stages import several; several.start('memory', 2)")
    assert done.returncode == 0, done.stderr
    again, result = done.stdout.splitlines()
    assert again == "the GPUs' memory ran out: starting again with a lighter layout"
    assert result == "[7000000000.0, 7000000000.0]"


def test_sharded_codes_survive_the_way_that_a_gpu_copies_them(tiny_model):
    model = models.load_base(tiny_model, Quantization(compute_dtype="bfloat16"), sharded=True)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert layers
    for layer in layers:
        words = layer.weight.data
        copied = words.float().to(words.dtype)  # as torch's foreach copy does, with which FSDP gathers
        assert torch.equal(copied.view(torch.uint8), words.view(torch.uint8))


def test_shares_have_each_row_once_and_about_equally_many_tokens():
    rows = [[family] * 40 + list(range(at)) for at in range(20) for family in (7, 3, 5)] + [[9] * 3]
    shares = hf_inference.shares(rows, 4)
    assert sorted(at for share in shares for at in share) == list(range(61))
    tokens = [sum(len(rows[at]) for at in share) for share in shares]
    assert max(tokens) - min(tokens) < 2 * max(map(len, rows))
    assert sum(len({rows[at][0] for at in share}) for share in shares) <= 4 + 3  # at most a family is cut between two
    assert hf_inference.shares([[1] * 90, [2] * 5, [3] * 5], 3) == [[0], [], [1, 2]]


@pytest.fixture
def settings(prepared, monkeypatch):
    """The parameters of training with changes, on a machine with so many GPUs."""
    from qlora.recipe.params import load_params

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
        (8, {}, 4),  # as many as a step has rows
        (8, {"devices": 3}, 3),
        (0, {"devices": 2}, 2),
        (2, {"parallel": "fsdp"}, 2),
    ],
)
def test_processes_follow_from_parameters_and_machine(settings, gpus, values, expected):
    assert several.wanted(settings(gpus, **values)) == expected


@pytest.mark.parametrize(
    ("gpus", "values", "sentence"),
    [
        (2, {"devices": 3}, r"train.devices: 3 are wanted, and 2 GPUs are visible"),
        (0, {"devices": 5}, r"train.devices: 5 are wanted, and there are 4 CPU cores"),
        (8, {"devices": 5}, r"train.batch_size: 4 rows a step cannot keep 5 processes busy"),
        (0, {"parallel": "fsdp"}, r"train.parallel: fsdp .* there is none"),
        (1, {"parallel": "fsdp"}, r"train.parallel: fsdp .* there is one"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_runs(settings, gpus, values, sentence):
    with pytest.raises(Refusal, match=sentence):
        several.wanted(settings(gpus, **values))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"NNODES": "0"}, "NNODES: this variable is the number of machines, 1 or more"),
        ({"NNODES": "two"}, "NNODES: this variable is the number of machines, 1 or more"),
        ({"NNODES": "2"}, "NODE_RANK: several machines need a number"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR: several machines need"),
    ],
)
def test_machines_that_are_told_of_wrongly_are_refused(settings, monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refusal, match=sentence):
        several.wanted(settings(2))
