"""The record of a training run: the loss curve, the figures, the environment, and the base model's name."""

import json
import platform
import resource
from importlib.metadata import version
from pathlib import Path

from qlora.processes import group
from qlora.recipe.schema import Params
from qlora.runtime.outputs import write_json
from qlora.training.device import Device
from qlora.training.memory import MemoryPlan
from qlora.training.packing import Steps

import pandas
import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
CURVE = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")  # columns of log.csv
LAST = 10  # the training loss is the mean over so many last steps


def peak_memory() -> int:
    """Peak memory in bytes: of this process's GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def figures(trainer, steps: Steps, size: tuple[int, int], seconds: float, first_step: int) -> dict:
    """The content of results/train/metrics.json. Every process must call this.

    Args:
        trainer: After training.
        steps: Of the whole run.
        size: Number of trainable and of all parameters.
        seconds: Duration of the training since `first_step`.
        first_step: The step after which the run was resumed; 0 if it was not.
    """
    history = trainer.state.log_history
    trainable, total = size
    validated = [entry for entry in history if entry["step"] > first_step - trainer.args.eval_on_start]
    validating = sum(entry.get("eval_runtime", 0.0) for entry in validated)
    losses = [entry["loss"] for entry in history if "loss" in entry][-LAST:]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return {
        "trainable_parameters": trainable,
        "parameters": total,
        "steps": len(steps),
        "rows": steps.rows,
        "tokens": sum(steps.tokens),
        "tokens_per_second": round(sum(steps.tokens[first_step:]) / (seconds - validating), 1),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(max(group.gathered(peak_memory())) / 1e9, 2),  # of one device
        "train_loss": round(sum(losses) / len(losses), 4),
        "validation_loss": round(validation[-1], 4) if validation else None,
    }


def write_log(path: Path, history: list[dict]) -> None:
    """Write the loss curve as CSV, one line for each step."""
    lines: dict[int, dict] = {}
    for entry in history:
        lines.setdefault(entry["step"], {}).update({name: entry[name] for name in CURVE if name in entry})
    pandas.DataFrame([lines[step] for step in sorted(lines)], columns=CURVE).to_csv(path, index=False)


def environment(params: Params, device: Device, plan: MemoryPlan) -> dict:
    """The content of results/train/environment.json: versions, device, threads, layout (rounding depends on it), seeds.

    It holds no host name, no path and no environment variable.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "devices": device.count,
        "threads": torch.get_num_threads(),
        "layout": {name: getattr(plan, name) for name in ("pack_tokens", "compiled", "recomputed_layers")},
        "packages": {name: version(name) for name in PACKAGES},
        "seeds": {"data": params.data.seed, "train": params.train.seed},
    }


def name_base_model(path: Path, params: Params) -> None:
    """Name the base model in adapter_config.json as params.yaml does, not by its folder on this machine."""
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": params.model.id, "revision": params.model.revision}
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, whose order changes between runs
    write_json(path, config)
