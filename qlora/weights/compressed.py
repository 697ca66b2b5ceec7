"""Models in vLLM's 4-bit format: which architectures fit it, and how transformers reads what llm-compressor wrote.

W4A16 in the compressed-tensors format: 4-bit integers in each linear layer but the output head, one scale for each
`group_size` of them in a row; activations stay in 16 bits.
"""

from importlib.util import find_spec
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.weights import loading

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

HEAD = "lm_head"


def check(skeleton: PreTrainedModel, group_size: int) -> None:
    """Raise Refusal unless this model can be stored in groups of `group_size`, and llm-compressor is installed."""
    widths = {layer.in_features: name for name, layer in linear_layers(skeleton).items()}
    for width, name in widths.items():
        if width % group_size:
            fitting = [str(size) for size in (128, 64, 32) if not any(width % size for width in widths)]
            advice = f"set it to {' or '.join(fitting)}" if fitting else "no size fits this model: set vllm.types to []"
            raise Refusal(f"vllm.group_size: {group_size} does not divide the {width} inputs of {name}; {advice}")
    if find_spec("llmcompressor") is None:
        raise Refusal(
            "vllm.types asks for llm-compressor, which is not installed: run `make llm-compressor`, or set vllm.types "
            "to []"
        )


def linear_layers(skeleton: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The layers whose weights are stored in 4 bits, by name."""
    layers = {name: layer for name, layer in skeleton.named_modules() if isinstance(layer, torch.nn.Linear)}
    layers.pop(HEAD, None)
    return layers


def load(folder: Path) -> PreTrainedModel:
    """The model in `folder`, decompressed to bfloat16, on the GPU if it fits there with a tenth to spare.

    Raises:
        Refusal: if the package that reads the format is not installed.
    """
    if find_spec("compressed_tensors") is None:
        raise Refusal(f"{folder} needs compressed-tensors, which is not installed: run `make llm-compressor`")
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > loading.plain_bytes(folder, torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=loading.attention_implementation(AutoConfig.from_pretrained(folder)),
        dtype=torch.bfloat16,
        quantization_config=CompressedTensorsConfig(dequantize=True),
        device_map={"": torch.cuda.current_device() if fits else "cpu"},
    )
