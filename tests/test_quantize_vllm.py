"""quantize-vllm with the real llm-compressor: what it writes, reads back and refuses. Skipped if that is missing."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.weights import compressed
from qlora.weights.architecture import skeleton
from qlora.weights.files import weights_bytes
from qlora.weights.loading import load_plain
from stages import evaluate, fetch_base, prepare_dataset, quantize_load_train, quantize_vllm

import pytest
import torch
from conftest import Workspace, make_workspace
from safetensors.torch import load_file, save_file

needs_llm_compressor = pytest.mark.skipif(
    find_spec("llmcompressor") is None, reason="llm-compressor is not installed (make llm-compressor)"
)
MERGED = Path("models/merged")
# Weights that share a scale, and how many values they can have.
TYPES = [("W4A16-AWQ", 32, 16), ("W4A16-GPTQ", 32, 16), ("FP8", 64, 256), ("NVFP4", 16, 16)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model) -> Workspace:
    """A workspace whose merged model is the tiny one, with prepared rows."""
    workspace = make_workspace(tmp_path_factory.mktemp("prepared"), tiny_model)
    workspace.set({"vllm.types": [type_ for type_, *_ in TYPES], "vllm.group_size": 32, "vllm.calibration_rows": 8})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        fetch_base.main()
        prepare_dataset.main()
        shutil.copytree("tiny", MERGED)
        shutil.copy("models/base/base.json", MERGED)
    return workspace


@pytest.fixture
def merged(prepared, monkeypatch) -> Path:
    monkeypatch.chdir(prepared.path)
    return prepared.path


@needs_llm_compressor
@pytest.mark.parametrize(("type_", "together", "levels"), TYPES)
def test_what_is_written_is_the_model_in_few_bits_and_is_scored_as_every_artifact(
    merged, monkeypatch, type_, together, levels
):
    monkeypatch.setattr(sys, "argv", ["quantize_vllm", "--type", type_])
    quantize_vllm.main()
    folder = merged / "models" / type_
    assert (folder / "tokenizer.json").read_bytes() == (MERGED / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == (MERGED / "chat_template.jinja").read_bytes()

    quantized, plain = compressed.load(folder), load_plain(MERGED, torch.bfloat16)
    for name, layer in compressed.linear_layers(plain).items():
        groups = quantized.get_submodule(name).weight.unflatten(1, (-1, together))
        assert all(len(group.unique()) <= levels for group in groups.flatten(0, 1)), name
        assert not torch.equal(quantized.get_submodule(name).weight, layer.weight)
    assert torch.equal(quantized.lm_head.weight, plain.lm_head.weight)

    scores = {}
    for artifact in ("merged", type_):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", artifact])
        evaluate.main()
        scores[artifact] = json.loads(Path(f"results/answers/{artifact}.json").read_text())
    # Rounding moves the loss of random weights a little; another model's loss would be far off.
    assert scores[type_]["loss"] == pytest.approx(scores["merged"]["loss"], rel=0.05)
    assert weights_bytes(folder) < weights_bytes(MERGED)


@needs_llm_compressor
def test_a_folder_that_is_not_what_it_should_be_is_refused(merged, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quantize_vllm", "--type", "W4A16-GPTQ"])
    quantize_vllm.main()
    folder = Path("models/W4A16-GPTQ")
    model = skeleton(MERGED)
    quantize_vllm.check(folder, model, "W4A16-GPTQ", group_size=32)
    with pytest.raises(Refusal, match=r"down_proj\.weight_scale .*\(64, 2\).*\(64, 4\).*vllm\.types"):
        quantize_vllm.check(folder, model, "W4A16-GPTQ", group_size=64)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Refusal, match=rf"model\.safetensors: {name} "):
        quantize_vllm.check(folder, model, "W4A16-GPTQ", group_size=32)


def test_a_group_size_that_does_not_fit_is_refused_before_training(prepared, merged):
    prepared.set({"vllm.group_size": 128})
    with pytest.raises(Refusal, match=r"vllm\.group_size: 128 .*\b64 inputs of model.* 64 or 32"):
        quantize_load_train.main()
    prepared.set({"vllm.group_size": 32})


def test_a_width_that_nvfp4_cannot_group_is_refused(tiny_model):
    pytest.importorskip("llmcompressor")
    model = skeleton(tiny_model)
    compressed.check(model, ["FP8", "NVFP4"], 128)  # a size that only W4A16 needs
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(120, 64)
    with pytest.raises(Refusal, match=r"vllm\.types: NVFP4 .*down_proj has 120 inputs; take FP8"):
        compressed.check(model, ["NVFP4"], 32)


def test_without_llm_compressor_the_command_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llmcompressor", None)  # importing it now raises ModuleNotFoundError
    with pytest.raises(Refusal, match=r"vllm\.types .*`make llm-compressor`"):
        compressed.check(skeleton(tiny_model), ["FP8"], 32)
