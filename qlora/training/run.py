"""Run training from its last checkpoint to its end."""

import time
from pathlib import Path

from qlora.processes import group
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import room_in
from qlora.training import checkpoints, record
from qlora.training.packing import Steps
from qlora.training.trainer import Trainer

import torch


def to_the_end(trainer: Trainer, steps: Steps, saved: Path) -> dict:
    """Train to the last step, from the last checkpoint if there is one; return the run's figures.

    Raises:
        Refusal: if SIGTERM ended the run, if the adapter did not change, or if the machines do not share .checkpoints.
    """
    started = {name: p.to("cpu", copy=True) for name, p in trainer.whole_adapter().items()}
    size = trainer.model.get_nb_trainable_parameters()
    resumed = group.of_first(checkpoints.last_usable(saved) if group.is_first() else None)
    if group.in_any(resumed is not None and not resumed.is_dir()):
        raise Refusal(f"{resumed} is not on each machine: several machines need one folder that all of them see")
    rows = max(sum(map(len, step)) for step in steps.steps)
    print(f"training: {len(steps)} steps of {rows} rows" + (f", from {resumed.name}" if resumed else ""), flush=True)
    begin = time.monotonic()
    saved.mkdir(parents=True, exist_ok=True)
    if group.is_first():
        checkpoints.copy_best(resumed, saved)
    with room_in(saved):
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    seconds = time.monotonic() - begin
    if trainer.interrupted:
        step = trainer.state.global_step
        if step == 0:
            raise Refusal("interrupted in the first step; `dvc repro` starts anew")
        raise Refusal(f"interrupted after step {step}; `dvc repro` resumes from there")
    check_trained(trainer.kept_adapter(), started)
    return record.figures(trainer, steps, size, seconds, int(resumed.name.split("-")[1]) if resumed else 0)


def check_trained(adapter: dict[str, torch.Tensor], started: dict[str, torch.Tensor]) -> None:
    """Raise Refusal if no LoRA matrix B has changed since training started (all zeros)."""
    changed = (not torch.equal(p.cpu(), started[name]) for name, p in adapter.items() if "lora_B" in name)
    if not any(changed):
        raise Refusal("the adapter did not change in training; raise train.learning_rate or check lora.target_modules")
