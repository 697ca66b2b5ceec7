"""quantize-load-train on the tiny model: what is refused, what a signal leaves, and that validating changes nothing."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import refused
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from benchmarks.train_speed import blank_tokenizer, random_rows, settings
from qlora.training import packing
from stages.quantize_load_train import Trainer

MADE = ("models/adapter/adapter_model.safetensors", "results/train/log.csv")


def adapter(workspace) -> dict[str, torch.Tensor]:
    return load_file(workspace.path / "models/adapter/adapter_model.safetensors")


def test_a_run_writes_adapter_curve_and_record(prepared):
    done = prepared.run("quantize_load_train")
    assert done.returncode == 0, done.stderr
    assert any(bool(tensor.any()) for name, tensor in adapter(prepared).items() if "lora_B" in name)
    with (prepared.path / "results/train/log.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [step["step"] for step in steps] == ["1", "2", "3"]
    assert all(float(step["loss"]) > 0 for step in steps)
    assert steps[1]["eval_loss"]
    assert not steps[0]["eval_loss"]
    metrics = json.loads((prepared.path / "results/train/metrics.json").read_text())
    # r (in + out) of q, k, v, o, gate, up and down, in both layers
    widths = [64 + 64, 64 + 32, 64 + 32, 64 + 64, 64 + 128, 64 + 128, 128 + 64]
    assert metrics["trainable_parameters"] == 2 * 2 * sum(widths)
    assert metrics["rows"] == 12
    lines = (prepared.path / "data/prepared/train.jsonl").read_text().splitlines()
    assert metrics["tokens"] <= sum(json.loads(line)["tokens"] for line in lines)
    config = json.loads((prepared.path / "models/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./tiny"  # and no path of this machine
    environment = (prepared.path / "results/train/environment.json").read_text()
    assert str(prepared.path) not in environment
    assert not list((prepared.path / ".checkpoints").iterdir())


def test_a_module_that_the_model_lacks_is_refused(prepared):
    prepared.set({"lora.target_modules": ["q_proj", "c_attn"]})
    sentence = refused(prepared.run("quantize_load_train"))
    assert sentence.startswith(
        "lora.target_modules: this model has no linear layer c_attn; it has down_proj, gate_proj"
    )


def test_a_loss_that_is_no_number_stops_the_run(prepared):
    path = prepared.path / "tiny/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    sentence = refused(prepared.run("quantize_load_train"))
    assert sentence.startswith("loss is nan at step 1; the last good checkpoint is kept")
    assert not (prepared.path / "models/adapter").exists()
    assert not list(prepared.path.glob(".checkpoints/*/checkpoint-*"))


def test_validating_in_between_changes_nothing(prepared):
    """bitsandbytes may repack weights for inference on a CPU, after which gradients were wrong."""
    prepared.set({"quantization.compute_dtype": "bfloat16", "train.max_steps": 4, "train.eval_steps": 100})
    assert prepared.run("quantize_load_train").returncode == 0
    without = adapter(prepared)
    prepared.set({"train.eval_steps": 1})
    assert prepared.run("quantize_load_train").returncode == 0
    between = adapter(prepared)
    assert all(torch.equal(without[name], between[name]) for name in without)


def test_sigterm_leaves_a_checkpoint_to_go_on_from(prepared):
    prepared.set(
        {"train.max_steps": None, "train.epochs": 200, "train.checkpoint_steps": 1000, "train.eval_steps": 1000}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.quantize_load_train"],
        cwd=prepared.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    while "loss=" not in seen:  # the first step is done
        seen += process.stderr.read(1)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert process.returncode == 1
    assert "error: interrupted after step" in rest
    assert len(list(prepared.path.glob(".checkpoints/*/checkpoint-*/complete"))) == 1
    assert not (prepared.path / "models/adapter").exists()


# Sends SIGTERM to itself at a pack of what follows a step, and says how many packs were gone through then.
INTERRUPTED = """
import os, signal, sys
from stages import quantize_load_train as stage
from qlora.runtime.console import run_stage

method, step, pack = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole, packs = getattr(stage.SFTTrainer, method), []

def interrupted(trainer, *args, **kwargs):
    if trainer.state.global_step == step:
        packs.append(None)
        if len(packs) == pack:
            os.kill(os.getpid(), signal.SIGTERM)
    return whole(trainer, *args, **kwargs)

setattr(stage.SFTTrainer, method, interrupted)
try:
    run_stage(stage.main)
finally:
    print("packs:", len(packs))
"""


@pytest.mark.slow
def test_sigterm_does_not_wait_for_the_end_of_a_step_or_a_validation_and_changes_nothing(prepared):
    prepared.set({"lora.dropout": 0.1, "train.max_length": 256, "train.micro_batch_tokens": 256})
    assert prepared.run("quantize_load_train").returncode == 0
    expected = [(prepared.path / name).read_bytes() for name in MADE]
    shutil.rmtree(prepared.path / "models/adapter")
    # Step 2 in its first pack, the validation after it, and the one after the last.
    for method, step, pack in (("training_step", 1, 1), ("prediction_step", 2, 1), ("prediction_step", 3, 1)):
        done = prepared.python("-c", INTERRUPTED, method, str(step), str(pack))
        assert refused(done).startswith(f"interrupted after step {step}")
        assert f"packs: {pack}\n" in done.stdout
        (state,) = prepared.path.glob(f".checkpoints/*/checkpoint-{step}/trainer_state.json")
        assert state.with_name("complete").exists()
        validated = [entry["step"] for entry in json.loads(state.read_text())["log_history"] if "eval_loss" in entry]
        assert step not in validated
    assert not (prepared.path / "models/adapter").exists()
    assert prepared.run("quantize_load_train").returncode == 0
    assert [(prepared.path / name).read_bytes() for name in MADE] == expected


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_with_less_memory(prepared):
    prepared.set({"lora.dtype": "float32", "train.max_length": 256, "train.micro_batch_tokens": 1024})
    assert prepared.run("quantize_load_train").returncode == 0
    whole = adapter(prepared)
    done = prepared.python("-c", INTERRUPTED, "training_step", "0", "1")
    assert refused(done).startswith("interrupted after step 1;")
    prepared.set({"train.memory": "low", "train.micro_batch_tokens": 256})
    done = prepared.run("quantize_load_train")
    assert ", from checkpoint-1" in done.stdout
    lighter = adapter(prepared)
    apart = max((whole[name] - lighter[name]).abs().max().item() for name in whole)
    assert apart < 1e-5


def test_gradients_are_clipped_as_a_whole_and_cleared_after_each_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    norms = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **kwargs):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

        def on_step_end(self, *_, model, **kwargs):
            assert all(p.grad is None for p in model.parameters())

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    trainer = Trainer(
        torch.float32,
        0,
        model=LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)),
        args=settings(1, 2, 2, max_grad_norm=1e-3, use_cpu=True, padding_free=True, gradient_checkpointing=False),
        train_dataset=packing.pack_dataset([[0], [1], [2], [3]], random_rows("short", 4, 64), 0),
        processing_class=blank_tokenizer(),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(Gradients())
    trainer.train()
    assert [norm.item() for norm in norms] == pytest.approx([1e-3] * 2, rel=0.02)
    assert all(entry["grad_norm"] > 1e-3 for entry in trainer.state.log_history if "grad_norm" in entry)
