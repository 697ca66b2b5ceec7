"""A GGUF of a tiny model with zero weights that serves a given tokenizer and chat template."""

import struct
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of fields
NUMBER, LENGTH = struct.Struct("<I"), struct.Struct("<Q")
SIZES = {
    GGUFValueType.UINT8: 1, GGUFValueType.INT8: 1, GGUFValueType.BOOL: 1, GGUFValueType.UINT16: 2,
    GGUFValueType.INT16: 2, GGUFValueType.UINT32: 4, GGUFValueType.INT32: 4, GGUFValueType.FLOAT32: 4,
    GGUFValueType.UINT64: 8, GGUFValueType.INT64: 8, GGUFValueType.FLOAT64: 8,
}  # fmt: skip
WIDTH = 32


def write(vocabulary: Path, model: Path) -> None:
    """Write the tokenizer, template and name in `vocabulary` (the converter's --vocab-only) with one zero Llama layer.

    The fields are copied as bytes: GGUFReader takes half a minute for a vocabulary of 200,000 tokens.
    """
    fields = vocabulary.read_bytes()
    kept = [field for name, field in _fields(fields) if name.startswith("tokenizer.") or name in ("general.name",)]
    tokens = next(_array_length(field) for field in kept if b"tokenizer.ggml.tokens" in field[:40])
    bare = model.with_suffix(".bare")
    _write_bare(bare, tokens)
    content = bare.read_bytes()
    magic, version, tensors, count = HEADER.unpack_from(content)
    own = [field for _, field in _fields(content)]
    infos_begin = HEADER.size + sum(map(len, own))
    infos_end, data = _end_of_tensor_infos(content, infos_begin, tensors), GGUFReader(bare).data_offset
    head = HEADER.pack(magic, version, tensors, count + len(kept))
    head += b"".join(own + kept) + content[infos_begin:infos_end]
    model.write_bytes(head + bytes(-len(head) % 32) + content[data:])
    bare.unlink()


def _write_bare(path: Path, tokens: int) -> None:
    """Write one Llama layer, all zero, without a tokenizer."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (tokens, WIDTH), "output_norm": (WIDTH,), "blk.0.attn_norm": (WIDTH,)}
    shapes |= {"blk.0.ffn_norm": (WIDTH,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}"] = (WIDTH, WIDTH)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fields(content: bytes) -> list[tuple[str, bytes]]:
    """Name and bytes of each field of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
    at, found = HEADER.size, []
    for _ in range(HEADER.unpack_from(content)[3]):
        begin, at = at, _skip(content, at, GGUFValueType.STRING)
        name = content[begin + LENGTH.size : at].decode()
        at = _skip(content, at + NUMBER.size, GGUFValueType(NUMBER.unpack_from(content, at)[0]))
        found.append((name, content[begin:at]))
    return found


def _skip(content: bytes, at: int, kind: GGUFValueType) -> int:
    """Where the value of this kind at `at` ends."""
    if kind == GGUFValueType.STRING:
        return at + LENGTH.size + LENGTH.unpack_from(content, at)[0]
    if kind != GGUFValueType.ARRAY:
        return at + SIZES[kind]
    inner, length = GGUFValueType(NUMBER.unpack_from(content, at)[0]), LENGTH.unpack_from(content, at + NUMBER.size)[0]
    at += NUMBER.size + LENGTH.size
    if inner in SIZES:
        return at + SIZES[inner] * length
    for _ in range(length):
        at = _skip(content, at, inner)
    return at


def _array_length(field: bytes) -> int:
    """Number of values of a field that is an array."""
    name_end = _skip(field, 0, GGUFValueType.STRING)
    return LENGTH.unpack_from(field, name_end + 2 * NUMBER.size)[0]


def _end_of_tensor_infos(content: bytes, at: int, tensors: int) -> int:
    for _ in range(tensors):  # name, number of dimensions, dimensions, type, offset
        at = _skip(content, at, GGUFValueType.STRING)
        at += NUMBER.size + LENGTH.size * NUMBER.unpack_from(content, at)[0] + NUMBER.size + LENGTH.size
    return at
