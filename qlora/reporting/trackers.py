"""A training run in TensorBoard and other trackers (train.report_to): its curves, parameters and final scores.

Training starts a run and logs its losses; `report` adds the scores to the same run. What trackers write on this machine
is under results/, which Git ignores, of the user's repository, even if DVC runs a stage in a temporary copy of it.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.metrics import METRICS
from qlora.recipe.schema import Params
from qlora.runtime.console import Refusal

PROJECT = "qlora-pipeline"
FOLDER = Path(os.environ.get("DVC_ROOT", "."), "results")
Values = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run as trackers know it.

    Attributes:
        id: The same for the same parameters, rows and base model.
        name: For people: the experiment's, if DVC runs one.
        params: The recipe's sections that decide what is trained, flat.
    """

    id: str
    name: str
    params: dict[str, str | float | bool]


def run_of(params: Params, id_: str) -> Run:
    """The run of this recipe with the id `id_`."""
    flat = {"model.id": params.model.id, "data.source": params.data.name}
    for section in ("quantization", "lora", "train"):
        flat |= {f"{section}.{name}": _plain(value) for name, value in getattr(params, section)}
    return Run(id_, os.environ.get("DVC_EXP_NAME") or id_, flat)


def _plain(value: object) -> str | float | bool:
    return value if isinstance(value, str | int | float) else str(value)


def check(names: Sequence[str]) -> None:
    """Raise Refusal if one of the trackers is not installed."""
    for name in names:
        if not importlib.util.find_spec(name):
            raise Refusal(f"train.report_to: {name} is not installed: `pip install {name}`, or take it off the list")


class TensorBoard:
    """results/tensorboard/ID, for `tensorboard --logdir results/tensorboard`."""

    def __init__(self, run: Run, step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        folder = FOLDER / "tensorboard" / run.id
        if step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        # What a killed run wrote after its last checkpoint is hidden; a resumed run writes it again.
        self.run, self.writer = run, SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if step == 0:
            self.writer.add_text("params", "\n".join(f"    {name}: {value}" for name, value in run.params.items()))

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def add(self, scores: Values, step: int) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(self.run.params, dict.fromkeys(scores, 0.0)):
            self.writer.file_writer.add_summary(summary)
        self.log(scores, step)

    def finish(self) -> None:
        self.writer.close()


class Wandb:
    """A run of the project PROJECT at wandb, or under results/wandb with WANDB_MODE=offline."""

    def __init__(self, run: Run, step: int | None):
        import wandb

        FOLDER.mkdir(exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(
            project=project, id=run.id, name=run.name, config=run.params, resume="allow", dir=str(FOLDER.absolute())
        )

    def log(self, values: Values, step: int) -> None:
        self.run.log(dict(values), step=step)

    def add(self, scores: Values, step: int) -> None:
        self.run.summary.update(dict(scores))

    def finish(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of the experiment PROJECT at MLFLOW_TRACKING_URI, by default in results/mlflow.db."""

    def __init__(self, run: Run, step: int | None):
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            FOLDER.mkdir(exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{FOLDER.absolute() / 'mlflow.db'}")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        known = mlflow.search_runs(filter_string=f"tags.id = '{run.id}'", max_results=1, output_format="list")
        self.mlflow = mlflow
        if known:
            mlflow.start_run(known[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={"id": run.id})
            mlflow.log_params(run.params)

    def log(self, values: Values, step: int) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    add = log

    def finish(self) -> None:
        self.mlflow.end_run()


class Trackio:
    """A run of the project PROJECT in trackio's own folder (TRACKIO_DIR)."""

    def __init__(self, run: Run, step: int | None):
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=run.name, config=run.params, resume="allow")

    def log(self, values: Values, step: int) -> None:
        self.trackio.log(dict(values), step=step)

    add = log

    def finish(self) -> None:
        self.trackio.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


class Tracking:
    """A run in some trackers.

    A tracker that fails later (a full disk, a server, the network) is left out from there on: the run is worth more.

    Args:
        names: Of trackers.
        run: The run.
        step: The step after which it goes on, 0 for a new one; None to add scores only.

    Raises:
        Refusal: if one cannot start.
    """

    def __init__(self, names: Sequence[str], run: Run, step: int | None):
        self.open = {}
        for name in names:
            try:
                self.open[name] = TRACKERS[name](run, step)
            except Exception as error:  # whatever a library or its server raises
                raise Refusal(
                    f"train.report_to: {name} cannot start ({_reason(error)}); set it up, or take it off the list"
                ) from None

    def log(self, values: Values, step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step))

    def add(self, scores: Values, step: int) -> None:
        """Add the final scores, of the adapter of `step`."""
        self._each(lambda tracker: tracker.add(scores, step))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, action: Callable) -> None:
        for name, tracker in list(self.open.items()):
            try:
                action(tracker)
            except Exception as error:  # as above
                del self.open[name]
                print(f"train.report_to: {name} failed ({_reason(error)}) and is left out", flush=True)


def add_scores(params: Params, id_: str, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Add the artifacts' metrics to the run `id_` in each of train.report_to that is here; say which are not.

    Args:
        params: The recipe.
        id_: The run's id, which training recorded.
        step: Whose adapter was scored.
        metrics: Artifact -> metric -> value.
    """
    scores = {
        f"{name}/{artifact}": float(value)
        for artifact, values in metrics.items()
        for name, value in values.items()
        if name in METRICS and value is not None
    }
    for name in params.train.report_to:
        try:
            check([name])
            tracking = Tracking([name], run_of(params, id_), None)
        except Refusal as refusal:
            print(f"the scores are not added to the run: {refusal}", flush=True)
            continue
        tracking.add(scores, step)
        tracking.finish()


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]
