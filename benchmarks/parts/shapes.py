"""Model shapes for benchmarks with random weights: each a model's configuration and its adapter's LoRA settings."""

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig

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
}
REHEARSAL = {  # widths of a model of a few million parameters, to try a benchmark out
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50000,
}
