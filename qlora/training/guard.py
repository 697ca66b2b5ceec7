"""The trainer's callback: it shows progress, stops a run whose loss is not finite, and handles SIGTERM.

It also ends a run whose validation loss no longer falls (Prechelt, "Early Stopping - But When?", 1998).
"""

import math
from pathlib import Path

from qlora.processes import group
from qlora.runtime.console import Refusal
from qlora.training import checkpoints, record

from tqdm import tqdm
from transformers import TrainerCallback


class LeftValidation(Exception):
    """SIGTERM ended a validation early."""


class LeftStep(Exception):
    """SIGTERM ended a step between two of its packs, or a resumed run had been at its end already."""


class Guard(TrainerCallback):
    """Shows progress, stops a run whose loss is not finite, and saves a checkpoint and ends the run on SIGTERM.

    A step or validation that SIGTERM interrupts has no effect; the resumed run repeats it.

    Args:
        patience: Validations in a row without a new lowest loss that end the run; None: none do.
    """

    def __init__(self, patience: int | None = None):
        self.patience = patience
        self.stalled = False  # whether they ended it
        self.terminated = False
        self.validated = True
        self.shown: dict[str, str] = {}

    def terminate(self, *_) -> None:
        """The handler of SIGTERM."""
        self.terminated = True
        print("\nSIGTERM: writing a checkpoint", flush=True)

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")
        step = state.global_step
        due = step > 0 and (step % args.eval_steps == 0 or step == state.max_steps)
        done = any("eval_loss" in entry for entry in state.log_history if entry["step"] == step)
        args.eval_on_start = due and not done
        self.stalled = self._is_stalled(state)

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()

    def on_log(self, args, state, control, logs, **_) -> None:
        """Raise Refusal if a loss is not finite. The trainer logs before it saves, so no checkpoint holds that step."""
        self.shown |= {name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs}
        self.bar.set_postfix(self.shown)
        for name in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                advice = "lower train.learning_rate or train.max_grad_norm"
                if not args.bf16:
                    advice += ", or set quantization.compute_dtype to bfloat16"
                raise Refusal(
                    f"{name} is {logs[name]} at step {state.global_step}; the last good checkpoint is kept: {advice}"
                )

    def on_evaluate(self, args, state, control, **_) -> None:
        self.stalled = self._is_stalled(state)
        if self.stalled:
            control.should_training_stop = True

    def _is_stalled(self, state) -> bool:
        losses, best = record.validation_losses(state.log_history), record.best_step(state.log_history)
        return self.patience is not None and sum(step > best for step in losses) >= self.patience

    def on_step_begin(self, args, state, control, **_) -> None:
        self.random_states = checkpoints.random_states()

    def on_step_end(self, args, state, control, **_) -> None:
        self.bar.update()
        self.terminated = group.in_any(self.terminated)  # the signal may reach processes in different steps
        if self.terminated:
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args, state, control, **_) -> None:
        self.terminated = group.in_any(self.terminated)
        self.validated = not self.terminated
        if self.terminated:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            raise LeftValidation

    def on_save(self, args, state, control, **_) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        group.state().wait_for_everyone()  # each process writes one of its files
        if group.is_first():
            checkpoints.copy_best(checkpoint.parent, checkpoint)
            checkpoints.complete(checkpoint)
