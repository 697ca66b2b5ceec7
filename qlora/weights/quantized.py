"""What training held in 4 bits, and how: recorded with the adapter, because a merge must round the same tensors."""

import copy
from pathlib import Path

from qlora.recipe.schema import Quantization
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.weights import experts

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from pydantic import ValidationError
from transformers import PreTrainedModel

FILE = "quantization.json"


class Quantized(Quantization):
    """The quantization of a loaded model: type, scales and compute dtype, and the tensors that are in 4 bits.

    Attributes:
        tensors: Their names in the model, whether an adapter changes them or not.
    """

    tensors: list[str]


def of_model(model: PreTrainedModel, quantization: Quantization) -> Quantized:
    """What `model` holds in 4 bits, before an adapter is added and before it is dequantized."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    tensors = [f"{name}.weight" for name in layers] + list(experts.quant_states(model))
    return Quantized(**quantization.model_dump(), tensors=tensors)


def dequantize(codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The weight of 4-bit `codes`, in the dtype and shape that it was quantized from.

    bitsandbytes' kernel for CPUs (0.50) takes each line for whole blocks, and decodes other lines by wrong scales.
    """
    flat = copy.copy(state)
    flat.shape = torch.Size((1, state.shape.numel()))
    return dequantize_4bit(codes, flat).view(state.shape)


def write(adapter: Path, quantized: Quantized) -> None:
    """Record it in the adapter's folder."""
    write_json(adapter / FILE, quantized.model_dump())


def read(adapter: Path) -> Quantized:
    """The record in the adapter's folder.

    Raises:
        Refusal: if it is missing or broken.
    """
    try:
        return Quantized.model_validate_json((adapter / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise Refusal(f"{adapter / FILE}: cannot be read ({reason}); run `dvc repro quantize-load-train`") from None
