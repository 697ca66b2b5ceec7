"""train.report_to: what a run leaves in TensorBoard and in the trackers that are installed."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.reporting import trackers
from qlora.runtime.console import Refusal
from stages import quantize_load_train as stage
from tools.doctor import check_run

import pandas
import pytest
from conftest import Killed, chromium, make_prepared
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl import SFTTrainer

SCORES = {"adapter": {"loss": 1.25, "stop_rate": 0.5, "peak_memory_mb": None, "environment": "here"}}
OPTIONAL = ("wandb", "mlflow", "trackio")


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_model):
    """A workspace with its rows prepared."""
    return make_prepared(tmp_path_factory.mktemp("tracked"), tiny_model)


@pytest.fixture
def here(ready, monkeypatch):
    monkeypatch.chdir(ready.path)
    recipe = Path("params.yaml").read_text()
    ready.set({"train.epochs": 2.0, "train.max_steps": 6, "train.eval_steps": 2, "train.checkpoint_steps": 2})
    yield ready
    Path("params.yaml").write_text(recipe)
    for name in ("results", "models/adapter", ".checkpoints"):
        shutil.rmtree(name, ignore_errors=True)


def train() -> tuple[dict, pandas.DataFrame]:
    """Run the stage; its figures and its log."""
    stage.main()
    return json.loads(Path("results/train/metrics.json").read_text()), pandas.read_csv("results/train/log.csv")


def curve(run: str, name: str) -> dict[int, float]:
    """Step -> value, as TensorBoard's page reads it."""
    events = EventAccumulator(f"results/tensorboard/{run}").Reload()
    found = [(event.step, event.value) for event in events.Scalars(name)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_tensorboard_has_the_losses_and_the_scores_of_a_run_that_was_killed(here, monkeypatch):
    original = SFTTrainer.training_step

    def killing(trainer, *args, **kwargs):
        if trainer.state.global_step == 5:
            raise Killed
        return original(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", killing)
        with pytest.raises(Killed):
            stage.main()
    figures, log = train()
    run = figures["run"]
    trackers.add_scores(load_params(), run, figures["kept_step"], SCORES)
    assert curve(run, "train/loss") == pytest.approx(log.set_index("step")["loss"].to_dict())
    validated = log.dropna(subset="eval_loss")
    assert curve(run, "validation/loss") == pytest.approx(
        dict(zip(validated["step"], validated["eval_loss"], strict=True))
    )
    assert curve(run, "loss/adapter") == {6: 1.25}
    events = EventAccumulator(f"results/tensorboard/{run}").Reload()
    assert "validation/loss" in events.Tags()["scalars"]
    assert "peak_memory_mb/adapter" not in events.Tags()["scalars"]
    assert "lora.r: 2" in events.Tensors("params/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in events.summary_metadata

    again, _ = train()  # the same run anew, without the old one's events
    assert again["run"] == run
    assert max(curve(run, "train/loss")) == 6


def test_trackers_change_nothing_in_what_is_trained(here):
    train()
    tracked = Path("models/adapter/adapter_model.safetensors").read_bytes()
    shutil.rmtree("results/tensorboard")
    here.set({"train.report_to": []})
    train()
    assert Path("models/adapter/adapter_model.safetensors").read_bytes() == tracked
    assert not Path("results/tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_one_sentence_before_the_model_is_loaded(here, monkeypatch):
    absent = [name for name in OPTIONAL if not importlib.util.find_spec(name)]
    if not absent:
        pytest.skip("all trackers are installed")
    monkeypatch.setattr(stage, "load_model", lambda *_: pytest.fail("the model is loaded"))
    here.set({"train.report_to": ["tensorboard", absent[0]]})
    with pytest.raises(Refusal) as refusal:
        stage.main()
    assert str(refusal.value) == (
        f"train.report_to: {absent[0]} is not installed: `pip install {absent[0]}`, or take it off the list"
    )
    (finding,) = (found for found in check_run(load_params()) if found.what == "trackers")
    assert str(refusal.value) in str(finding)


def test_a_tracker_that_cannot_start_is_refused_and_one_that_fails_later_is_left_out(here, capsys):
    Path("results").mkdir()
    Path("results/tensorboard").touch()
    with pytest.raises(Refusal, match=r"^train\.report_to: tensorboard cannot start \(.*directory.*take it off"):
        stage.main()
    trackers.add_scores(load_params(), "0" * 16, 6, SCORES)
    assert "the scores are not added to the run: train.report_to: tensorboard" in capsys.readouterr().out
    Path("results/tensorboard").unlink()
    tracking = trackers.Tracking(["tensorboard"], trackers.run_of(load_params(), "0" * 16), 0)
    tracking.log({"train/loss": "what no tracker takes"}, 1)
    assert "train.report_to: tensorboard failed (" in capsys.readouterr().out
    tracking.log({"train/loss": 1.0}, 2)
    tracking.finish()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_tracker_gets_the_run(here, monkeypatch, name):
    package = pytest.importorskip(name)
    for variable, value in (("WANDB_MODE", "offline"), ("TRACKIO_DIR", str(here.path / "results/trackio"))):
        monkeypatch.setenv(variable, value)
    here.set({"train.report_to": [name]})
    figures, log = train()
    trackers.add_scores(load_params(), figures["run"], figures["kept_step"], SCORES)
    assert {path.name for path in here.path.iterdir() if path.name in ("wandb", "mlruns", "mlflow.db")} == set()
    if name == "mlflow":
        package.set_tracking_uri(f"sqlite:///{here.path}/results/mlflow.db")
        (run,) = package.search_runs(experiment_names=[trackers.PROJECT], output_format="list")
        assert run.data.tags["id"] == figures["run"]
        assert run.data.params["lora.r"] == "2"
        assert run.data.metrics["train/loss"] == pytest.approx(log["loss"].iloc[-1])
        assert run.data.metrics["loss/adapter"] == 1.25
    if name == "wandb":
        assert list(Path("results/wandb").glob(f"offline-run-*-{figures['run']}"))


@pytest.mark.slow
def test_tensorboards_page_shows_the_curves(here):
    figures, _ = train()
    trackers.add_scores(load_params(), figures["run"], figures["kept_step"], SCORES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "results/tensorboard", "--port", str(port)]
    with chromium() as browser, subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}/"
            for _ in range(120):
                try:
                    urllib.request.urlopen(address + "data/runs", timeout=5)
                    break
                except OSError:
                    time.sleep(0.5)
            page = browser.new_page()
            page.goto(address + "#timeseries")
            for name in ("train/loss", "validation/loss", "loss/adapter"):
                page.get_by_role("combobox", name="Filter tags").fill(name)
                title = re.compile(name.replace("/", r"\s*/"))
                card = page.locator("scalar-card").filter(has_text=title, visible=True).first
                card.locator("line-chart").wait_for(timeout=60_000)
                card.get_by_text(figures["run"]).wait_for(timeout=60_000)  # in its table, with value and step
        finally:
            server.terminate()
