"""Text towers of multimodal models: the whole model's logits, names in files and in the adapter, untouched vision."""

import json
import sys
from pathlib import Path

from qlora.recipe.schema import Model
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import loading, tower
from qlora.weights.adapter_names import WEIGHTS
from stages import convert_gguf, evaluate, fetch_base, merge, prepare_dataset, quantize_load_train

import pytest
import torch
import transformers
import wrappers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trainers import check_compiled_layers

IDS = torch.arange(3, 99)[None]


def whole(folder: str, dtype=torch.float32):
    model = getattr(transformers, json.loads((Path(folder) / "config.json").read_text())["architectures"][0])
    return model.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def logits(model, **options) -> torch.Tensor:
    return model.eval()(IDS, **options).logits


@pytest.mark.parametrize("names_of_hub", [True, False])
@pytest.mark.parametrize("name", wrappers.MODELS)
def test_a_tower_computes_what_the_whole_model_computes(workspace, monkeypatch, name, names_of_hub):
    """With a cache and without: layers that share keys and values must not depend on it."""
    monkeypatch.chdir(workspace.path)
    wrappers.write(name, Path("tiny"), names_of_hub)
    found = loading.load_plain(Path("tiny"), torch.float32)
    expected = logits(whole("tiny"))
    torch.testing.assert_close(logits(found, use_cache=True), expected)
    torch.testing.assert_close(logits(found, use_cache=False), expected)
    assert "vision" not in repr(found).lower()


@pytest.mark.parametrize("name", wrappers.MODELS)
def test_training_and_merge_of_a_tower(workspace, monkeypatch, name):
    monkeypatch.chdir(workspace.path)
    wrappers.write(name, Path("tiny"))
    workspace.set({"merge.dtype": "float32"})
    model = Model(id="./tiny")
    write_json(Path("models/base/base.json"), base_model.describe(model, base_model.fetch(model)))
    prepare_dataset.main()
    quantize_load_train.main()
    merge.main()

    before, after = load_file("tiny/model.safetensors"), load_file("models/merged/model.safetensors")
    in_tower = tower.names_in_files(Path("tiny"))
    assert before.keys() == after.keys()
    assert len(in_tower) < len(before)
    for name_, tensor in before.items():
        if name_ not in in_tower:
            assert tensor.dtype == after[name_].dtype
            assert torch.equal(tensor, after[name_]), name_

    # PEFT finds the adapter's names in the whole model, and changes nothing but its text model.
    config = json.loads(Path("models/adapter/adapter_config.json").read_text())
    adapted = PeftModel.from_pretrained(whole("tiny"), "models/adapter", autocast_adapter_dtype=False)
    saved = load_file(Path("models/adapter") / WEIGHTS)
    layers = {part for part, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert {f"{layer}.lora_A.weight" for layer in layers} == {part for part in saved if "lora_A" in part}
    assert "language_model" in config["target_modules"]
    base = loading.load_plain(Path("tiny"), torch.float32)
    tuned = logits(loading.load_adapter(base, Path("models/adapter"), Path("tiny")))
    torch.testing.assert_close(logits(adapted), tuned)
    assert not torch.allclose(tuned, logits(whole("tiny")), atol=1e-5)
    torch.testing.assert_close(
        logits(whole("models/merged")), logits(loading.load_plain(Path("models/merged"), torch.float32))
    )


@pytest.mark.parametrize(
    "name",
    ["qwen3_5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral3", "ministral3", "qwen3_vl"))],
)
def test_the_whole_pipeline_of_a_tower(workspace, monkeypatch, name):
    """transformers and llama.cpp agree on the merged text."""
    monkeypatch.chdir(workspace.path)
    wrappers.write(name, Path("tiny"))
    workspace.set({"evaluate.artifacts": ["adapter", "merged", "bf16"]})
    fetch_base.main()
    prepare_dataset.main()
    quantize_load_train.main()
    merge.main()
    convert_gguf.main()
    scores = {}
    for artifact in ("adapter", "merged", "bf16"):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", artifact])
        evaluate.main()
        scores[artifact] = json.loads(Path(f"results/answers/{artifact}.json").read_text())["loss"]
    assert scores["merged"] == pytest.approx(scores["adapter"], abs=0.02)
    assert scores["bf16"] == pytest.approx(scores["merged"], abs=0.03)


@pytest.mark.parametrize("name", ["gemma4", "ministral3"])
def test_compiled_layers_of_a_tower_compute_the_same(workspace, monkeypatch, name):
    """Also where layers take the keys and values of an earlier one (Gemma 4)."""
    monkeypatch.chdir(workspace.path)
    wrappers.write(name, Path("tiny"))
    check_compiled_layers(Path("tiny"), IDS, recomputed_layers=2)


def test_an_fp8_repository_is_refused_with_its_16_bit_original(monkeypatch, tmp_path):
    name = "mistralai/Ministral-3-8B-Instruct-2512"
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    monkeypatch.setattr(base_model.hub, "download", lambda *args: tmp_path)
    with pytest.raises(Refusal, match=rf"{name} is quantized already; .* {name}-BF16:"):
        base_model.fetch(Model(id=name, revision="0" * 40))


def test_files_that_lack_a_weight_of_the_tower_are_refused(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    wrappers.write("gemma3", Path("tiny"))
    tensors = load_file("tiny/model.safetensors")
    del tensors["language_model.model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, "tiny/model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"^tiny: .* model\.layers\.3\.mlp\.up_proj\.weight \(of 1\)"):
        loading.load_plain(Path("tiny"), torch.float32)
