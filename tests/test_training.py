"""quantize-load-train on the tiny model: outputs, refusals, signals; validation that changes nothing."""

import csv
import json
import shutil
import signal
import subprocess
import sys

from qlora.training import packing
from qlora.training.trainer import Trainer

import pytest
import torch
from conftest import refused
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trainers import blank_tokenizer, few_steps, random_rows
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

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
    sums = [64 + 64, 64 + 32, 64 + 32, 64 + 64, 64 + 128, 64 + 128, 128 + 64]
    assert metrics["trainable_parameters"] == 2 * 2 * sum(sums)
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
    assert sentence.startswith("lora.target_modules")
    assert "c_attn" in sentence
    assert "down_proj, gate_proj" in sentence  # what it has


def test_a_loss_that_is_no_number_stops_the_run(prepared):
    path = prepared.path / "tiny/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    sentence = refused(prepared.run("quantize_load_train"))
    assert "nan" in sentence
    assert "step 1" in sentence
    assert "train.learning_rate" in sentence
    assert not (prepared.path / "models/adapter").exists()
    assert not list(prepared.path.glob(".checkpoints/*/checkpoint-*"))


def test_validation_between_steps_changes_nothing(prepared):
    """bitsandbytes may repack weights for inference on a CPU, which made later gradients wrong."""
    prepared.set({"quantization.compute_dtype": "bfloat16", "train.max_steps": 4, "train.eval_steps": 100})
    assert prepared.run("quantize_load_train").returncode == 0
    without = adapter(prepared)
    prepared.set({"train.eval_steps": 1})
    assert prepared.run("quantize_load_train").returncode == 0
    between = adapter(prepared)
    assert all(torch.equal(without[name], between[name]) for name in without)


def test_sigterm_leaves_a_checkpoint_to_resume_from(prepared):
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
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate()
    assert process.returncode == 1
    (complete,) = prepared.path.glob(".checkpoints/*/checkpoint-*/complete")
    state = json.loads(complete.with_name("trainer_state.json").read_text())
    assert 0 < state["global_step"] < state["max_steps"]  # it did not train to its end
    _, _, sentence = rest.rpartition("error: ")
    assert f"step {state['global_step']};" in sentence
    assert not (prepared.path / "models/adapter").exists()


# Sends itself SIGTERM at a pack of the step or validation that follows a step, and prints how many packs were seen.
INTERRUPTED = """
import os, signal, sys
from qlora.runtime.console import run_stage
from stages import quantize_load_train as stage
from trl import SFTTrainer

method, step, pack = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
original, packs = getattr(SFTTrainer, method), []

def interrupted(trainer, *args, **kwargs):
    if trainer.state.global_step == step:
        packs.append(None)
        if len(packs) == pack:
            os.kill(os.getpid(), signal.SIGTERM)
    return original(trainer, *args, **kwargs)

setattr(SFTTrainer, method, interrupted)
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
        assert f"step {step};" in refused(done)
        assert f"packs: {pack}\n" in done.stdout
        (state,) = prepared.path.glob(f".checkpoints/*/checkpoint-{step}/trainer_state.json")
        assert state.with_name("complete").exists()
        validated = [entry["step"] for entry in json.loads(state.read_text())["log_history"] if "eval_loss" in entry]
        assert step not in validated
    assert not (prepared.path / "models/adapter").exists()
    assert prepared.run("quantize_load_train").returncode == 0
    assert [(prepared.path / name).read_bytes() for name in MADE] == expected


@pytest.mark.slow
def test_an_interrupted_run_resumes_with_less_memory(prepared):
    prepared.set({"lora.dtype": "float32", "train.max_length": 256, "train.micro_batch_tokens": 1024})
    assert prepared.run("quantize_load_train").returncode == 0
    whole = adapter(prepared)
    done = prepared.python("-c", INTERRUPTED, "training_step", "0", "1")
    assert "step 1;" in refused(done)
    prepared.set({"train.memory": "low", "train.micro_batch_tokens": 256})
    done = prepared.run("quantize_load_train")
    assert "checkpoint-1" in done.stdout
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
        args=few_steps(2, accumulation=2, max_grad_norm=1e-3),
        train_dataset=packing.pack_dataset([[0], [1], [2], [3]], random_rows(4, 64), 0),
        processing_class=blank_tokenizer(),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(Gradients())
    trainer.train()
    assert [norm.item() for norm in norms] == pytest.approx([1e-3] * 2, rel=0.02)
    assert all(entry["grad_norm"] > 1e-3 for entry in trainer.state.log_history if "grad_norm" in entry)
