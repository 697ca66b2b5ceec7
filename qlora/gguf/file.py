"""Read a GGUF file back: what it holds, and whether it is the model that it was made from."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora.runtime.console import Refusal

from gguf import GGUFReader, LlamaFileType

if TYPE_CHECKING:  # transformers takes seconds to import, and only annotations need it
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Contents:
    """The header of a GGUF file.

    Attributes:
        architecture: llama.cpp's name of it.
        file_type: llama-quantize's name of the type.
        layers: Number of layers.
        width: Hidden size.
        vocabulary: Number of tokens.
        shapes: Tensor name -> shape.
        types: Tensor type -> its share of all weights, largest first.
        template: The chat template; None if the file has none.
        bos, eos, pad: Token ids; None where the file names none.
        adds_bos: Whether the tokenizer puts a BOS before every prompt.
        size: Bytes on disk.
    """

    architecture: str
    file_type: str
    layers: int
    width: int
    vocabulary: int
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, float]
    template: str | None
    bos: int | None
    eos: int | None
    pad: int | None
    adds_bos: bool
    size: int


def read(path: Path) -> Contents:
    """Read the header and the tensor table of `path`; the weights are only mapped.

    Raises:
        Refusal: if it is no GGUF file, or ends before its last tensor does.
    """
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise Refusal(
            f"{path} is truncated, or no GGUF file ({path.stat().st_size:,} bytes; {error}): check the disk, "
            "and run the same again"
        ) from None

    def value(key: str):
        field = reader.get_field(key)
        return field.contents() if field else None

    weights = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    architecture = value("general.architecture")
    return Contents(
        architecture=architecture,
        file_type=LlamaFileType(value("general.file_type")).name.removeprefix("MOSTLY_"),
        layers=value(f"{architecture}.block_count"),
        width=value(f"{architecture}.embedding_length"),
        vocabulary=len(reader.get_field("tokenizer.ggml.tokens").data),
        shapes={tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors},
        types={name: count / weights.total() for name, count in weights.most_common()},
        template=value("tokenizer.chat_template"),
        bos=value("tokenizer.ggml.bos_token_id"),
        eos=value("tokenizer.ggml.eos_token_id"),
        pad=value("tokenizer.ggml.padding_token_id"),
        adds_bos=bool(value("tokenizer.ggml.add_bos_token")),
        size=path.stat().st_size,
    )


def check_converted(path: Path, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> Contents:
    """Read `path` back and compare it with the Hugging Face model that it was converted from.

    Raises:
        Refusal: naming everything that differs.
    """
    contents = read(path)
    text = config.get_text_config()
    expected = {
        "file_type": "BF16",
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "vocabulary": text.vocab_size,
        "template": tokenizer.chat_template,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }
    differences = [
        f"{name} is {found!r}, the model's is {wanted!r}"
        for name, wanted in expected.items()
        # The converter fills in an id that a tokenizer does not name.
        if (found := getattr(contents, name)) != wanted and wanted is not None
    ]
    if differences:
        raise Refusal(f"{path} is not the model it was made from: {'; '.join(differences)}")
    return contents


def check_quantized(path: Path, source: Path, type_: str) -> Contents:
    """Read `path` back and compare it with `type_` and with the GGUF `source` that it was quantized from.

    Raises:
        Refusal: naming everything that differs.
    """
    contents, original = read(path), read(source)
    names = ("architecture", "layers", "width", "vocabulary", "template", "bos", "eos", "pad")
    differences = [name for name in names if getattr(contents, name) != getattr(original, name)]
    if contents.shapes != original.shapes:
        tensors = set(contents.shapes.items()) ^ set(original.shapes.items())
        differences.append(f"tensors ({', '.join(sorted({name for name, _ in tensors})[:5])})")
    if differences:
        raise Refusal(f"{path} differs from {source} in more than its types: {', '.join(differences)}")
    if contents.file_type != type_:
        raise Refusal(f"{path} is of type {contents.file_type}, and {type_} was asked for")
    return contents


def check_adapter(path: Path, tensors: int, alpha: float) -> int:
    """Read the adapter `path` back: it must hold `tensors` tensors and scale by `alpha`; the number of pairs.

    Raises:
        Refusal: naming what differs.
    """
    reader = GGUFReader(path)
    scale = reader.get_field("adapter.lora.alpha").contents()
    if len(reader.tensors) != tensors or abs(scale - alpha) > 1e-3 * alpha:
        raise Refusal(
            f"{path} is not the adapter it was made from: it has {len(reader.tensors)} tensors of {tensors}, and alpha "
            f"{scale:g} for {alpha:g}; set gguf.adapters to [], and serve the merged model"
        )
    return tensors // 2


def describe_types(contents: Contents) -> str:
    """The tensor types with their share of the weights: 'Q4_K 62 %, Q6_K 38 %'."""
    return ", ".join(f"{name} {share:.0%}" for name, share in contents.types.items() if share >= 0.005)
