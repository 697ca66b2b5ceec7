"""Tables in Markdown that line up as plain text, too."""

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned left, the others right."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    lines = [
        "| " + " | ".join(_pad(row[at], widths[at], at < left) for at in range(len(heads))) + " |" for row in cells
    ]
    rule = "|".join("-" * (width + 1) + ("-" if at < left else ":") for at, width in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _pad(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
