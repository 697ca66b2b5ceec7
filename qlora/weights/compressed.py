"""Models in vLLM's own format: which architectures fit it, and how transformers reads what llm-compressor wrote.

compressed-tensors holds each linear layer but the output head in fewer bits, with scales:

- W4A16: 4-bit integers, one scale for each `group_size` of them in a row; activations stay in 16 bits.
- FP8: 8-bit floating point numbers, one scale for each row; vLLM scales activations to 8 bits as they come.
- NVFP4: 4-bit floating point numbers, one 8-bit scale for each 16 in a row and one scale for all; so are activations.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.weights import loading

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

HEAD = "lm_head"
NVFP4_GROUP = 16


def check(skeleton: PreTrainedModel, types: Sequence[str], group_size: int) -> None:
    """Raise Refusal unless this model can be stored as each of `types`, and llm-compressor is installed."""
    widths = {layer.in_features: name for name, layer in linear_layers(skeleton).items()}
    for width, name in widths.items():
        if "NVFP4" in types and width % NVFP4_GROUP:
            raise Refusal(f"vllm.types: NVFP4 is in groups of {NVFP4_GROUP} and {name} has {width} inputs; take FP8")
        if width % group_size and any(type_.startswith("W4A16") for type_ in types):
            fitting = [str(size) for size in (128, 64, 32) if not any(width % size for width in widths)]
            advice = f"set it to {' or '.join(fitting)}" if fitting else "no size fits this model: set vllm.types to []"
            raise Refusal(f"vllm.group_size: {group_size} does not divide the {width} inputs of {name}; {advice}")
    if find_spec("llmcompressor") is None:
        raise Refusal(
            "vllm.types asks for llm-compressor, which is not installed: run `make llm-compressor`, or set vllm.types "
            "to []"
        )


def linear_layers(skeleton: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The layers whose weights are stored in fewer bits, by name."""
    layers = {name: layer for name, layer in skeleton.named_modules() if isinstance(layer, torch.nn.Linear)}
    layers.pop(HEAD, None)
    return layers


def stored(name: str, layer: torch.nn.Linear, type_: str, group_size: int) -> dict[str, tuple[int, ...]]:
    """The tensors that a linear layer of this name is stored as: their names and shapes, without zero points."""
    rows, columns = layer.out_features, layer.in_features
    if type_ == "FP8":
        return {f"{name}.weight": (rows, columns), f"{name}.weight_scale": (rows, 1)}
    if type_ == "NVFP4":
        return {
            f"{name}.weight_packed": (rows, columns // 2),  # 2 in a byte
            f"{name}.weight_scale": (rows, columns // NVFP4_GROUP),
            f"{name}.weight_global_scale": (1,),
            f"{name}.input_global_scale": (1,),
        }
    packed = {f"{name}.weight_packed": (rows, columns // 8)}  # 8 in an int32
    return packed | {f"{name}.weight_scale": (rows, columns // group_size)}


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
