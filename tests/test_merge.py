"""merge: the arithmetic on tensors, what is shipped beside them, and what is refused."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora.recipe.params import Model, Quantization
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import loading as models
from stages import merge, prepare_dataset


@pytest.fixture
def trained(workspace, monkeypatch):
    """The workspace with prepared rows and an adapter of random matrices, large enough to matter."""
    monkeypatch.chdir(workspace.path)
    # In two shards, as large models are.
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
    updates = merge.read_updates(Path("models/adapter"))
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
    seen = merge.through_4_bits(before[name], Quantization(compute_dtype="float32"))
    assert not torch.equal(seen, before[name].float())
    update = merge.read_updates(Path("models/adapter"))[name]
    torch.testing.assert_close(after[name], seen + 2.0 * update.b @ update.a)


def test_a_merge_that_left_the_adapter_out_is_noticed(trained):
    shutil.copytree("tiny", "models/merged")  # the base model, unchanged
    rows = merge.sample_rows(merge.chat.load_tokenizer(Path("tiny")), Path("tiny"))
    settings = trained_settings()
    with pytest.raises(Refusal, match=r"logits differ from the adapter's by"):
        merge.check_against_adapter(Path("tiny"), Path("models/merged"), rows, *settings)


def test_a_model_too_large_to_load_is_checked_by_its_first_layers_and_some_tensors(trained, monkeypatch, capsys):
    trained.set({"merge.base": "full"})
    monkeypatch.setattr(merge, "CHECKED_BYTES", 1)
    merge.main()
    assert "logits of the first 1 of 2 layers differ by 0.0" in capsys.readouterr().out
    (shard,) = [path for path in Path("models/merged").glob("*.safetensors") if LATE in merge.tensor_names(path)]
    tensors = load_file(shard)
    tensors[LATE] = weights("tiny")[LATE]  # as if its update had been left out
    save_file(tensors, shard, {"format": "pt"})
    updates = merge.read_updates(Path("models/adapter"))
    with pytest.raises(Refusal, match=rf"{LATE} is \d\.\d+ off the base model's with the adapter"):
        merge.check_products(Path("tiny"), Path("models/merged"), updates, *trained_settings())


def test_first_layers_need_the_memory_of_those_alone(tiny_model, monkeypatch):
    monkeypatch.setattr(merge, "CHECKED_BYTES", 1)
    config, layers, total = merge.first_layers(tiny_model)
    needed = models.plain_bytes(tiny_model, torch.bfloat16, config)
    loaded = models.load_plain(tiny_model, torch.bfloat16, config)
    assert (len(loaded.model.layers), layers, total) == (1, 1, 2)
    assert needed == pytest.approx(1.1 * 2 * loaded.num_parameters(), abs=2)
    assert needed < models.plain_bytes(tiny_model, torch.bfloat16)


LATE = "model.layers.1.mlp.down_proj.weight"


def trained_settings():
    params = merge.load_params()
    return params.merge, models.read_quantization(Path("models/adapter"))


def refused(match: str) -> None:
    with pytest.raises(Refusal, match=match):
        merge.main()
    assert not Path("models/merged").exists()
    assert not Path("models/.merged.partial").exists()


def test_an_adapter_of_another_model_is_refused(trained):
    path = Path("models/adapter/adapter_model.safetensors")
    tensors = {name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    refused(r"changes model\.layers\.7\..* \(of 7\), which the base model does not have")


def test_a_quantized_base_is_refused(trained):
    path = Path("tiny/config.json")
    config = json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}
    path.write_text(json.dumps(config))
    record = base_model.describe(Model(id="./tiny"), Path("tiny"))
    write_json(Path("models/adapter/base.json"), record)
    refused("is quantized already; take its full-precision original")


def test_a_broken_shard_is_refused(trained):
    shard = max(Path("tiny").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[:8] = b"\xff" * 8  # the header's length
    shard.write_bytes(content)
    refused(r"\.safetensors: broken \(.*\); fetch the base model again")


def test_broken_weights_that_are_loaded_whole_are_named(trained):
    shutil.copytree("tiny", "models/merged")
    shard = max(Path("models/merged").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"models/merged: broken weights \(.*\); make them again"):
        models.load_plain(Path("models/merged"), torch.bfloat16)
    adapter = Path("models/adapter/adapter_model.safetensors")
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"models/adapter: broken weights .*--force quantize-load-train"):
        models.load_adapter(models.load_plain(Path("tiny"), torch.bfloat16), Path("models/adapter"))
    shutil.rmtree("models/merged")
    refused(r"models/adapter: cannot be read .*run `dvc repro quantize-load-train`")


def test_a_full_disk_is_said_before_anything_is_written(trained, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    refused(r"the merged model needs 0\.0 GB under models/ and 0\.0 GB are free; make room")
