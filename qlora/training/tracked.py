"""The trainer's callback that tells the trackers of train.report_to about each step."""

from collections.abc import Sequence

from qlora.reporting.trackers import Run, Tracking

from transformers import TrainerCallback

NAMES = {  # in trackers
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "validation/loss",
}


class Tracked(TrainerCallback):
    """Logs the losses of a run from its first process.

    Args:
        names: Of trackers.
        run: The run.
    """

    def __init__(self, names: Sequence[str], run: Run):
        self.names, self.run = names, run

    def on_train_begin(self, args, state, control, **_) -> None:
        self.tracking = Tracking(self.names if state.is_world_process_zero else [], self.run, state.global_step)

    def on_log(self, args, state, control, logs, **_) -> None:
        values = {NAMES[name]: float(value) for name, value in logs.items() if name in NAMES}
        if values:
            self.tracking.log(values, state.global_step)

    def on_train_end(self, args, state, control, **_) -> None:
        self.tracking.finish()
