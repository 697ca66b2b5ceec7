"""The accepted rows: without duplicates, each with its group, which must not be in two splits."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora.raw_rows.layouts import Layout
from qlora.raw_rows.rejected import EXAMPLE, Rejected, valid_text
from qlora.recipe.schema import Data
from qlora.rows.chat import Messages, Unusable

KINDS = 50  # different reasons, at most
OTHER = "another reason"
REASON = 200  # characters


class Index:
    """The accepted rows: their text is in a temporary file, what splitting needs in memory (about 150 bytes a row)."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("w+b")
        self.group_of = array("q")
        self.source_of = array("H")  # the number of the source of each row
        self.groups: dict[bytes, int] = {}
        self.is_test = bytearray()  # of each group: 1 if it comes from the test source
        self.seen: set[bytes] = set()

    def add(self, prepared: dict, data: Data, source: int, from_test_source: bool) -> None:
        """Add a row of the source with this number.

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
        self.source_of.append(source)
        self.file.write(json.dumps(prepared, ensure_ascii=False).encode() + b"\n")

    def read(self) -> Iterator[dict]:
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)

    def remove(self) -> None:
        self.file.close()
        self.path.unlink()


class Rejections:
    """rejected.jsonl; how often each reason occurs in it, and the first row that has it."""

    def __init__(self, file):
        self.file = file
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, row_id: str, reason: str, example: str = "") -> None:
        if reason not in self.reasons and len(self.reasons) >= KINDS:
            reason, example = OTHER, reason[:EXAMPLE]  # a template's own words may quote the row
        reason = reason[:REASON]
        self.reasons[reason] += 1
        self.first.setdefault(reason, row_id)
        row = {"id": row_id, "reason": reason} | ({"example": example} if example else {})
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def catching(self, row_id: str) -> Iterator[None]:
        """Add the row if the block rejects it."""
        try:
            yield
        except Rejected as reason:
            self.add(row_id, str(reason), reason.example)
        except Unusable as reason:
            self.add(row_id, str(reason))

    def most_common(self, count: int) -> str:
        """The most frequent reasons, each with its number of rows and the first of them."""
        shown = [f"{n} {reason} (first: {self.first[reason]})" for reason, n in self.reasons.most_common(count)]
        more = len(self.reasons) - len(shown)
        return "; ".join(shown) + (f"; {more} other reasons in rejected.jsonl" if more else "")


def group_of(row_id: str, row: dict, messages: Messages, layout: Layout) -> str:
    """The row's group: the value of the group column, else the schema, the document, or the first question.

    Raises:
        Rejected: if the group column is empty.
    """
    if layout.group:
        value = row.get(layout.group)
        if value is None or value == "":
            raise Rejected(f"{layout.group!r} is missing")
        return valid_text(str(value))
    if layout.format == "text-to-sql":
        return row[layout.columns["context"]].strip()
    if layout.format == "documents":
        return row_id
    return next(message["content"] for message in messages if message["role"] == "user").strip()


def _duplicate_keys(prepared: dict, data: Data) -> Iterator[tuple[str, bytes]]:
    """Yield (reason, key) pairs; a second row with the same key is rejected for that reason.

    Near duplicates have the same bag of words, ignoring case, punctuation, numbers and literals in SQL. Keys of 16
    bytes a row keep memory small where MinHash tables would take gigabytes.
    """
    contents = [text for message in prepared["messages"] for text in _texts(message)]
    yield "duplicate", _digest("\0".join(contents))
    if data.near_duplicates == "drop":
        if data.task == "text-to-sql":
            sql = re.sub(r"'[^']*'", "0", prepared["answer"])
            yield "near duplicate", _digest("\0".join([prepared["group"], _bag(prepared["question"]), _bag(sql)]))
        else:
            yield "near duplicate", _digest("\0".join(map(_bag, contents)))


def _texts(message: dict) -> Iterator[str]:
    yield message["content"]
    if extra := {key: value for key, value in message.items() if key not in ("role", "content")}:
        yield json.dumps(extra, ensure_ascii=False)


def _bag(text: str) -> str:
    words = re.findall(r"\w+", re.sub(r"\d+(\.\d+)?", "0", text.casefold()))
    return " ".join(sorted(words)) or text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
