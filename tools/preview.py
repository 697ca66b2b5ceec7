"""preview: the prepared rows as the model will see them, in the terminal and as a page to open in a browser.

    python -m tools.preview                        # a few rows, and data/preview.html with more
    python -m tools.preview --id rows.jsonl:12     # this row

Special tokens are visible, and what is learned stands out. The page also has the longest rows, what a look at all rows
found, and each reason for which rows were dropped, with such rows.
"""

import argparse
import heapq
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS
from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.rows import jsonl
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import IGNORED, encode, truncate
from qlora.rows.prepared import PREPARED, SPLITS, evenly, made_from, split_file
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text
from qlora.source import base_model
from tools import preview_page

ROWS = 3  # in the terminal
PAGE_ROWS = {"train": 10, "validation": 3, "test": 3}
LONGEST = 3
DROPPED = 3  # rows that are shown for a reason
GREEN, PURPLE, PLAIN = "\033[32m", "\033[35m", "\033[0m"


@dataclass(frozen=True)
class Piece:
    """Adjacent tokens of one kind."""

    text: str
    learned: bool
    special: bool


@dataclass(frozen=True)
class Row:
    """A prepared row as training sees it."""

    id: str
    split: str
    group: str
    tokens: int
    learned: int
    truncated: bool
    unlearned: int
    pieces: list[Piece]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", help="show this row, as report.json, rejected.jsonl and the summary name it: FILE:LINE")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to show in the terminal")
    parser.add_argument("--output", type=Path, default=Path("data/preview.html"), help="the page to write")
    options = parser.parse_args()
    params = load_params()
    if not (PREPARED / "report.json").is_file():
        raise Refusal(f"{PREPARED} is missing; run `dvc repro prepare-dataset` first")
    report = json.loads((PREPARED / "report.json").read_text(encoding="utf-8"))
    chat = base_model.load_chat(ARTIFACTS["base"].folder)
    length = params.train.max_length
    if options.id:
        show(seen(*find_row(options.id), chat, length))
        return

    for row in evenly("train", max(options.rows, 0)):
        show(seen("train", row, chat, length))
    rows = [seen(split, row, chat, length) for split, count in PAGE_ROWS.items() for row in evenly(split, count)]
    longest = [seen(split, row, chat, length) for split, row in longest_rows()]
    changed = report["made_from"] != made_from(params.model, params.data, params.train)
    write_text(options.output, preview_page.render(title(params), changed, report, rows, longest, dropped(report)))
    print(f"more rows, the longest, and why rows were dropped: {options.output}")


def title(params: Params) -> str:
    return f"{params.data.name} for {params.model.id}"


def find_row(row_id: str) -> tuple[str, dict]:
    """The split and the row with this id. Raises Refusal if it was dropped, with the reason, or is in no split."""
    for split in SPLITS:
        for _, row in jsonl.read(split_file(split)):
            if row["id"] == row_id:
                return split, row
    for _, row in jsonl.read(PREPARED / "rejected.jsonl"):
        if row["id"] == row_id:
            raise Refusal(f"{row_id} was dropped: {row['reason']}")
    raise Refusal(f"--id: there is no row {row_id}; ids are FILE:LINE, as in {PREPARED}/train.jsonl")


def longest_rows() -> list[tuple[str, dict]]:
    rows = ((row["tokens"], split, at, row) for split in SPLITS for at, row in jsonl.read(split_file(split)))
    return [(split, row) for _, split, _, row in heapq.nlargest(LONGEST, rows)]


def dropped(report: dict) -> dict[str, list[dict]]:
    """A few entries of rejected.jsonl for each reason."""
    found: dict[str, list[dict]] = {reason: [] for reason in report["rows"]["rejected"]}
    for _, row in jsonl.read(PREPARED / "rejected.jsonl"):
        if len(found[row["reason"]]) < DROPPED:
            found[row["reason"]].append(row)
    return found


def seen(split: str, row: dict, chat: Chat, max_length: int) -> Row:
    """The row as training sees it."""
    encoded = truncate(encode(chat, row["messages"]), max_length)
    cut = row["tokens"] > max_length
    pieces = list(split_pieces(chat, encoded.input_ids, encoded.labels))
    return Row(row["id"], split, row["group"], row["tokens"], encoded.supervised, cut, row.get("unlearned", 0), pieces)


def split_pieces(chat: Chat, ids: list[int], labels: list[int]) -> Iterator[Piece]:
    """The text of adjacent tokens that are of one kind."""
    specials = {id_ for id_, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    before = ""
    for at in range(1, len(ids) + 1):
        kind = (labels[at - 1] != IGNORED, ids[at - 1] in specials)
        if at < len(ids) and kind == (labels[at] != IGNORED, ids[at] in specials):
            continue
        # A tokenizer may drop the space before a text that is decoded alone.
        text = chat.tokenizer.decode(ids[:at], clean_up_tokenization_spaces=False)
        yield Piece(text[len(before) :], *kind)
        before = text


def show(row: Row) -> None:
    """Print a row: learned text in green, or in ⟦⟧ where there are no colours; special tokens in purple."""
    colours = sys.stdout.isatty() or "FORCE_COLOR" in os.environ
    cut = ", cut" if row.truncated else ""
    print(f"── {row.split} {row.id}: {row.tokens} tokens{cut}, {row.learned} learned")
    text, learned = "", False
    for piece in row.pieces:
        if colours:
            colour = GREEN if piece.learned else PURPLE if piece.special else ""
            text += f"{colour}{piece.text}{PLAIN if colour else ''}"
            continue
        if piece.learned != learned:
            text += "⟦" if piece.learned else "⟧"
            learned = piece.learned
        text += piece.text
    print(text + ("⟧" if learned else ""), end="\n\n")


if __name__ == "__main__":
    run_stage(main)
