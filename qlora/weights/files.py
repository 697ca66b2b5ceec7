"""A model's safetensors files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora.runtime.console import Refusal

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: those that the index names, if there is one; some folders hold
    copies of the weights in other files."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def weights_bytes(folder: Path) -> int:
    """Size of all weights in bytes."""
    return sum(path.stat().st_size for path in shards(folder))


@contextmanager
def opened(shard: Path) -> Iterator[safe_open]:
    """Open a safetensors file; its tensors are memory-mapped, not read.

    Raises:
        Refusal: if it is broken.
    """
    try:
        with safe_open(shard, "pt") as file:
            yield file
    except SafetensorError as error:
        raise Refusal(
            f"{shard}: broken ({error}); put the right file there, or, in the hub's cache, run "
            f"`rm '{shard.resolve()}'` and the same again, which fetches it anew"
        ) from None


def tensor_names(shard: Path) -> list[str]:
    """Names of the tensors in a safetensors file. Raises Refusal if it is broken."""
    with opened(shard) as file:
        return list(file.keys())
