"""Multimodal models with tiny random towers, and the tiny model's tokenizer: what the text tower's tests run on."""

from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def config(name: str, **text) -> PreTrainedConfig:
    """The config of the multimodal model `name`, with changes to that of its text."""
    text = TEXT | text
    if name == "gemma3":
        text |= {"sliding_window": 32, "query_pre_attn_scalar": 16}
        vision = VISION | {"model_type": "siglip_vision_model"}
        return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    if name == "gemma4":
        text |= {
            "global_head_dim": 32,
            "sliding_window": 32,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 64,
            "vocab_size_per_layer_input": text["vocab_size"],
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "use_double_wide_mlp": True,
        }
        vision = VISION | {"num_key_value_heads": 2, "global_head_dim": 16}
        return transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    if name in ("mistral3", "ministral3"):
        text |= (
            {"model_type": "mistral"} if name == "mistral3" else {"model_type": "ministral3", "rope_parameters": YARN}
        )
        return transformers.Mistral3Config(
            text_config=text, vision_config=VISION | {"model_type": "pixtral"}, tie_word_embeddings=name == "ministral3"
        )
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    if name == "qwen2_5_vl":
        vision = QWEN_VISION | {"fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rotary}, vision_config=vision)
    rotary |= {"mrope_interleaved": True}
    vision = QWEN_VISION | {"num_position_embeddings": 16}
    if name == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0]}
        return transformers.Qwen3VLConfig(
            text_config=text | {"rope_parameters": rotary}, vision_config=vision, tie_word_embeddings=True
        )
    text |= {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": rotary | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25},
    }
    return transformers.Qwen3_5Config(text_config=text, vision_config=vision)


MODELS = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "ministral3": "Mistral3ForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}


def write(name: str, folder: Path, names_of_hub: bool = True) -> None:
    """Replace the weights of `folder` by random ones of the multimodal model `name`.

    Args:
        name: One of MODELS.
        folder: With a tokenizer.
        names_of_hub: Name the tensors as repositories do, where this differs from the modules' names.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    model = getattr(transformers, MODELS[name])(config(name, vocab_size=len(tokenizer), **ids)).to(torch.bfloat16)
    model.save_pretrained(folder, save_original_format=names_of_hub)
