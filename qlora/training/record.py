"""The record of a training run: the loss curve, the figures, the environment, and the adapter's files."""

import json
import resource
import shutil
from pathlib import Path

from qlora.processes import group
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.schema import Params
from qlora.runtime.environment import environment, versions
from qlora.runtime.outputs import write_json
from qlora.training.device import Device
from qlora.training.memory import MemoryPlan
from qlora.training.packing import Steps
from qlora.weights import adapter_names

import pandas
import torch
from peft import PeftModel

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
CURVE = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")  # columns of log.csv
LAST = 10  # the training loss is the mean over so many last steps


def peak_memory() -> int:
    """Peak memory in bytes: of this process's GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def validation_losses(history: list[dict]) -> dict[int, float]:
    """Step -> validation loss, of the steps that were validated."""
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def best_step(history: list[dict]) -> int | None:
    """The first step with the lowest validation loss; None before the first validation."""
    losses = validation_losses(history)
    return min(losses, key=losses.get, default=None)


def figures(trainer, steps: Steps, size: tuple[int, int], seconds: float, first_step: int) -> dict:
    """The content of results/train/metrics.json. Every process must call this.

    Args:
        trainer: After training.
        steps: Of the whole run.
        size: Number of trainable and of all parameters.
        seconds: Duration of the training since `first_step`.
        first_step: The step after which the run was resumed; 0 if it was not.
    """
    history, done = trainer.state.log_history, trainer.state.global_step
    trainable, total = size
    validated = [entry for entry in history if entry["step"] > first_step - trainer.args.eval_on_start]
    validating = sum(entry.get("eval_runtime", 0.0) for entry in validated)
    losses = [entry["loss"] for entry in history if "loss" in entry][-LAST:]
    validation = validation_losses(history).get(trainer.kept_step)
    return {
        "trainable_parameters": trainable,
        "parameters": total,
        "steps": done,
        "kept_step": trainer.kept_step,
        "rows": sum(map(len, steps.packs[: done * steps.packs_a_step])),
        "tokens": sum(steps.tokens[:done]),
        "tokens_per_second": round(sum(steps.tokens[first_step:done]) / (seconds - validating), 1),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(max(group.gathered(peak_memory())) / 1e9, 2),  # of one device
        "train_loss": round(sum(losses) / len(losses), 4),
        "validation_loss": None if validation is None else round(validation, 4),
    }


def write_log(path: Path, history: list[dict]) -> None:
    """Write the loss curve as CSV, one line for each step."""
    lines: dict[int, dict] = {}
    for entry in history:
        lines.setdefault(entry["step"], {}).update({name: entry[name] for name in CURVE if name in entry})
    pandas.DataFrame([lines[step] for step in sorted(lines)], columns=CURVE).to_csv(path, index=False)


def environment_of(params: Params, device: Device, plan: MemoryPlan) -> dict:
    """The content of results/train/environment.json: what computes, the layout (rounding depends on it), the seeds."""
    return environment(versions(PACKAGES)) | {
        "devices": device.count,
        "layout": {name: getattr(plan, name) for name in ("pack_tokens", "compiled", "recomputed_layers")},
        "seeds": {"data": params.data.seed, "train": params.train.seed},
    }


def write_adapter(folder: Path, model: PeftModel, weights: dict[str, torch.Tensor], params: Params, base: Path) -> None:
    """Write an adapter as PEFT does, with the whole model's names and beside it the base model's record.

    Its config names the base model as params.yaml does, not by its folder on this machine.

    Args:
        folder: Of the adapter.
        model: The model with the adapter.
        weights: The adapter's weights by name.
        params: The recipe.
        base: The base model's folder.
    """
    model.save_pretrained(folder, state_dict=weights)
    adapter_names.to_whole(folder, base)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty template of a model card
    shutil.copy(ARTIFACTS["base"].folder / BASE_RECORD, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": params.model.id, "revision": params.model.revision}
    if isinstance(config["target_modules"], list):  # PEFT writes a set, whose order changes between runs
        config["target_modules"].sort()
    write_json(path, config)
