"""What a run starts from: a base model in 16 bits (quantization.type: none), an earlier adapter (lora.start_from)."""

import json
import shutil
from pathlib import Path

from qlora.merging.update import read_updates
from qlora.recipe.schema import Lora, Quantization
from qlora.runtime.console import Refusal
from qlora.training import layout, memory
from qlora.weights.architecture import skeleton
from stages import evaluate, merge, prepare_dataset
from stages import quantize_load_train as train

import pandas
import pytest
import torch
from conftest import make_prepared
from fake_hub import COMMIT, fake_hub
from safetensors.torch import load_file, save_file

PLAIN = {
    "quantization.type": "none",
    "quantization.compute_dtype": "bfloat16",
    "train.learning_rate": 1e-2,
    "train.lr_scheduler": "constant",
    "train.epochs": 20.0,
    "train.max_steps": 8,
}
FIRST = "data/adapters/first"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """A workspace with an adapter that was trained on the plain weights."""
    workspace = make_prepared(tmp_path_factory.mktemp("plain"), tiny_model, PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        train.main()
        shutil.copytree("models/adapter", FIRST)
    return workspace


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained.path)
    recipe = Path("params.yaml").read_text()
    yield trained
    Path("params.yaml").write_text(recipe)
    shutil.rmtree("models/adapter", ignore_errors=True)
    shutil.copytree(FIRST, "models/adapter")


def score(artifact: str, monkeypatch) -> dict:
    monkeypatch.setattr("sys.argv", ["evaluate", "--artifact", artifact])
    evaluate.main()
    return json.loads(Path(f"results/answers/{artifact}.json").read_text())


# A base model in 16 bits


def test_plain_weights_are_trained_and_merged_exactly_and_score_the_same(here, monkeypatch):
    assert json.loads(Path("models/adapter/quantization.json").read_text())["tensors"] == []
    here.set({"merge.dtype": "float32"})
    for base in ("dequantized", "full"):  # the same where nothing is quantized
        here.set({"merge.base": base})
        merge.main()
        before, after = load_file("tiny/model.safetensors"), load_file("models/merged/model.safetensors")
        updates = read_updates(Path("models/adapter"))
        assert len(updates) == 14
        for name, weight in before.items():
            update = updates.get(name)
            exact = weight.float() + (update.scale * update.b.float() @ update.a.float() if update else 0)
            torch.testing.assert_close(after[name], exact, rtol=0, atol=1e-6)
    here.set({"merge.dtype": "bfloat16"})
    merge.main()
    base, adapter, merged = (score(artifact, monkeypatch)["loss"] for artifact in ("base", "adapter", "merged"))
    assert abs(adapter - merged) < 0.01
    assert base - adapter > 0.5  # it has learned, so a wrong merge would show


def test_memory_is_planned_for_plain_weights(here):
    def plan(quantization: Quantization) -> tuple[memory.Shape, memory.MemoryPlan]:
        shape = layout.shape_of(model, Lora(r=2, alpha=4), quantization)
        return shape, memory.predict(shape, 1024, 0, "adamw")

    model = skeleton(Path("tiny"))
    shape, quantized = plan(Quantization())
    _, plain = plan(Quantization(type="none"))
    _, wide = plan(Quantization(type="none", compute_dtype="float32"))
    assert plain.weights == 2 * shape.parameters
    assert wide.weights - plain.weights == 2 * shape.quantized
    assert quantized.weights == pytest.approx(2 * shape.unquantized + memory.NF4 * shape.quantized, rel=0.001)
    assert plain.activations < quantized.activations  # which hold one dequantized weight
    assert plain.adapter == quantized.adapter


def test_the_plan_and_the_doctor_say_that_nothing_is_quantized(here):
    shown = here.tool("plan").stdout
    assert "none of them in 4 bits" in shown
    lines = here.tool("doctor").stdout
    assert "NF4" not in lines


def test_experts_in_16_bits_get_no_adapter(here):
    here.set({"lora.experts": True})
    with pytest.raises(Refusal, match=r"lora\.experts: adapts experts in 4 bits only"):
        train.main()


# An earlier adapter


def losses() -> list[float]:
    return pandas.read_csv("results/train/log.csv")["loss"].tolist()


def test_training_goes_on_where_the_earlier_run_ended(here):
    """On the rows of one step again and again, so that the losses can be compared."""
    here.set({"data.train_rows": 4, "train.max_steps": 12, "train.learning_rate": 3e-3})
    prepare_dataset.main()
    train.main()
    anew = losses()
    shutil.rmtree(FIRST)
    shutil.copytree("models/adapter", FIRST)
    here.set({"lora.start_from": FIRST})
    train.main()
    assert anew[0] - anew[-1] > 1
    assert losses()[0] <= anew[-1] + 0.05 * (anew[0] - anew[-1])
    assert losses()[-1] < losses()[0]


def test_an_adapter_on_the_hub_is_pinned(here, monkeypatch):
    with fake_hub(Path(FIRST), "org/first") as (address, _):
        for name, value in (("HF_ENDPOINT", address), ("HF_HUB_OFFLINE", ""), ("HF_HOME", str(here.path / "hf"))):
            monkeypatch.setenv(name, value)
        here.set({"lora.start_from": "org/first@main"})
        done = here.run("quantize_load_train")
        assert f"set lora.start_from to org/first@{COMMIT}" in done.stderr
        here.set({"lora.start_from": f"org/first@{COMMIT}"})
        done = here.run("quantize_load_train")
        assert done.returncode == 0, done.stderr
    on_hub = losses()
    here.set({"lora.start_from": FIRST})
    train.main()
    assert losses() == on_hub


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora.r": 4}, "was trained with r 2, and lora.r is 4: set it to 2"),
        ({"lora.alpha": 16}, "was trained with alpha 32, and lora.alpha is 16: set it to 32"),
        ({"lora.target_modules": ["q_proj", "v_proj"]}, "and lora.target_modules stands for q_proj, v_proj: set that"),
        ({"lora.start_from": "data/adapters/none"}, "cannot be read"),
        ({"lora.start_from": "models/adapter"}, "is neither a folder under data/adapters/"),
        ({"lora.start_from": "org/first"}, "is neither a folder under data/adapters/"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_model_is_loaded(here, monkeypatch, changes, sentence):
    monkeypatch.setattr(train, "load_model", lambda *_: pytest.fail("the model is loaded"))
    here.set({"lora.start_from": FIRST} | changes)
    with pytest.raises(Refusal, match=r"lora\.start_from") as refusal:
        train.main()
    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_an_adapter_of_other_weights_is_refused(here, monkeypatch):
    monkeypatch.setattr(train, "load_model", lambda *_: pytest.fail("the model is loaded"))
    other, name = Path("data/adapters/other"), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    shutil.copytree(FIRST, other)
    here.set({"lora.start_from": str(other)})
    record = json.loads((other / "base.json").read_text())
    record["files"]["model.safetensors"]["sha256"] = "0" * 64
    (other / "base.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match=r"was trained on other weights, those of \./tiny: set model\.id"):
        train.main()
    (other / "base.json").unlink()
    tensors = load_file(other / "adapter_model.safetensors")
    for wrong in (tensors | {name: tensors[name][:, :32].clone()}, {k: v for k, v in tensors.items() if k != name}):
        save_file(wrong, other / "adapter_model.safetensors")
        with pytest.raises(Refusal, match=r"does not fit this model at .*layers\.0\.mlp\.up_proj\.lora_A"):
            train.main()
    (other / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(Refusal, match="cannot be read"):
        train.main()
    shutil.rmtree(other)
