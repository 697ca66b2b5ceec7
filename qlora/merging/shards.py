"""Merge a safetensors shard tensor by tensor, with at most two tensors or a layer's experts in memory."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora.merging.parameters import Reader
from qlora.merging.update import Changes
from qlora.weights.files import opened

import torch

KEPT = 2  # parameters of experts: a layer has two, and in the files their parts alternate
SAFETENSORS_NAME = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class Merger:
    """The merged model's tensors, one after another.

    Args:
        reader: Of the base model's files.
        changes: To make.
        dtype: To write.
        device: That computes.
    """

    def __init__(self, reader: Reader, changes: Changes, dtype: torch.dtype, device: str):
        self.reader, self.changes, self.dtype, self.device = reader, changes, dtype, device
        self.owner = {source.file_name: weight for weight in changes.trained.values() for source in weight.sources}
        self.changed = set(changes.names)
        self.parts: dict[str, dict[str, torch.Tensor]] = {}  # of the experts that were made last

    def written(self, name: str) -> str | None:
        """The merged model's name of the base model's tensor `name`; None if it is left out."""
        return self.owner[name].written.get(name) if name in self.owner else name

    def header(self, name: str) -> tuple[str, list[int], int]:
        """Type, shape and bytes of the merged tensor that stands for the base model's tensor `name`."""
        file, weight = self.reader.file_of[name], self.owner.get(name)
        tensor = file.get_tensor(name)  # memory-mapped: this reads nothing
        shape = list(tensor.shape if weight is None or self.written(name) == name else weight.shape)
        if weight is None or not (tensor.is_floating_point() or self.written(name) != name):
            return file.get_slice(name).get_dtype(), shape, tensor.numel() * tensor.itemsize
        return SAFETENSORS_NAME[self.dtype], shape, math.prod(shape) * self.dtype.itemsize

    def make(self, name: str) -> torch.Tensor:
        """That tensor."""
        weight = self.owner.get(name)
        if weight is None:
            return self.reader.file_of[name].get_tensor(name)
        if weight.is_itself or (weight.key not in self.changed and self.written(name) == name):
            tensor = self.reader.file_of[name].get_tensor(name)
            if weight.key in self.changed:
                return self.changes.apply(weight.key, tensor.to(self.device), self.dtype).cpu()
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        if weight.name not in self.parts:
            if len(self.parts) == KEPT:
                del self.parts[next(iter(self.parts))]
            value = self.changes.apply(weight.key, self.reader.read(weight, self.device), self.dtype).cpu()
            self.parts[weight.name] = weight.split(value)
        return self.parts[weight.name][self.written(name)]


def merge_shard(shard: Path, output: Path, merger: Merger) -> None:
    """Change the tensors of `shard`, of the base model, and write the result to `output`."""
    with opened(shard) as file:
        names = [name for name in file.offset_keys() if merger.written(name)]
        header, end = {"__metadata__": file.metadata() or {"format": "pt"}}, 0
    for name in names:
        kind, shape, size = merger.header(name)
        begin, end = end, end + size
        header[merger.written(name)] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    with ThreadPoolExecutor(1) as pool:  # computes the next tensor while a tensor is written
        write_safetensors(output, header, ahead(pool, merger.make, names))


def ahead(pool: ThreadPoolExecutor, make: Callable[[str], torch.Tensor], names: list[str]) -> Iterator[torch.Tensor]:
    """Yield make(name) for each name; the next one is computed while the caller uses the last."""
    coming = pool.submit(make, names[0])
    for name in names[1:]:
        made, coming = coming.result(), pool.submit(make, name)
        yield made
    yield coming.result()


def write_safetensors(path: Path, header: dict, tensors: Iterable[torch.Tensor]) -> None:
    """Write a safetensors file tensor by tensor; the library's writer needs all tensors in memory at once.

    The format (https://github.com/huggingface/safetensors): the header's length as 8 bytes, little-endian; the header
    as JSON, padded with spaces to a multiple of 8; the tensors' bytes, concatenated.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
