"""LoRA updates by the names of the base model's tensors, and the check that they fit these tensors."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.schema import Quantization
from qlora.runtime.console import Refusal
from qlora.weights.files import opened

import bitsandbytes.functional as bnb
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

CPU_ROWS = 64  # rows added at once on a CPU: they stay in its cache, which is three times as fast


@dataclass(frozen=True)
class Update:
    """A layer's low-rank update scale * b @ a, with b (out, r) and a (r, in)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def add_to(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`weight` (out, in) plus the update, added in float32, in `dtype`."""
        a, b = (matrix.to(weight.device, torch.float32) for matrix in (self.a, self.b))
        merged = torch.empty_like(weight, dtype=dtype)
        rows = CPU_ROWS if weight.device.type == "cpu" else len(weight)
        for part, of_b, to in zip(weight.split(rows), b.split(rows), merged.split(rows), strict=True):
            to.copy_(torch.addmm(part.float(), of_b, a, alpha=self.scale))
        return merged


def read_updates(adapter: Path) -> dict[str, Update]:
    """The adapter's updates, by the base model's tensor names.

    Raises:
        Refusal: if the adapter is missing or broken, or is not plain LoRA.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise Refusal(f"{adapter}: cannot be read ({error}); run `dvc repro quantize-load-train`") from None
    if config["use_dora"] or config.get("modules_to_save"):
        raise Refusal(f"{adapter}: DoRA and modules_to_save cannot be merged shard by shard; train plain LoRA")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    updates = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            updates[f"{layer}.weight"] = Update(a, tensors[name.replace("lora_A", "lora_B")], scale)
    return updates


def check_base(shards: list[Path], updates: dict[str, Update]) -> int:
    """Check that the updates fit the base model's tensors. Reads only the shards' headers.

    Returns:
        Number of elements of the largest updated tensor.

    Raises:
        Refusal: if a shard is broken or holds quantized tensors, which llama.cpp's converter may misread, or if the
            tensor of an update is missing or has another shape.
    """
    shapes = {}
    for shard in shards:
        with opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                part = file.get_slice(name)
                if part.get_dtype() in {"U8", "I8"}:
                    raise Refusal(f"model.id: the base model holds the quantized tensor {name}; take its original")
                shapes[name] = tuple(part.get_shape())
    if missing := sorted(updates.keys() - shapes.keys()):
        raise Refusal(f"the adapter changes {missing[0]} (of {len(missing)}), which the base model does not have")
    for name, update in updates.items():
        if (wanted := (update.b.shape[0], update.a.shape[1])) != shapes[name]:
            raise Refusal(f"{name} has the shape {shapes[name]}, and the adapter changes one of {wanted}")
    return max(math.prod(shapes[name]) for name in updates)


def through_4_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """The weight as training saw it: quantized to 4 bits and dequantized, in the compute dtype."""
    packed, state = bnb.quantize_4bit(
        weight.to(getattr(torch, quantization.compute_dtype)),
        compress_statistics=quantization.double_quantization,
        quant_type=quantization.type,
    )
    return bnb.dequantize_4bit(packed, state)
