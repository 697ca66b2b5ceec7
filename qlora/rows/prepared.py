"""The rows that prepare-dataset wrote, for the stages that read them."""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlora.recipe.schema import Data, Model, Train
from qlora.rows import jsonl
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import Encoded, encode, truncate
from qlora.runtime.console import Refusal
from qlora.runtime.inputs import read_json, repair

from tqdm import tqdm

PREPARED = Path("data/prepared")
SPLITS = ("train", "validation", "test")
GENERAL = PREPARED / "general.json"  # the rows of evaluate.general


def split_file(split: str, folder: Path = PREPARED) -> Path:
    return folder / f"{split}.jsonl"


def made_from(model: Model, data: Data, train: Train) -> dict:
    """The parameters that decide the prepared rows, as data/prepared/report.json records them."""
    return {
        "model": model.model_dump(),
        "data": data.model_dump(),
        "train.max_length": train.max_length,
        "train.loss_on": train.loss_on,
    }


def rows_of(split: str, folder: Path = PREPARED) -> Iterator[dict]:
    """The rows of a split, one by one. Raises Refusal if they are missing or damaged, or there are none."""
    path = split_file(split, folder)
    for row in jsonl.iterate_made(path, "prepare-dataset"):
        if "messages" not in row:
            raise Refusal(f"{path}: a row has no messages: {repair(path, 'prepare-dataset')}")
        yield row


def read(split: str) -> list[dict]:
    """All rows of a split. Raises Refusal as `rows_of`."""
    return list(rows_of(split))


def read_general() -> list[dict]:
    """The rows of evaluate.general. Raises Refusal if their file is missing or damaged."""
    return read_json(GENERAL, "prepare-dataset")["rows"]


def first(split: str, count: int) -> list[dict]:
    """At most the first `count` rows of a split. Raises Refusal as `rows_of`."""
    return list(itertools.islice(rows_of(split), count))


def evenly(split: str, count: int, folder: Path = PREPARED) -> list[dict]:
    """At most `count` rows of a split, evenly spaced over it; one row is in memory at a time."""
    lines = sum(1 for _ in rows_of(split, folder))
    picked = {i * lines // count for i in range(count)} if count < lines else range(lines)
    return [row for i, row in enumerate(rows_of(split, folder)) if i in picked]


def encode_rows(rows: Iterable[dict], chat: Chat, max_length: int) -> Iterator[Encoded]:
    """Each row's token ids and loss mask, truncated to train.max_length (data.overlong: truncate)."""
    for row in rows:
        yield truncate(encode(chat, row["messages"]), max_length)


def read_encoded(split: str, chat: Chat, max_length: int) -> list[Encoded]:
    """All rows of a split as token ids and loss masks, truncated to `max_length`.

    The arrays hold 32-bit integers: as Python lists, the rows of a large run would take five times the memory.
    """
    shown = tqdm(encode_rows(rows_of(split), chat, max_length), desc=f"tokenize {split}", unit=" rows")
    return [Encoded(array("i", row.input_ids), array("i", row.labels)) for row in shown]
