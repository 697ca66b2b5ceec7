"""merge: its arithmetic, the files that it copies, its checks, and refusals."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

from qlora.merging import checks
from qlora.merging.update import read_updates, through_4_bits
from qlora.recipe.load import load_params
from qlora.recipe.schema import Model, Quantization
from qlora.rows.chat import load_chat
from qlora.rows.prepared import encode_rows, first
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import loading
from qlora.weights.files import tensor_names
from stages import merge, prepare_dataset

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


@pytest.fixture
def trained(workspace, monkeypatch):
    """The workspace with the base model in two shards, prepared rows and an adapter of large random matrices."""
    monkeypatch.chdir(workspace.path)
    model = AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.bfloat16)
    Path("tiny/model.safetensors").unlink()
    model.save_pretrained("tiny", max_shard_size="6350KB")
    assert len(list(Path("tiny").glob("*.safetensors"))) > 1
    record = base_model.describe(Model(id="./tiny"), Path("tiny"))
    write_json(Path("models/base/base.json"), record)
    prepare_dataset.main()
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained("models/adapter")
    write_json(Path("models/adapter/base.json"), record)
    write_json(Path("models/adapter/quantization.json"), Quantization(compute_dtype="float32").model_dump())
    return workspace


def weights(folder: str) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in Path(folder).glob("*.safetensors") for name, tensor in load_file(shard).items()}


def test_full_base_adds_the_update_to_the_original_weights(trained):
    trained.set({"merge.base": "full"})
    merge.main()
    before, after = weights("tiny"), weights("models/merged")
    updates = read_updates(Path("models/adapter"))
    assert before.keys() == after.keys()
    assert len(updates) == 14
    for name, tensor in before.items():
        if name in updates:
            expected = tensor.float() + 2.0 * updates[name].b.float() @ updates[name].a.float()
            assert torch.equal(after[name], expected.to(torch.bfloat16)), name
        else:
            assert torch.equal(after[name], tensor), name
    for path in Path("tiny").glob("*.json"):
        if path.name != "config.json":
            assert (Path("models/merged") / path.name).read_bytes() == path.read_bytes()
    assert json.loads(Path("models/merged/config.json").read_text())["tie_word_embeddings"] is True


def test_dequantized_base_is_what_training_saw(trained):
    trained.set({"merge.base": "dequantized", "merge.dtype": "float32"})
    merge.main()
    before, after = weights("tiny"), weights("models/merged")
    name = "model.layers.0.mlp.up_proj.weight"
    seen = through_4_bits(before[name], Quantization(compute_dtype="float32"))
    assert not torch.equal(seen, before[name].float())
    update = read_updates(Path("models/adapter"))[name]
    torch.testing.assert_close(after[name], seen + 2.0 * update.b @ update.a)


def test_a_merge_without_the_adapter_is_refused(trained):
    shutil.copytree("tiny", "models/merged")  # the base model, unchanged
    params = load_params()
    rows = list(encode_rows(first("validation", 8), load_chat(Path("tiny")), params.train.max_length))
    with pytest.raises(Refusal, match=r" \d\.\d+ .*models/adapter.*merge\.dtype"):
        checks.check_against_adapter(
            Path("tiny"), Path("models/merged"), Path("models/adapter"), rows, *trained_settings()
        )


def test_a_large_model_is_checked_by_its_first_layers_and_some_tensors(trained, monkeypatch, capsys):
    trained.set({"merge.base": "full"})
    monkeypatch.setattr(checks, "CHECKED_BYTES", 1)
    merge.main()
    assert "first 1 of 2 layers differ by 0.0" in capsys.readouterr().out
    (shard,) = [path for path in Path("models/merged").glob("*.safetensors") if LATE in tensor_names(path)]
    tensors = load_file(shard)
    tensors[LATE] = weights("tiny")[LATE]  # without its update
    save_file(tensors, shard, {"format": "pt"})
    updates = read_updates(Path("models/adapter"))
    with pytest.raises(Refusal, match=rf"{LATE} is \d\.\d+ .*merge\.dtype"):
        checks.check_products(Path("tiny"), Path("models/merged"), updates, *trained_settings())


def test_loading_the_first_layers_takes_their_memory_only(tiny_model, monkeypatch):
    monkeypatch.setattr(checks, "CHECKED_BYTES", 1)
    config, layers, total = checks.first_layers(tiny_model)
    needed = loading.plain_bytes(tiny_model, torch.bfloat16, config)
    loaded = loading.load_plain(tiny_model, torch.bfloat16, config)
    assert (len(loaded.model.layers), layers, total) == (1, 1, 2)
    assert needed == pytest.approx(1.1 * 2 * loaded.num_parameters(), abs=2)
    assert needed < loading.plain_bytes(tiny_model, torch.bfloat16)


LATE = "model.layers.1.mlp.down_proj.weight"


def trained_settings():
    params = load_params()
    return params.merge, loading.read_quantization(Path("models/adapter"))


def refused(match: str) -> None:
    with pytest.raises(Refusal, match=match):
        merge.main()
    assert not Path("models/merged").exists()
    assert not Path("models/.merged.partial").exists()


def test_an_adapter_of_another_model_is_refused(trained):
    path = Path("models/adapter/adapter_model.safetensors")
    tensors = {name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    refused(r"model\.layers\.7\..*of 7\b")


def test_a_quantized_base_is_refused(trained):
    path = Path("tiny/config.json")
    config = json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}
    path.write_text(json.dumps(config))
    record = base_model.describe(Model(id="./tiny"), Path("tiny"))
    write_json(Path("models/adapter/base.json"), record)
    refused(r"^model\.id: \./tiny is quantized")


def test_a_broken_shard_is_refused(trained):
    shard = max(Path("tiny").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[:8] = b"\xff" * 8  # the header's length
    shard.write_bytes(content)
    refused(rf"{shard.name}: broken")


def test_folders_with_broken_weights_are_named(trained):
    shutil.copytree("tiny", "models/merged")
    shard = max(Path("models/merged").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"^models/merged: broken"):
        loading.load_plain(Path("models/merged"), torch.bfloat16)
    adapter = Path("models/adapter/adapter_model.safetensors")
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"^models/adapter: broken.*dvc repro --force quantize-load-train"):
        loading.load_adapter(loading.load_plain(Path("tiny"), torch.bfloat16), Path("models/adapter"))
    shutil.rmtree("models/merged")
    refused(r"^models/adapter: .*dvc repro quantize-load-train")


def test_a_full_disk_is_refused_before_anything_is_written(trained, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    refused(r"0\.0 GB under models\b.* 0\.0 GB")
