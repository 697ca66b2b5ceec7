"""What the pages of the tools share: one self-contained HTML file with one look, for any width, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --note: #d29922; --soft: #57606a }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #f85149; --soft: #9198a1 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: var(--width, 60rem); margin: 0 auto; padding: 1rem }
h1 { font-size: 1.4rem; margin: 0.5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0 }
td { border-top: 1px solid var(--line) }
p { overflow-wrap: anywhere }
.table { overflow-x: auto }
td.n, th.n { text-align: right; width: 5rem }
@media (max-width: 40rem) { table { font-size: 0.8rem } td, th { padding-right: 0.5rem } td.n, th.n { width: auto } }
.row { border: 1px solid var(--line); border-radius: 6px; margin: 0.75rem 0 }
.head { padding: 0.4rem 0.75rem; border-bottom: 1px solid var(--line); font-size: 0.85rem; overflow-wrap: anywhere }
.head b { margin-right: 0.75rem }
pre { margin: 0; padding: 0.75rem; white-space: pre-wrap; overflow-wrap: anywhere; font: 0.85rem/1.55 monospace }
code { font: 0.85rem monospace }
.note { border-left: 4px solid var(--note); padding-left: 0.75rem }
"""


class Html(str):
    """Text that is HTML already; `table` escapes any other."""


def document(title: str, style: str, parts: Iterable[str]) -> str:
    """The page: STYLE and `style`, then the parts that are not empty."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}{style}</style>'
        f"</head>\n<body>\n{chr(10).join(filter(None, parts))}\n</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def table(header: Sequence[str], rows: Iterable[Sequence], numbers: int = 0, first: bool = False) -> str:
    """A table; the last `numbers` columns are numbers, or the first one."""
    kinds = [" class=n" if at >= len(header) - numbers or (first and at == 0) else "" for at in range(len(header))]
    lines = [[f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True)]]
    lines += [[f"<td{kind}>{_html(value)}</td>" for kind, value in zip(kinds, row, strict=True)] for row in rows]
    return "<div class=table><table>" + "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines) + "</table></div>"


def _html(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))
