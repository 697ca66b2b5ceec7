"""The page of `tools.preview`."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from qlora.rows.prepared import SPLITS
from tools.page import Html, document, heading, table

if TYPE_CHECKING:
    from tools.preview import Row

STYLE = """
:root { --learned: #1a7f3726; --edge: #1a7f37; --special: #8250df }
@media (prefers-color-scheme: dark) { :root { --learned: #2ea04340; --edge: #3fb950; --special: #bc8cff } }
/* The line is below underscores. */
.learned { background: var(--learned); border-bottom: 2px solid var(--edge); padding-bottom: 2px }
.special { color: var(--special); font-weight: bold }
"""


def render(
    title: str, changed: bool, report: dict, rows: "list[Row]", longest: "list[Row]", dropped: dict[str, list[dict]]
) -> str:
    """The page.

    Args:
        title: What the rows are and what they are for.
        changed: Whether params.yaml has changed since the rows were prepared.
        report: data/prepared/report.json.
        dropped: A few entries of rejected.jsonl for each reason.
    """
    note = (
        "<p class=note>params.yaml has changed since these rows were prepared: run "
        "<code>dvc repro prepare-dataset</code>.</p>"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        note if changed else "",
        "<p><span class=learned>Learned text</span> has loss: each answer with its stop token. "
        "The rest is context. <span class=special>Special tokens</span> are single tokens.</p>",
        heading("What was read"),
        table(
            ["source", "file", "format", "columns", "not read"],
            [
                [name, found["kind"], found["format"], _columns(found["columns"]), ", ".join(found["unread"]) or "-"]
                for name, found in report["sources"].items()
            ],
        ),
        heading("Rows"),
        table(
            ["split", "rows", "groups", "median tokens", "95 %", "longest", "tokens learned"],
            _splits(report),
            numbers=6,
        ),
        heading("Worth a look"),
        table(
            ["rows", "what", "such as"],
            [[found["rows"], kind, _lines(found["examples"])] for kind, found in report["findings"].items()],
            first=True,
        )
        if report["findings"]
        else "<p>Nothing.</p>",
        heading("Dropped rows"),
        table(
            ["rows", "why", "such as"],
            [
                [count, reason, _lines(map(_dropped, dropped[reason]))]
                for reason, count in report["rows"]["rejected"].items()
            ],
            first=True,
        )
        if dropped
        else "<p>None.</p>",
        heading("Rows as the model sees them"),
        *map(_row, rows),
        heading("The longest rows"),
        *map(_row, longest),
    ]
    return document(title, STYLE, parts)


def _lines(texts: Iterable[str]) -> Html:
    return Html("<br>".join(map(escape, texts)))


def _columns(columns: dict[str, str]) -> str:
    return ", ".join(part if part == name else f"{part}: {name}" for part, name in columns.items())


def _splits(report: dict) -> list[list]:
    rows = []
    for split in SPLITS:
        tokens = report["tokens"][split]
        share = f"{tokens['supervised'] / max(tokens['total'], 1):.0%}"
        counts = [report["rows"][split], report["groups"][split]]
        rows.append([split, *counts, *(tokens.get(key, "-") for key in ("p50", "p95", "max")), share])
    return rows


def _dropped(entry: dict) -> str:
    return f"{entry['id']}: {entry['example']}" if entry.get("example") else entry["id"]


def _row(row: "Row") -> str:
    cut = ", cut to train.max_length" if row.truncated else ""
    context = f", {row.unlearned} of its earlier answers context only" if row.unlearned else ""
    head = f"<b>{escape(row.id)}</b>{row.split}, {row.tokens} tokens{cut}, {row.learned} learned{context}"
    pieces = []
    for piece in row.pieces:
        kinds = " ".join(kind for kind in ("learned", "special") if getattr(piece, kind))
        text = escape(piece.text)
        pieces.append(f'<span class="{kinds}">{text}</span>' if kinds else text)
    return f"<div class=row><div class=head>{head}</div><pre>{''.join(pieces)}</pre></div>"
