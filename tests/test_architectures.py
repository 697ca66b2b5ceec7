"""Architectures other than Llama, as tiny random models: each goes through the pipeline or is refused at its start.

The stages run in this process, because starting Python for each would take longer than the stage.
"""

import json
import sys
from pathlib import Path

from qlora.recipe.schema import Lora, Model, Quantization
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.training import layout
from qlora.weights.architecture import skeleton
from stages import convert_gguf, evaluate, fetch_base, merge, prepare_dataset, quantize_load_train

import pytest
import torch
from trainers import check_compiled_layers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    HeliumConfig,
    JetMoeConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 32}
SHIPPED = {
    "mistral": MistralConfig(**SHAPE, sliding_window=512),  # llama.cpp ignores its window
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, **GEMMA),
}
# Refused for the tokenizer, which is SmolLM2's here and not their own; training and merge work all the same.
TRAINED = {
    "qwen2": (Qwen2Config(**SHAPE, tie_word_embeddings=True), "Qwen2Tokenizer"),
    "gemma": (GemmaConfig(**SHAPE), r"tokenizer\.model"),
    "gemma2": (Gemma2Config(**SHAPE, **GEMMA, attn_logit_softcapping=0.5), r"tokenizer\.model"),
    "phi3": (Phi3Config(**SHAPE), r"tokenizer\.model"),
}


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    workspace.set({"merge.base": "full", "evaluate.artifacts": ["merged", "bf16"]})
    return workspace


def write_model(config) -> None:
    """Replace the weights of ./tiny by random ones of this architecture."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained("tiny")


def score(artifact: str, monkeypatch) -> dict:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", artifact])
    evaluate.main()
    return json.loads(Path(f"results/answers/{artifact}.json").read_text())


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "gemma3"))]
)
def test_the_whole_pipeline(inside, monkeypatch, name):
    write_model(SHIPPED[name])
    fetch_base.main()
    prepare_dataset.main()
    quantize_load_train.main()
    merge.main()
    convert_gguf.main()
    merged, gguf = score("merged", monkeypatch), score("bf16", monkeypatch)
    # transformers and llama.cpp agree, so the converter permutes, splits and scales tensors correctly.
    assert gguf["loss"] == pytest.approx(merged["loss"], abs=0.02)


@pytest.mark.parametrize("name", TRAINED)
def test_training_and_merge_of_a_model_that_is_refused_for_its_tokenizer(inside, name):
    config, reason = TRAINED[name]
    write_model(config)
    with pytest.raises(Refusal, match=reason):
        fetch_base.main()
    assert not Path("models").exists()
    model = Model(id="./tiny")
    write_json(Path("models/base/base.json"), base_model.describe(model, base_model.fetch(model)))
    prepare_dataset.main()
    quantize_load_train.main()
    merge.main()  # compares its logits with the adapter's


def test_an_architecture_that_cannot_be_shipped_is_refused_first(inside):
    write_model(HeliumConfig(**SHAPE))
    with pytest.raises(Refusal, match="HeliumForCausalLM"):
        fetch_base.main()
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_embd=64, n_layer=2, n_head=4), r"GPT2LMHeadModel .* model\.layers"),
        (
            FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
            r"FalconForCausalLM .* model\.layers",
        ),
        (BloomConfig(hidden_size=64, n_layer=2, n_head=4), r"BloomForCausalLM .* model\.layers"),
        (OPTConfig(**SHAPE, ffn_dim=128, word_embed_proj_dim=64), r"OPTForCausalLM .* model\.layers"),
        (JetMoeConfig(hidden_size=64, num_hidden_layers=2, kv_channels=16), r"JetMoeForCausalLM .* \d+% "),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_an_architecture_that_cannot_be_trained_is_refused_first(inside, config, reason):
    write_model(config)
    with pytest.raises(Refusal, match=rf"^model\.id: {reason}"):
        fetch_base.main()
    assert not Path("models").exists()
    with pytest.raises(Refusal, match=rf"^model\.id: {reason}"):  # as the plan, the doctor and training do
        layout.shape_of(skeleton(Path("tiny")), Lora(r=2, alpha=4), Quantization())


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3"])
def test_compiled_layers_compute_the_same(inside, name):
    write_model(SHIPPED.get(name) or TRAINED[name][0])
    check_compiled_layers(Path("tiny"), torch.arange(96)[None], recomputed_layers=1)
