"""The accepted rows: without duplicates, each with its group, which must not be in two splits."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qlora.raw_rows.conversations import Rejected, valid_text
from qlora.recipe.schema import Data
from qlora.rows.chat import Messages


class Index:
    """The accepted rows: their text is in a temporary file, what splitting needs in memory (about 150 bytes a row)."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("w+b")
        self.group_of = array("q")
        self.groups: dict[bytes, int] = {}
        self.is_test = bytearray()  # of each group: 1 if it comes from the test source
        self.seen: set[bytes] = set()

    def add(self, prepared: dict, data: Data, from_test_source: bool) -> None:
        """Add a row.

        Raises:
            Rejected: if it is a duplicate, or a training row whose group is in the test source.
        """
        group = _digest(" ".join(prepared["group"].casefold().split()))
        for kind, key in _duplicate_keys(prepared, data):
            if key in self.seen:
                raise Rejected(kind)
            self.seen.add(key)
        if group not in self.groups:
            self.groups[group] = len(self.groups)
            self.is_test.append(from_test_source)
        number = self.groups[group]
        if self.is_test[number] and not from_test_source:
            raise Rejected("its group is in data.test_source")
        self.group_of.append(number)
        self.file.write(json.dumps(prepared, ensure_ascii=False).encode() + b"\n")

    def read(self) -> Iterator[dict]:
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)

    def remove(self) -> None:
        self.file.close()
        self.path.unlink()


class Rejections:
    """rejected.jsonl, and how often each reason occurs in it."""

    def __init__(self, file):
        self.file = file
        self.reasons: Counter[str] = Counter()

    def add(self, row_id: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.file.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")


def group_of(row: dict, messages: Messages, data: Data) -> str:
    """The row's group: the value of the group column, else the schema, else the conversation's first question.

    Raises:
        Rejected: if the group column is empty.
    """
    if data.columns.group:
        value = row.get(data.columns.group)
        if value is None or value == "":
            raise Rejected(f"{data.columns.group!r} is missing")
        return valid_text(str(value))
    if data.task == "text-to-sql":
        return row[data.columns.context].strip()
    return next(message["content"] for message in messages if message["role"] == "user").strip()


def _duplicate_keys(prepared: dict, data: Data) -> Iterator[tuple[str, bytes]]:
    """Yield (reason, key) pairs; a second row with the same key is rejected for that reason.

    Near duplicates have the same bag of words, ignoring case, punctuation, numbers and literals in SQL. Keys of 16
    bytes a row keep memory small where MinHash tables would take gigabytes.
    """
    contents = [message["content"] for message in prepared["messages"]]
    yield "duplicate", _digest("\0".join(contents))
    if data.near_duplicates == "drop":
        if data.task == "text-to-sql":
            sql = re.sub(r"'[^']*'", "0", prepared["answer"])
            yield "near duplicate", _digest("\0".join([prepared["group"], _bag(prepared["question"]), _bag(sql)]))
        else:
            yield "near duplicate", _digest("\0".join(map(_bag, contents)))


def _bag(text: str) -> str:
    words = re.findall(r"\w+", re.sub(r"\d+(\.\d+)?", "0", text.casefold()))
    return " ".join(sorted(words)) or text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
