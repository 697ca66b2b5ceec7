"""The rows that prepare-dataset wrote, for the stages that read them."""

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlora.recipe.schema import Data, Model
from qlora.rows import jsonl
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import Encoded, encode, truncate

from tqdm import tqdm

PREPARED = Path("data/prepared")
SPLITS = ("train", "validation", "test")


def split_file(split: str) -> Path:
    return PREPARED / f"{split}.jsonl"


def made_from(model: Model, data: Data, max_length: int) -> dict:
    """The parameters that decide the prepared rows, as data/prepared/report.json records them."""
    return {"model": model.model_dump(), "data": data.model_dump(), "train.max_length": max_length}


def read(split: str) -> list[dict]:
    """All rows of a split. Raises Refusal if they are missing."""
    return [row for _, row in jsonl.read(split_file(split))]


def first(split: str, count: int) -> list[dict]:
    """At most the first `count` rows of a split. Raises Refusal if they are missing."""
    return [row for _, row in itertools.islice(jsonl.read(split_file(split)), count)]


def evenly(split: str, count: int) -> list[dict]:
    """At most `count` rows of a split, evenly spaced over it; the file is read line by line."""
    with split_file(split).open(encoding="utf-8") as file:
        lines = sum(1 for _ in file)
        file.seek(0)
        picked = {i * lines // count for i in range(count)}
        return [json.loads(line) for i, line in enumerate(file) if i in picked]


def encode_rows(rows: Iterable[dict], chat: Chat, max_length: int) -> Iterator[Encoded]:
    """Each row's token ids and loss mask, truncated to train.max_length (data.overlong: truncate)."""
    for row in rows:
        yield truncate(encode(chat, row["messages"]), max_length)


def read_encoded(split: str, chat: Chat, max_length: int) -> list[Encoded]:
    """All rows of a split as token ids and loss masks, truncated to `max_length`.

    The arrays hold 32-bit integers: as Python lists, the rows of a large run would take five times the memory.
    """
    rows = (row for _, row in jsonl.read(split_file(split)))
    shown = tqdm(encode_rows(rows, chat, max_length), desc=f"tokenize {split}", unit=" rows")
    return [Encoded(array("i", row.input_ids), array("i", row.labels)) for row in shown]
