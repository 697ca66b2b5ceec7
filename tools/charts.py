"""Small charts as SVG, which a page can hold: a sparkline, curves over each other, values with intervals.

Colours come from the page: run N has the class rN, which also lets the page hide it.
"""

import math
from collections.abc import Sequence
from html import escape

from tools.page import Html

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 8, 36  # margins of the axes


def sparkline(values: Sequence[float], run: int) -> Html:
    """A curve without axes, on a logarithmic scale if it can be."""
    if len(values) < 2:
        return Html("")
    ys = _scaled(values)
    low, high = min(ys), max(ys)
    points = [
        f"{100 * at / (len(ys) - 1):.1f},{22 - 20 * (y - low) / ((high - low) or 1):.1f}" for at, y in enumerate(ys)
    ]
    return Html(
        f'<svg class="spark r{run}" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" '
        f'aria-label="from {values[0]:.3g} to {values[-1]:.3g}"><polyline points="{" ".join(points)}"/></svg>'
    )


def curves(faint: dict[int, Points], strong: dict[int, Points], x: str, y: str) -> Html:
    """Curves of several runs over each other.

    Args:
        faint: Run -> points of its background curve.
        strong: Run -> points of the curve to read; each point is marked.
        x: What the points are at.
        y: What they measure; on a logarithmic scale if all are above 0.
    """
    points = [point for part in (faint, strong) for curve in part.values() for point in curve]
    if not points:
        return Html("")
    last = max(at for at, _ in points)
    values = [value for _, value in points]
    low, high = min(_scaled(values)), max(_scaled(values))
    logarithmic = min(values) > 0

    def place(at: float, value: float) -> tuple[float, float]:
        up = (math.log10(value) if logarithmic else value) - low
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * at / (last or 1),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up / ((high - low) or 1),
        )

    parts = []
    for value in _ticks(min(values), max(values), logarithmic):
        height = place(0, value)[1]
        parts.append(f'<path class=grid d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, height + 4, "end", f"{value:g}"))
    parts += [_text(place(at, values[0])[0], HEIGHT - 18, "middle", f"{at:g}") for at in _ticks(0, last, False)]
    for run, curve in faint.items():
        parts.append(f'<polyline class="faint r{run}" points="{_path(curve, place)}"/>')
    for run, curve in strong.items():
        marks = "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r=3><title>{x} {at:g}: {value:.4g}</title></circle>'
            for (at, value) in curve
            for a, b in [place(at, value)]
        )
        parts.append(f'<g class="r{run}"><polyline points="{_path(curve, place)}"/>{marks}</g>')
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 2, "middle", x))
    return _chart(f"{y} by {x}", HEIGHT, parts)


def intervals(values: dict[str, dict[int, tuple[float, float, float]]], percent: bool) -> Html:
    """Values with their intervals, a group of lines for each name.

    Args:
        values: Name -> run -> value, low end and high end; the ends are NaN where they are not known.
        percent: Whether they are shares.
    """
    ends = [end for runs in values.values() for triple in runs.values() for end in triple if not math.isnan(end)]
    if not ends:
        return Html("")
    low, high = (0, max(1, *ends)) if percent else (min(0, *ends), max(ends))
    left, line, gap = 96, 16, 12

    def place(value: float) -> float:
        return left + (WIDTH - left - 24) * (value - low) / ((high - low) or 1)

    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    parts, height = [], TOP
    for name, runs in values.items():
        parts.append(_text(left - 12, height + line * len(runs) / 2 + 4, "end", name))
        for run, (value, start, end) in runs.items():
            middle, known = height + line / 2, not math.isnan(start)
            title = text(value) + (f" ({text(start)} to {text(end)})" if known else "")
            whisker = f'<path d="M{place(start):.1f} {middle}H{place(end):.1f}"/>' if known else ""
            dot = f'<circle cx="{place(value):.1f}" cy="{middle}" r="4"/>'
            parts.append(f'<g class="r{run}"><title>{title}</title>{whisker}{dot}</g>')
            height += line
        height += gap
    for tick in _ticks(low, high, False):
        at = place(tick)
        parts.insert(0, f'<path class=grid d="M{at:.1f} {TOP}V{height}"/>')
        parts.append(_text(at, height + 14, "middle", f"{tick:.0%}" if percent else f"{tick:g}"))
    return _chart("values with intervals", height + 20, parts)


def _chart(label: str, height: float, parts: Sequence[str]) -> Html:
    view = f'viewBox="0 0 {WIDTH} {height}" role=img aria-label="{escape(label)}"'
    return Html(f"<svg class=chart {view}>{''.join(parts)}</svg>")


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor={anchor}>{escape(text)}</text>'


def _scaled(values: Sequence[float]) -> list[float]:
    return [math.log10(value) for value in values] if min(values) > 0 else list(values)


def _path(curve: Points, place) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in curve))


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """About five round numbers from `low` to `high`."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        return [tick for tick in ticks if low <= tick <= high]
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [step * at for at in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]
