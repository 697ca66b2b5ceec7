"""Mixtures of experts of many families, as tiny random models with the tiny model's tokenizer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV2Config,
    Glm4MoeLiteConfig,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "num_experts_per_tok": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
LATENT = SHAPE | {  # multi-head latent attention
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "kv_lora_rank": 64,  # as all widths: whole blocks of 64 weights, or bitsandbytes on a CPU takes wrong scales
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
FAMILIES = ("qwen3", "gpt-oss", "qwen2", "mixtral", "olmoe", "granite", "glm", "deepseek")
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}


def config(name: str, **others) -> PreTrainedConfig:
    """The config of one of FAMILIES, with changes."""
    if name == "qwen3":
        sizes = {
            "intermediate_size": 128,
            "moe_intermediate_size": 64,
            "num_experts": 8,
            "head_dim": 16,
            "norm_topk_prob": True,
        }
        return Qwen3MoeConfig(**GROUPED | sizes | others)
    if name == "gpt-oss":
        sizes = {"intermediate_size": 64, "num_local_experts": 8, "head_dim": 16, "sliding_window": 32}
        return GptOssConfig(**GROUPED | sizes | {"rope_parameters": YARN} | others)
    if name == "qwen2":
        sizes = {"intermediate_size": 128, "moe_intermediate_size": 64, "num_experts": 8}
        return Qwen2MoeConfig(**GROUPED | sizes | {"shared_expert_intermediate_size": 64} | others)
    if name == "mixtral":
        return MixtralConfig(**GROUPED | {"intermediate_size": 64, "num_local_experts": 8} | others)
    if name == "olmoe":
        return OlmoeConfig(**GROUPED | {"intermediate_size": 64, "num_experts": 8} | others)
    if name == "granite":
        return GraniteMoeConfig(**GROUPED | {"intermediate_size": 64, "num_local_experts": 8} | others)
    if name == "glm":
        return Glm4MoeLiteConfig(**LATENT | {"q_lora_rank": 64} | others)
    return DeepseekV2Config(
        **LATENT
        | {"q_lora_rank": None, "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
        | others
    )


def write(name: str, folder: Path, **others) -> None:
    """Replace the weights of `folder`, which has a tokenizer, by random ones of one of FAMILIES."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(name, vocab_size=len(tokenizer), **ids | others))
    for parameter in model.parameters():
        if not parameter.any():  # transformers begins with biases of 0, which would hide one that is lost
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)


def to_mxfp4(folder: Path) -> None:
    """Replace the experts in a folder of gpt-oss by random ones in MXFP4, as its own repository ships them."""
    path, draw = folder / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(256, (experts, out, width // 32, 16), generator=draw).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 125, (experts, out, width // 32), generator=draw).to(torch.uint8)
    save_file(tensors, path, {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(settings))
