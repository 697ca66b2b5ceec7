"""What a merge changes: weights that training held in 4 bits, and LoRA updates; the check that both fit the base.

A weight is named here by its tensor in the base model's files. Experts, which several tensors of the files make up,
have the name of the model's parameter.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from qlora.merging import parameters
from qlora.merging.parameters import Parameter
from qlora.recipe.schema import Quantization
from qlora.runtime.console import Refusal
from qlora.weights import tower
from qlora.weights.files import opened
from qlora.weights.quantized import Quantized, dequantize

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file

EXPERTS = (".experts.weight", ".experts.base_layer.weight")  # PEFT's names of updates of a module's parameters
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

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape == (self.b.shape[0], self.a.shape[1])

    def of_matrix(self, index: int) -> "Update":
        """The update of one matrix of the weight."""
        return self


@dataclass(frozen=True)
class ExpertsUpdate:
    """The updates of a layer's experts, with a (experts, r, in) and b (experts, out, r)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    is_transposed: bool  # whether the weight is (experts, in, out)

    def add_to(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`weight` (experts, out, in) or (experts, in, out) plus the updates, in `dtype`."""
        merged = torch.empty_like(weight, dtype=dtype)
        for index, matrix in enumerate(weight):
            if self.is_transposed:
                merged[index] = self.of_matrix(index).add_to(matrix.mT, dtype).mT
            else:
                merged[index] = self.of_matrix(index).add_to(matrix, dtype)
        return merged

    def fits(self, shape: tuple[int, ...]) -> bool:
        out, in_ = self.b.shape[1], self.a.shape[2]
        return shape == (len(self.a), *((in_, out) if self.is_transposed else (out, in_)))

    def of_matrix(self, index: int) -> Update:
        """The update of one expert."""
        return Update(self.a[index], self.b[index], self.scale)


@dataclass(frozen=True)
class Changes:
    """The base model's weights that a merge changes.

    Attributes:
        updates: By name.
        rounded: The weights that training held in 4 bits, adapted or not, if the merge starts from what training saw
            (merge.base: dequantized); none if it starts from the original weights (full).
        quantization: How training held them.
        trained: All weights of the trained model. Others, of a vision tower, are carried along as they are.
    """

    updates: dict[str, Update | ExpertsUpdate]
    rounded: frozenset[str]
    quantization: Quantization
    trained: dict[str, Parameter]

    @property
    def names(self) -> list[str]:
        """The changed weights' names, sorted."""
        return sorted(self.updates.keys() | self.rounded)

    def start(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the update is added to."""
        return through_4_bits(weight, self.quantization) if name in self.rounded else weight

    def apply(self, name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The merged weight in `dtype`."""
        weight = self.start(name, weight)
        return self.updates[name].add_to(weight, dtype) if name in self.updates else weight.to(dtype)


def read_changes(adapter: Path, base: Path, quantized: Quantized, from_4_bits: bool) -> Changes:
    """The changes that merge the adapter into the base model.

    Args:
        adapter: Its folder.
        base: The base model's folder.
        quantized: What training held in 4 bits.
        from_4_bits: Whether the merge starts from that.

    Raises:
        Refusal: if the adapter is not plain LoRA.
    """
    tower.names_in_files(base)  # refuses files that lack a weight
    prefixes, trained = tower.prefixes(base), parameters.of_folder(base)
    updates = {}
    for name, update in read_updates(adapter).items():
        name = tower.in_tower(name, prefixes) or name
        if name.endswith(EXPERTS):
            name, update = _of_experts(name, update, trained)
        updates[trained[name].key if name in trained else name] = update
    rounded = frozenset(trained[name].key if name in trained else name for name in quantized.tensors if from_4_bits)
    return Changes(updates, rounded, quantized, {parameter.key: parameter for parameter in trained.values()})


def _of_experts(name: str, update: Update, trained: dict[str, Parameter]) -> tuple[str, Update | ExpertsUpdate]:
    """The parameter that PEFT's update `name` is of, and the update by expert.

    PEFT wraps the module once for each parameter, in the order of its parameters: the first is adapted in base_layer.
    """
    module = name.removesuffix(".weight").removesuffix(".base_layer")
    weights = [other for other in trained if other.rpartition(".")[0] == module and len(trained[other].shape) == 3]
    if len(weights) != 2:
        return name, update
    first, second = sorted(weights, key=lambda weight: weight.endswith(".down_proj"))
    parameter = trained[first if name.endswith(".base_layer.weight") else second]
    count, out = parameter.shape[0], len(update.b)
    a = update.a.view(count, -1, update.a.shape[1])
    b = update.b.view(out, -1, count).permute(2, 0, 1)
    return parameter.name, ExpertsUpdate(a, b, update.scale, parameter.is_transposed)


def read_updates(adapter: Path) -> dict[str, Update]:
    """The adapter's updates, by the whole model's tensor names.

    Raises:
        Refusal: if the adapter is not plain LoRA.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    if config["use_dora"] or config.get("modules_to_save"):
        raise Refusal(f"{adapter}: DoRA and modules_to_save cannot be merged shard by shard; train plain LoRA")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    updates = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            updates[f"{layer}.weight"] = Update(a, tensors[name.replace("lora_A", "lora_B")], scale)
    return updates


def check_base(shards: list[Path], changes: Changes) -> int:
    """Check that the changes fit the base model's tensors. Reads only the shards' headers.

    Returns:
        Number of elements of the largest changed tensor.

    Raises:
        Refusal: if a shard is broken or holds quantized tensors, which llama.cpp's converter may misread, or if a
            changed tensor is missing or an update has another shape.
    """
    joined = {name: weight for name, weight in changes.trained.items() if not weight.is_itself}
    codes = {source.file_name for weight in joined.values() for source in weight.sources}
    shapes = {name: weight.shape for name, weight in joined.items()}
    for shard in shards:
        with opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                part = file.get_slice(name)
                if part.get_dtype() in {"U8", "I8"} and name not in codes:
                    raise Refusal(f"model.id: the base model holds the quantized tensor {name}; take its original")
                shapes[name] = tuple(part.get_shape())
    if missing := [name for name in changes.names if name not in shapes]:
        raise Refusal(f"the adapter changes {missing[0]} (of {len(missing)}), which the base model does not have")
    for name, update in changes.updates.items():
        if not update.fits(shapes[name]):
            wanted = (update.b.shape[0], update.a.shape[1])
            raise Refusal(f"{name} has the shape {shapes[name]}, and the adapter changes one of {wanted}")
    return max(math.prod(shapes[name]) for name in changes.names)


def through_4_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """The weight as training saw it: quantized to 4 bits and dequantized, in the compute dtype."""
    packed, state = bnb.quantize_4bit(
        weight.to(getattr(torch, quantization.compute_dtype)),
        compress_statistics=quantization.double_quantization,
        quant_type=quantization.type,
    )
    return dequantize(packed, state)
