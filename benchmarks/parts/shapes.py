"""Model shapes for benchmarks with random weights: each a model's configuration and its adapter's LoRA settings.

Of multimodal models only the text tower. The shapes from 2025 on are written from memory of their repositories'
config.json: compare before a figure is quoted for the model by name.
"""

from transformers import (
    Gemma4TextConfig,
    Glm4MoeLiteConfig,
    GptOssConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, tuple[PreTrainedConfig, dict]] = {
    "llama3-8b": (
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "mistral-7b": (
        MistralConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            sliding_window=4096,
        ),
        {"r": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]},
    ),
    "llama2-13b": (
        LlamaConfig(
            vocab_size=32000,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "smollm2-135m": (
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "llama-33b": (
        LlamaConfig(
            vocab_size=32000,
            hidden_size=6656,
            intermediate_size=17920,
            num_hidden_layers=60,
            num_attention_heads=52,
            num_key_value_heads=52,
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "qwen3-8b": (
        Qwen3Config(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        {"r": 16, "target_modules": "all-linear"},
    ),
    "qwen3.5-9b": (  # three of four layers are gated DeltaNet
        Qwen3_5TextConfig(
            vocab_size=248320,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=32,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=256,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
        ),
        {"r": 16, "target_modules": "all-linear"},
    ),
    "ministral3-8b": (
        Ministral3Config(
            vocab_size=131072,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=34,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
        {"r": 16, "target_modules": "all-linear"},
    ),
    "gemma4-e4b": (  # 18 of 42 layers share keys and values; per-layer embeddings; head size 512 in every sixth layer
        Gemma4TextConfig(
            vocab_size=262144,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=42,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=256,
            global_head_dim=512,
            sliding_window=512,
            num_kv_shared_layers=18,
            hidden_size_per_layer_input=256,
            vocab_size_per_layer_input=262144,
            final_logit_softcapping=30.0,
        ),
        {"r": 16, "target_modules": "all-linear"},
    ),
    "qwen3-30b-a3b": (
        Qwen3MoeConfig(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
        ),
        {"r": 16, "target_modules": ATTENTION},
    ),
    "gpt-oss-20b": (GptOssConfig(num_hidden_layers=24, num_local_experts=32), {"r": 16, "target_modules": ATTENTION}),
    "glm-4.7-flash": (
        Glm4MoeLiteConfig(),
        {"r": 16, "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]},
    ),
    "tiny": (
        LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "tiny-experts": (
        Qwen3MoeConfig(
            vocab_size=512,
            hidden_size=128,
            moe_intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        ),
        {"r": 16, "target_modules": ATTENTION},
    ),
}
# The same models with LoRA on their experts.
SHAPES |= {
    f"{name}-all": (config, adapter | {"adapt_experts": True})
    for name, (config, adapter) in SHAPES.items()
    if name in ("qwen3-30b-a3b", "gpt-oss-20b", "tiny-experts")
}
REHEARSAL = {  # widths of a model of a few million parameters, to try a benchmark out
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50000,
}
NARROW = {  # of the parts that some shapes have beside these
    "head_dim": 64,
    "global_head_dim": 128,
    "num_kv_shared_layers": 6,
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 50000,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
}


def narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    """A model of the same kinds of layers as `config`'s with a few million parameters."""
    given = config.to_dict()
    parts = {name: width for name, width in NARROW.items() if name in given}
    if "num_kv_shared_layers" in parts:  # two rounds of its kinds of layers; the second takes keys from the first
        parts |= {"num_hidden_layers": 12, "global_head_dim": NARROW["global_head_dim"]}
    if "kv_lora_rank" in given:  # latent attention: as many heads of keys as of queries
        parts["num_key_value_heads"] = REHEARSAL["num_attention_heads"]
    built = {"layer_types", "mlp_layer_types", "per_layer_config"}  # from the other fields
    fields = {name: value for name, value in given.items() if name not in built}
    return type(config)(**fields | REHEARSAL | parts)
