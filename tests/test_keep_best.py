"""train.keep and train.patience, on a run that overfits on purpose: a few rows, seen many times."""

import json
import shutil
from pathlib import Path

from qlora.reporting import plots
from stages import quantize_load_train as stage

import pandas
import pytest
from conftest import Killed, make_prepared
from trl import SFTTrainer

STEPS, EVERY, PATIENCE = 25, 5, 2  # the loss is lowest at step 10 and rises until step 20
OVERFIT = {
    "data.train_rows": 4,
    "lora.r": 16,
    "lora.dtype": "float32",
    "train.learning_rate": 1e-2,
    "train.lr_scheduler": "constant",  # so that a shorter run takes the same steps
    "train.warmup_fraction": 0.0,
    "train.epochs": float(STEPS),
    "train.max_steps": STEPS,
    "train.eval_steps": EVERY,
    "train.checkpoint_steps": 3,
    "train.keep": "best",
}
MADE = ("models/adapter/adapter_model.safetensors", "results/train/log.csv")


@pytest.fixture(scope="module")
def overfitting(tmp_path_factory, tiny_model):
    """A workspace whose recipe overfits, with its rows prepared."""
    return make_prepared(tmp_path_factory.mktemp("overfitting"), tiny_model, OVERFIT)


@pytest.fixture
def here(overfitting, monkeypatch):
    monkeypatch.chdir(overfitting.path)
    recipe = Path("params.yaml").read_text()
    yield overfitting
    Path("params.yaml").write_text(recipe)
    shutil.rmtree(".checkpoints", ignore_errors=True)


def made() -> list[bytes]:
    return [Path(name).read_bytes() for name in MADE]


def figures() -> dict:
    return json.loads(Path("results/train/metrics.json").read_text())


def log() -> pandas.DataFrame:
    return pandas.read_csv("results/train/log.csv")


def test_the_step_with_the_lowest_validation_loss_is_kept(here):
    stage.main()
    best, adapter = figures(), made()[0]
    validated = log().dropna(subset="eval_loss")
    lowest = validated.loc[validated["eval_loss"].idxmin()]
    assert best["kept_step"] == lowest["step"]
    assert EVERY < best["kept_step"] < best["steps"] == STEPS
    assert best["validation_loss"] == round(lowest["eval_loss"], 4)
    shown = plots.losses(log(), best["kept_step"])
    kept = shown[shown["split"] == "kept"].to_dict("records")
    assert kept == [{"step": best["kept_step"], "split": "kept", "loss": round(lowest["eval_loss"], 5)}]

    here.set({"train.keep": "last", "train.max_steps": best["kept_step"]})
    stage.main()
    assert made()[0] == adapter
    assert figures()["kept_step"] == best["kept_step"]
    assert set(plots.losses(log(), best["kept_step"])["split"]) == {"training", "validation"}


def test_patience_ends_the_run_and_keeps_the_same_step(here):
    stage.main()
    whole, history, adapter = figures(), log(), made()[0]
    here.set({"train.patience": PATIENCE})
    stage.main()
    early = figures()
    assert early["steps"] == whole["kept_step"] + PATIENCE * EVERY < STEPS
    assert early["rows"] == 4 * early["steps"]
    assert {name: early[name] for name in ("kept_step", "validation_loss")} == {
        name: whole[name] for name in ("kept_step", "validation_loss")
    }
    assert made()[0] == adapter
    assert log().equals(history[: early["steps"]])


@pytest.mark.parametrize("patience", [None, PATIENCE])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(here, monkeypatch, patience):
    here.set({"train.patience": patience})
    stage.main()
    expected, last = made(), figures()["steps"]
    shutil.rmtree("models/adapter")
    for step in range(2, last, 6):
        kill_at(monkeypatch, "training_step", step)
    kill_at(monkeypatch, "prediction_step", last)  # in the last validation
    stage.main()
    assert made() == expected


def test_a_run_that_is_killed_after_its_early_end_is_not_trained_further(here, monkeypatch):
    here.set({"train.patience": PATIENCE, "train.checkpoint_steps": 1})
    stage.main()
    expected = made()
    with monkeypatch.context() as patch:
        patch.setattr("qlora.training.run.check_trained", kill)
        with pytest.raises(Killed):
            stage.main()
    stage.main()
    assert made() == expected


def kill_at(monkeypatch, method: str, step: int) -> None:
    """Run the stage, and kill it where it calls the trainer's method after so many steps."""
    original = getattr(SFTTrainer, method)

    def killing(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            raise Killed
        return original(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, method, killing)
        with pytest.raises(Killed):
            stage.main()


def kill(*_):
    raise Killed
