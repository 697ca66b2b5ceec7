"""Merge a safetensors shard tensor by tensor, with at most two tensors in memory."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora.merging.update import Update, through_4_bits
from qlora.recipe.schema import Merge, Quantization
from qlora.weights.files import opened

import torch

SAFETENSORS_NAME = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def merge_shard(
    shard: Path, output: Path, updates: dict[str, Update], merge: Merge, quantization: Quantization, device: str
) -> None:
    """Add the updates to the tensors of `shard` and write the result to `output`.

    Args:
        shard: Of the base model.
        output: The merged model's shard of the same name.
        updates: Of all shards, by tensor name.
        merge: The base weights to add to (full or dequantized), and the dtype to write.
        quantization: Of the weights that the adapter was trained on.
        device: That computes.
    """
    dtype = getattr(torch, merge.dtype)
    with opened(shard) as file:
        names = file.offset_keys()

        def make(name: str) -> torch.Tensor:
            tensor = file.get_tensor(name)
            if name in updates:
                weight = tensor.to(device)
                if merge.base == "dequantized":
                    weight = through_4_bits(weight, quantization)
                tensor = updates[name].add_to(weight, dtype).cpu()
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        header, end = {"__metadata__": file.metadata() or {"format": "pt"}}, 0
        for name in names:
            tensor = file.get_tensor(name)  # memory-mapped: this reads nothing
            floats = tensor.is_floating_point()
            begin, end = end, end + tensor.numel() * (dtype if floats else tensor.dtype).itemsize
            kind = SAFETENSORS_NAME[dtype] if floats else file.get_slice(name).get_dtype()
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        with ThreadPoolExecutor(1) as pool:  # computes the next tensor while a tensor is written
            write_safetensors(output, header, ahead(pool, make, names))


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
