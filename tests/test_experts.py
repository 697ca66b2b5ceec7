"""Mixtures of experts in 4 bits: what is stored, what is computed, and what is merged, for many families."""

import csv
import json
import shutil
import sys
from pathlib import Path

from qlora.kernels import compiled_layers, nf4_experts
from qlora.merging.parameters import Reader
from qlora.merging.shards import Merger, merge_shard
from qlora.merging.update import read_changes, read_updates, through_4_bits
from qlora.recipe.schema import Lora, Quantization
from qlora.runtime.console import Refusal
from qlora.weights import architecture, experts, loading, quantized
from qlora.weights.architecture import kept_plain, skeleton
from stages import convert_gguf, evaluate, fetch_base, merge, prepare_dataset, quantize_gguf, quantize_load_train

import mixtures
import pytest
import torch
from mixtures import FAMILIES
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

IDS = torch.arange(3, 67)[None]
EXACT = Quantization(compute_dtype="float32")


def adapted(model, adapt_experts: bool, **others):
    """`model` with a random adapter on all linear layers and, if asked for, on experts."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        target_parameters=list(experts.parameters_of(model)) if adapt_experts else None,
        exclude_modules=kept_plain(model) or None,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **others,
    )
    with experts.shown_to_peft(model):
        tuned = get_peft_model(model, config)
    nf4_experts.use_fast_experts(tuned)
    return tuned


def gradients(model) -> dict[str, torch.Tensor]:
    model.train()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"loss": loss.detach()}


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_are_stored_in_4_bits_and_routers_are_not(folder, name):
    mixtures.write(name, folder)
    model = loading.load_base(folder, Quantization())
    stored = {name: p for name, p in model.named_parameters() if ".experts." in name and "bias" not in name}
    assert len(stored) == 2 * len(experts.of_model(model)) > 0
    weights = sum(experts.quant_states(model)[name].shape.numel() for name in experts.quant_states(model))
    assert sum(p.numel() * p.itemsize for p in stored.values()) == weights / 2
    scales = [state.absmax for state in experts.quant_states(model).values()]
    assert sum(scale.numel() * scale.itemsize for scale in scales) == weights / 64
    others = {name: p for name, p in model.named_parameters() if "router" in name or "norm" in name or ".gate." in name}
    assert {p.dtype for p in others.values()} <= {torch.bfloat16, torch.float32}
    assert any("router" in name or ".gate." in name for name in others)
    assert [p.dtype for n, p in model.named_parameters() if "shared_expert_gate" in n] == [torch.bfloat16] * 2 * (
        name == "qwen2"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_peft_on_dequantized_weights(folder, name):
    mixtures.write(name, folder)
    fast = gradients(adapted(loading.load_base(folder, EXACT), adapt_experts=True))
    plain = loading.load_base(folder, EXACT)
    assert loading.dequantize(plain)
    expected = gradients(adapted(plain, adapt_experts=True))
    assert fast.keys() == expected.keys()
    assert sum(".experts." in name for name in fast) == 4 * len(experts.of_model(plain))
    for gradient in expected:
        torch.testing.assert_close(fast[gradient], expected[gradient], rtol=1e-3, atol=1e-5, msg=gradient)


def test_no_dequantized_weight_is_kept_for_the_backward_pass(folder):
    mixtures.write("qwen3", folder)
    model = adapted(loading.load_base(folder, EXACT), adapt_experts=True).train()
    largest = 0

    def look(tensor):
        nonlocal largest
        if tensor.dim() == 3 and tensor.shape[0] == 8 and tensor.is_floating_point():
            largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    assert 0 < largest <= 8 * 128 * 8  # LoRA's factors, no weight (8, 128, 64)


@pytest.mark.parametrize("adapt_experts", [False, True], ids=["attention", "experts"])
@pytest.mark.parametrize("name", [*FAMILIES, "mxfp4"])
def test_a_merge_is_what_training_saw(folder, tmp_path, name, adapt_experts):
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    mixtures.write("gpt-oss" if name == "mxfp4" else name, folder)
    if name == "mxfp4":
        mixtures.to_mxfp4(folder)
    model = loading.load_base(folder, EXACT)
    seen = quantized.of_model(model, EXACT)
    tuned = adapted(model, adapt_experts).eval()
    tuned.save_pretrained(adapter)
    changes = read_changes(adapter, folder, seen, from_4_bits=True)
    assert set(experts.parameters_of(skeleton(folder))) <= {w.name for w in changes.trained.values()}
    shutil.copytree(folder, merged)
    with Reader(folder) as reader:
        shard = folder / "model.safetensors"
        merge_shard(shard, merged / shard.name, Merger(reader, changes, torch.float32, "cpu"))
    if name == "mxfp4":
        settings = (merged / "config.json").read_text()
        (merged / "config.json").write_text(settings.replace("quantization_config", "was"))
    with torch.inference_mode():
        found = loading.load_plain(merged, torch.float32)(IDS).logits
        torch.testing.assert_close(found, tuned(IDS).logits, rtol=1e-3, atol=1e-3)
        again = loading.load_adapter(loading.load_base(folder, EXACT), adapter, folder).eval()
        torch.testing.assert_close(again(IDS).logits, tuned(IDS).logits)
    assert len(read_updates(adapter)) == len(changes.updates)


def test_mxfp4_is_dequantized_exactly(folder):
    mixtures.write("gpt-oss", folder)
    mixtures.to_mxfp4(folder)
    plain = loading.load_plain(folder, torch.bfloat16).model.layers[0].mlp.experts
    assert torch.equal(plain.down_proj, loading.load_plain(folder, torch.float32).model.layers[0].mlp.experts.down_proj)
    loaded = loading.load_base(folder, Quantization()).model.layers[0].mlp.experts
    for weight in experts.weights_of(plain):
        assert torch.equal(getattr(loaded, weight), through_4_bits(getattr(plain, weight).data, Quantization()))


def run(stage, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def losses() -> list[float]:
    with Path("results/train/log.csv").open() as lines:
        return [float(row["loss"]) for row in csv.DictReader(lines) if row["loss"]]


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mxfp4", "mixtral", "granite"))]
)
def test_the_whole_pipeline(workspace, monkeypatch, name):
    """An adapter on attention and experts, trained, merged, converted and scored: llama.cpp computes the same."""
    monkeypatch.chdir(workspace.path)
    type_ = "MXFP4_MOE" if name == "mxfp4" else "Q4_K_M"
    artifacts = ["adapter", "merged", "bf16", *([type_] if name == "mxfp4" else [])]
    workspace.set({"lora.experts": True, "evaluate.artifacts": artifacts, "gguf.types": [type_], "evaluate.gates": {}})
    workspace.set({"train.learning_rate": 0.01, "train.epochs": 3.0, "train.max_steps": 12})
    mixtures.write("gpt-oss" if name == "mxfp4" else name, Path("tiny"))
    if name == "mxfp4":
        mixtures.to_mxfp4(Path("tiny"))
    for stage in (fetch_base, prepare_dataset, quantize_load_train, merge, convert_gguf):
        run(stage, monkeypatch)
    assert sum(losses()[-4:]) < sum(losses()[:4]) - 0.2
    if type_ in artifacts:
        run(quantize_gguf, monkeypatch, "--type", type_)
    scores = {}
    for artifact in artifacts:
        run(evaluate, monkeypatch, "--artifact", artifact)
        scores[artifact] = json.loads(Path(f"results/answers/{artifact}.json").read_text())["loss"]
    assert scores["merged"] == pytest.approx(scores["adapter"], abs=0.05)
    assert scores["bf16"] == pytest.approx(scores["merged"], abs=0.02)
    assert scores.get(type_, scores["bf16"]) == pytest.approx(scores["bf16"], abs=0.2)


def test_rows_of_a_pack_meet_each_other_neither_through_sinks_nor_windows(folder):
    mixtures.write("gpt-oss", folder)
    alone = loading.load_base(folder, EXACT).eval()
    assert alone.config._attn_implementation == "eager"
    packed = loading.load_base(folder, EXACT, attention="packed").eval()
    ids = torch.arange(3, 83)[None]
    ends = torch.tensor([0, 48, 80], dtype=torch.int32)  # of rows of 48 and 32 tokens; the window has 32
    positions = torch.cat([torch.arange(48), torch.arange(32)])[None]
    options = {"position_ids": positions, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 48}
    with torch.inference_mode():
        together = packed(input_ids=ids, use_cache=False, max_length_k=48, **options).logits
        apart = torch.cat([alone(input_ids=row, use_cache=False).logits for row in ids.split([48, 32], dim=1)], dim=1)
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
        for layer in alone.model.layers:
            layer.self_attn.sinks.fill_(-100.0)
        without = alone(input_ids=ids[:, :48], use_cache=False).logits
        assert (without - apart[:, :48]).abs().max() > 0.1  # or the rest would prove nothing


@pytest.mark.parametrize(("name", "value"), [("qwen3", False), ("qwen2", True), ("olmoe", True)])
def test_a_routing_that_llama_cpp_does_not_know_is_refused(name, value):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(mixtures.config(name, norm_topk_prob=value))
    with pytest.raises(Refusal, match=r"^model\.id: .*norm_topk_prob.*llama\.cpp"):
        architecture.check(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"experts": True, "dropout": 0.1}, r"^lora\.dropout: "), ({"target_modules": ["up_proj"]}, r"lora\.experts")],
)
def test_settings_that_experts_cannot_have_are_refused(changes, reason):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(mixtures.config("qwen3"))
    with pytest.raises(Refusal, match=reason):
        loading.check_target_modules(model, Lora(**{"r": 4, "alpha": 8} | changes))


def test_experts_of_a_model_without_are_refused(tiny_model):
    with pytest.raises(Refusal, match=r"^lora\.experts: .* false"):
        loading.check_target_modules(skeleton(tiny_model), Lora(r=4, alpha=8, experts=True))


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss", "glm"])
def test_compiled_layers_compute_the_same(folder, name):
    mixtures.write(name, folder)
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = adapted(loading.load_base(folder, EXACT), adapt_experts=True)
        if compiled:
            compiled_layers.speed_up(model, recomputed_layers=1, backend="aot_eager")
        results.append(gradients(model))
    for gradient, expected in results[0].items():
        torch.testing.assert_close(results[1][gradient], expected, rtol=1e-3, atol=1e-5, msg=gradient)
