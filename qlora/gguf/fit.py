"""A GGUF of a given size: the type of each tensor that makes the predicted KL divergence least.

`tabulate` measures once what each type of each tensor costs; `choose` then solves for any size in a moment.
"""

import csv
import io
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from qlora.llama_cpp import tools
from qlora.recipe.artifacts import FIT
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json, write_text

from gguf import GGUFReader, ReaderTensor

TABLE = "sensitivity.json"  # beside the bf16 GGUF
CHOICE = "types.csv"  # beside the GGUF that was fitted

# Tensor type -> llama-quantize's name of a file that has it as its main type. The K types are in blocks of 256 weights,
# and the others, which are worse at the same size, are for tensors whose rows are not.
OF_256 = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "IQ4_XS": "IQ4_XS", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6_K": "Q6_K"}
OF_32 = {"IQ4_NL": "IQ4_NL", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1"}
LARGEST = "Q8_0"
FILE_TYPES = OF_256 | OF_32 | {LARGEST: LARGEST}


@dataclass(frozen=True)
class Cost:
    """One type of one tensor: bytes, and the KL divergence in nats a token that it alone adds."""

    size: int
    kl: float


@dataclass(frozen=True)
class Table:
    """What each choice costs.

    Attributes:
        tensors: Tensor -> type -> its cost, for the tensors that llama-quantize quantizes.
        other: Bytes of all other tensors.
        header: Bytes before the tensors.
        weights: Number of weights, of all tensors.
    """

    tensors: dict[str, dict[str, Cost]]
    other: int
    header: int
    weights: int


def candidates(width: int) -> tuple[str, ...]:
    """The types that a tensor with rows of `width` weights may get; none if they cannot be split into blocks."""
    if width % 32:
        return ()
    return (*(OF_32 if width % 256 else OF_256), LARGEST)


def tabulate(gguf: Path, matrix: Path | None, divergence: Callable[[ReaderTensor, ReaderTensor], float]) -> Table:
    """Quantize the bf16 `gguf` into each type once and measure every tensor.

    Args:
        gguf: The bf16 GGUF.
        matrix: Its importance matrix, if there is one.
        divergence: What a quantized tensor, given after the bf16 one, adds.
    """
    source = GGUFReader(gguf)
    plain = {tensor.name: tensor for tensor in source.tensors}
    costs: dict[str, dict[str, Cost]] = {}
    for type_ in FILE_TYPES:
        wanted = {name: type_ for name, tensor in plain.items() if type_ in candidates(int(tensor.shape[0]))}
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(dir=gguf.parent) as work:
            quantized = Path(work) / "model.gguf"
            quantize(gguf, quantized, wanted, LARGEST, matrix)
            for tensor in GGUFReader(quantized).tensors:
                # llama-quantize decides which tensors it quantizes at all.
                if tensor.tensor_type.name == type_ != plain[tensor.name].tensor_type.name:
                    cost = Cost(int(tensor.n_bytes), divergence(plain[tensor.name], tensor))
                    costs.setdefault(tensor.name, {})[type_] = cost
    return Table(
        costs,
        sum(int(tensor.n_bytes) for name, tensor in plain.items() if name not in costs),
        source.data_offset + 4096,  # llama-quantize adds some lines about the matrix
        sum(int(tensor.n_elements) for tensor in plain.values()),
    )


def quantize(gguf: Path, quantized: Path, types: dict[str, str], file_type: str, matrix: Path | None) -> None:
    """Write `gguf` as `quantized` with the type of each tensor in `types`; all others get `file_type`'s."""
    listed = quantized.with_suffix(".types")
    lines = [f"^{re.escape(name)}$={type_}\n" for name, type_ in types.items()]
    listed.write_text("".join(lines), encoding="utf-8")
    tools.quantize(gguf, quantized, file_type, matrix, tensor_types=listed)
    listed.unlink()


def write_table(path: Path, table: Table) -> None:
    write_json(path, asdict(table))


def read_table(path: Path) -> Table:
    """Raises Refusal if convert-gguf has not measured it."""
    if not path.is_file():
        raise Refusal(f"{path} is not there: set gguf.sensitivity to true and run `dvc repro convert-gguf`")
    content = json.loads(path.read_text(encoding="utf-8"))
    tensors = {
        name: {type_: Cost(**cost) for type_, cost in types.items()} for name, types in content.pop("tensors").items()
    }
    return Table(tensors, **content)


def budget(table: Table, name: str) -> int:
    """Bytes that the chosen tensors of the artifact `name` (fit-4.5bpw, fit-100MB) may have together.

    Bits per weight count all tensors, as llama-quantize does; megabytes count the whole file.

    Raises:
        Refusal: if no choice of types has this size, with the smallest and the largest that can be.
    """
    number, unit = FIT.fullmatch(name).groups()
    bytes_of_one = {"bpw": table.weights / 8, "MB": 1e6, "GB": 1e9}[unit]
    beside = table.other + (0 if unit == "bpw" else table.header)
    least, most = (
        (beside + sum(pick(cost.size for cost in types.values()) for types in table.tensors.values())) / bytes_of_one
        for pick in (min, max)
    )
    smallest, largest = math.ceil(least * 100) / 100, math.ceil(most * 100) / 100
    if not smallest <= float(number) <= largest:
        raise Refusal(
            f"gguf.types: {name} cannot be made; this model's sizes are from {smallest:g} to {largest:g} {unit}, "
            f"such as fit-{smallest:g}{unit}"
        )
    return int(float(number) * bytes_of_one) - beside


def choose(table: Table, most: int) -> dict[str, str]:
    """The type of each tensor with the least sum of KL divergences whose bytes are at most `most`.

    For a price of a byte each tensor's best type is found alone; the least price that meets the size is found by
    bisection. What room it leaves is filled with the changes that gain most for a byte.
    """

    def at(price: float) -> dict[str, str]:
        return {
            name: min(types, key=lambda type_: (types[type_].kl + price * types[type_].size, types[type_].size))
            for name, types in table.tensors.items()
        }

    def size(types: dict[str, str]) -> int:
        return sum(table.tensors[name][type_].size for name, type_ in types.items())

    low, high = 0.0, 1.0  # nats a byte; at 1 every tensor takes its smallest type
    if size(at(low)) <= most:
        return at(low)
    for _ in range(100):
        price = (low + high) / 2
        low, high = (price, high) if size(at(price)) > most else (low, price)
    chosen = at(high)
    room = most - size(chosen)
    while True:
        changes = []
        for name, types in table.tensors.items():
            now = types[chosen[name]]
            for type_, cost in types.items():
                if 0 < cost.size - now.size <= room and cost.kl < now.kl:
                    changes.append(((now.kl - cost.kl) / (cost.size - now.size), name, type_))
        if not changes:
            return chosen
        _, name, type_ = max(changes)
        room -= table.tensors[name][type_].size - table.tensors[name][chosen[name]].size
        chosen[name] = type_


def main_type(table: Table, chosen: dict[str, str]) -> str:
    """llama-quantize's name of the file: that of the type that most bytes have."""
    sizes = Counter()
    for name, type_ in chosen.items():
        sizes[type_] += table.tensors[name][type_].size
    return FILE_TYPES[sizes.most_common(1)[0][0]]


def predicted(table: Table, chosen: dict[str, str]) -> float:
    """The KL divergence of the whole choice, in nats a token."""
    return sum(table.tensors[name][type_].kl for name, type_ in chosen.items())


def write_choice(path: Path, table: Table, chosen: dict[str, str]) -> None:
    """A line for each tensor: its type, bytes, and the KL divergence that it is predicted to add."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["tensor", "type", "bytes", "predicted_kl"])
    for name, type_ in chosen.items():
        cost = table.tensors[name][type_]
        lines.writerow([name, type_, cost.size, f"{cost.kl:.3g}"])
    write_text(path, text.getvalue())
