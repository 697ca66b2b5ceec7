"""Whether an artifact is there and whole: a file's own header says where it ends, so its weights are not read."""

import json
import math
import mmap
import struct
from pathlib import Path

from qlora.recipe.artifacts import BASE_RECORD, Artifact
from qlora.runtime.console import Refusal
from qlora.runtime.inputs import DAMAGE, made_by, read_json
from qlora.weights.files import INDEX, shards

from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType
from safetensors import SafetensorError, safe_open

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json")
SIZES = {1: "UINT8 INT8 BOOL", 2: "UINT16 INT16", 4: "UINT32 INT32 FLOAT32", 8: "UINT64 INT64 FLOAT64"}
VALUE_BYTES = {GGUFValueType[name]: size for size, names in SIZES.items() for name in names.split()}


def check_made(artifact: Artifact) -> None:
    """Raise Refusal unless its stage has made the artifact, and each of its files is whole."""
    folder, stage = artifact.folder, artifact.stage
    if not folder.is_dir():
        named = f" ({artifact.listed_in} has to name it)" if artifact.listed_in else ""
        raise Refusal(
            f"{folder} is not there; run `dvc repro {stage}`, which makes it{named}, or `dvc pull {folder}` if a "
            "remote has it"
        )
    read_json(folder / BASE_RECORD, stage)
    for path in sorted({*parts(artifact), *(path for path in folder.iterdir() if not path.is_dir())}):
        with made_by(stage, path):
            check_whole(path)


def parts(artifact: Artifact) -> list[Path]:
    """The files without which the artifact cannot be used."""
    folder = artifact.folder
    if artifact.name == "base":  # a record alone
        return []
    if artifact.answered_by == "llama.cpp":
        return [artifact.gguf]
    if artifact.name == "adapter":
        return [folder / name for name in ADAPTER]
    with made_by(artifact.stage, folder / INDEX):
        weights = shards(folder) or [folder / "model.safetensors"]
    return [*(folder / name for name in MODEL), *weights]


def check_whole(path: Path) -> None:
    """Raise unless `path` can be opened, and holds what a file of its suffix says that it holds."""
    with path.open("rb") as file:
        if path.suffix == ".json":
            json.load(file)
        elif path.suffix == ".gguf":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if (end := gguf_end(content)) > len(content):
                    raise ValueError(f"it ends at byte {len(content):,} of {end:,}")
        elif path.suffix == ".safetensors":
            try:
                safe_open(path, "np").__exit__(None, None, None)
            except SafetensorError as error:
                raise ValueError(str(error).removeprefix("Error while deserializing header: ")) from None


def is_whole(path: Path) -> bool:
    """Whether `path` is there, and whole."""
    try:
        check_whole(path)
    except (FileNotFoundError, *DAMAGE):
        return False
    return True


def gguf_end(content: mmap.mmap) -> int:
    """Bytes of a GGUF file up to the end of its last tensor. GGUFReader takes seconds for a large vocabulary."""
    if content[:4] != b"GGUF":
        raise ValueError("it does not begin as a GGUF file does")

    def after_text(position: int) -> int:
        return position + 8 + struct.unpack_from("<Q", content, position)[0]

    def after_value(position: int, type_: int) -> int:
        if type_ == GGUFValueType.STRING:
            return after_text(position)
        if type_ != GGUFValueType.ARRAY:
            return position + VALUE_BYTES[type_]
        type_, count = struct.unpack_from("<IQ", content, position)
        position += 12
        if type_ in VALUE_BYTES:
            return position + count * VALUE_BYTES[type_]
        for _ in range(count):
            position = after_value(position, type_)
        return position

    tensors, values = struct.unpack_from("<QQ", content, 8)
    position, alignment, end = 24, GGUF_DEFAULT_ALIGNMENT, 0
    for _ in range(values):
        start, position = position + 8, after_text(position)
        name = content[start:position]
        (type_,) = struct.unpack_from("<I", content, position)
        if name == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", content, position + 4)
        position = after_value(position + 4, type_)
    for _ in range(tensors):
        position = after_text(position)
        (dimensions,) = struct.unpack_from("<I", content, position)
        *shape, type_, offset = struct.unpack_from(f"<{dimensions}QIQ", content, position + 4)
        position += 16 + 8 * dimensions
        weights, size = GGML_QUANT_SIZES[type_]  # of a block
        end = max(end, offset + math.prod(shape) // weights * size)
    return -(-position // alignment) * alignment + end
