"""Markdown tables that are aligned as plain text, too, and metrics as a person reads them."""

import math
from collections.abc import Mapping, Sequence

from qlora.recipe.metrics import METRICS
from qlora.reporting.bootstrap import Interval

import pandas


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned left, the others right."""
    aligned = ["left"] * left + ["right"] * (len(heads) - left)
    frame = pandas.DataFrame(rows, columns=heads, dtype=str)
    return frame.to_markdown(index=False, colalign=aligned if rows else None, disable_numparse=True)


def metric_table(metrics: Mapping[str, Mapping[str, float]], names: Sequence[str], intervals: Mapping = {}) -> str:
    """A row an artifact, a column for each of these metrics that all artifacts have.

    Args:
        metrics: Artifact -> metric -> value.
        names: Of metrics.
        intervals: (artifact, metric) -> Interval, shown behind the value.
    """
    names = [name for name in names if all(name in values for values in metrics.values())]

    def cell(artifact: str, name: str) -> str:
        value, interval = metrics[artifact][name], intervals.get((artifact, name))
        if interval and interval.low < interval.high:
            return with_ends(name, Interval(value, interval.low, interval.high))
        return show(name, value)

    heads = ["artifact", *(METRICS[name].heading for name in names)]
    return table(heads, [[artifact, *(cell(artifact, name) for name in names)] for artifact in metrics])


def with_ends(name: str, interval: Interval) -> str:
    """A metric's value with the ends of its interval."""
    return f"{show(name, interval.value)} ({show(name, interval.low)} to {show(name, interval.high)})"


def show(name: str, value: float | None) -> str:
    """A metric's value as text."""
    if value is None or math.isnan(value):
        return "-"
    unit = METRICS[name].unit
    if unit == "share":
        return f"{value:.1%}"
    if unit in ("MB", "ms", "tokens", "tokens/s"):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return number(value)


def change(name: str, difference: Interval) -> str:
    """A metric's difference and its interval as text; of shares in percentage points."""
    scale, digits = (100, 1) if METRICS[name].unit == "share" else (1, 4)
    value, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.value, difference.low, difference.high))
    return value if math.isnan(difference.low) else f"{value} ({low} to {high})"


def number(value: float | None) -> str:
    """A number with about three significant digits."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 10:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.5f}"


def one_line(text: str, most: int = 300) -> str:
    """`text` in one line of at most about `most` characters, without backquotes."""
    text = " ".join(text.split()).replace("`", "'")
    return text if len(text) <= most else text[:most] + " ..."
