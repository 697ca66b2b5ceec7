"""merge: its arithmetic, the files that it copies, its checks, and refusals."""

import itertools
import json
import shutil
from collections import namedtuple
from pathlib import Path

from qlora.merging import checks
from qlora.merging.parameters import Reader
from qlora.merging.shards import Merger, merge_shard
from qlora.merging.update import Changes, read_changes, read_updates, through_4_bits
from qlora.recipe.load import load_params
from qlora.recipe.schema import Model, Quantization
from qlora.rows.chat import load_chat
from qlora.rows.prepared import encode_rows, first
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import loading, quantized
from qlora.weights.files import tensor_names
from stages import merge, prepare_dataset, quantize_load_train

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


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
    quantized.write(Path("models/adapter"), in_4_bits(Path("tiny")))
    return workspace


def in_4_bits(folder: Path) -> quantized.Quantized:
    """What training on the model in `folder` holds in 4 bits."""
    quantization = Quantization(compute_dtype="float32")
    return quantized.of_model(loading.load_base(folder, quantization), quantization)


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


MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHOICES = [
    *(list(chosen) for count in range(1, 8) for chosen in itertools.combinations(MODULES, count)),
    "all-linear",
    ["layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"],
]


@pytest.mark.parametrize("tied", [True, False])
def test_a_merge_is_what_training_saw_whatever_is_adapted(tiny_model, tmp_path, tied):
    """Logits equal those of 4-bit weights with the adapter, for each choice of modules; head and embeddings stay."""
    torch.manual_seed(2)
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=tied, vocab_size=256)
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    shutil.copytree(base, merged)
    rounded = in_4_bits(base)
    assert len(rounded.tensors) == 14
    ids = torch.arange(48)[None]
    for modules in CHOICES:
        config = LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
        tuned = get_peft_model(loading.load_base(base, rounded), config)
        tuned.save_pretrained(adapter)
        changes = read_changes(adapter, base, rounded, from_4_bits=True)
        assert changes.names == sorted(rounded.tensors)
        with Reader(base) as reader:
            merger = Merger(reader, changes, torch.float32, "cpu")
            merge_shard(base / "model.safetensors", merged / "model.safetensors", merger)
        with torch.inference_mode():
            found = loading.load_plain(merged, torch.float32)(ids).logits
            torch.testing.assert_close(found, tuned.eval()(ids).logits, rtol=1e-4, atol=1e-4, msg=str(modules))


@pytest.mark.parametrize("width", [32, 64, 96, 576])
def test_4_bits_cost_a_weight_the_same_whatever_its_width(width):
    torch.manual_seed(0)
    weight = torch.randn(64, width)
    error = (through_4_bits(weight, Quantization(compute_dtype="float32")) - weight).abs().mean()
    assert error == pytest.approx(0.072, abs=0.006)


def test_training_records_what_it_held_in_4_bits(prepared):
    prepared.set({"lora.target_modules": ["q_proj", "v_proj"], "train.max_steps": 2})
    quantize_load_train.main()
    recorded = quantized.read(Path("models/adapter"))
    assert len(recorded.tensors) == 14
    assert set(recorded.tensors) > set(read_updates(Path("models/adapter")))
    merge.main()
    before, after = weights("tiny"), weights("models/merged")
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(recorded.tensors)
    (Path("models/adapter") / quantized.FILE).write_text("{}")
    shutil.rmtree("models/merged")
    refused(r"^models/adapter/quantization\.json: .*dvc repro quantize-load-train")


def test_a_merge_without_the_adapter_is_refused(trained):
    shutil.copytree("tiny", "models/merged")  # the base model, unchanged
    params = load_params()
    rows = list(encode_rows(first("validation", 8), load_chat(Path("tiny")), params.train.max_length))
    with pytest.raises(
        Refusal, match=r" \d\.\d+ .*likeliest cause: models/adapter .*dvc repro --force --single-item q"
    ):
        checks.check_against_adapter(
            Path("tiny"),
            Path("models/merged"),
            Path("models/adapter"),
            rows,
            torch.bfloat16,
            quantized.read(Path("models/adapter")),
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
    changes = trained_changes(from_4_bits=False)
    with pytest.raises(Refusal, match=rf"{LATE} is \d\.\d+ .*merge\.dtype"):
        checks.check_products(Path("tiny"), Path("models/merged"), changes)


def test_loading_the_first_layers_takes_their_memory_only(tiny_model, monkeypatch):
    monkeypatch.setattr(checks, "CHECKED_BYTES", 1)
    config, layers, total = checks.first_layers(tiny_model)
    needed = loading.plain_bytes(tiny_model, torch.bfloat16, config)
    loaded = loading.load_plain(tiny_model, torch.bfloat16, config)
    assert (len(loaded.model.layers), layers, total) == (1, 1, 2)
    assert needed == pytest.approx(1.1 * 2 * loaded.num_parameters(), abs=2)
    assert needed < loading.plain_bytes(tiny_model, torch.bfloat16)


LATE = "model.layers.1.mlp.down_proj.weight"


def trained_changes(from_4_bits: bool) -> Changes:
    adapter = Path("models/adapter")
    return read_changes(adapter, Path("tiny"), quantized.read(adapter), from_4_bits)


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


def test_a_file_of_broken_weights_is_named(trained):
    shutil.copytree("tiny", "models/merged")
    shard = max(Path("models/merged").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Refusal, match=rf"^{shard}: broken"):
        loading.load_plain(Path("models/merged"), torch.bfloat16)


def test_a_full_disk_is_refused_before_anything_is_written(trained, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    refused(r"0\.0 GB under models\b.* 0\.0 GB")
