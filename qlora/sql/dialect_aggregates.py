"""Aggregates of PostgreSQL and MySQL, for `sqlite3.Connection.create_aggregate`."""

import functools
import math
import operator
import statistics
from collections.abc import Callable

from qlora.sql import moments
from qlora.sql.dialect_numbers import scale, text


class _Collect:
    """An aggregate over the values that are not NULL."""

    def __init__(self):
        self.values: list = []

    def step(self, value: object, *more: object) -> None:
        if value is not None:
            self.values.append((value, *more))


class TextAggregate(_Collect):
    """STRING_AGG and GROUP_CONCAT: (value, separator, distinct, then for each key of its ORDER BY: key, descending)."""

    def finalize(self) -> str | None:
        return _joined(self.values, str) if self.values else None


class ArrayAggregate(TextAggregate):
    """ARRAY_AGG, with the arguments of TextAggregate; NULLs stay."""

    def step(self, value: object, *more: object) -> None:
        self.values.append((value, *more))

    def finalize(self) -> str | None:
        return "{" + _joined(self.values, lambda _: ",") + "}" if self.values else None


def _joined(rows: list[tuple], separator: Callable) -> str:
    keys = len(rows[0][3:]) // 2
    for key in range(keys - 1, -1, -1):
        at = 3 + 2 * key
        rows.sort(key=lambda row, at=at: _sortable(row[at]), reverse=bool(rows[0][at + 1]))
    texts = ["NULL" if row[0] is None else text(row[0]) for row in rows]
    if rows[0][2]:
        texts = list(dict.fromkeys(texts)) if keys else sorted(set(texts))
    return separator(rows[0][1] if rows[0][1] is not None else "").join(texts)


def _sortable(value: object) -> tuple:
    return (2, 0, "") if value is None else (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


class _Spread(_Collect):
    """Variance and standard deviation."""

    compute: Callable = staticmethod(statistics.variance)
    least = 2

    def finalize(self) -> float | None:
        numbers = [float(value) for (value,) in self.values]
        return type(self).compute(numbers) if len(numbers) >= self.least else None


class VarianceSample(_Spread):
    pass


class VariancePopulation(_Spread):
    compute, least = staticmethod(statistics.pvariance), 1


class DeviationSample(_Spread):
    compute = staticmethod(statistics.stdev)


class DeviationPopulation(_Spread):
    compute, least = staticmethod(statistics.pstdev), 1


class Percentile(_Collect):
    """PERCENTILE_CONT: (value, fraction)."""

    def finalize(self) -> float | None:
        if not self.values:
            return None
        numbers = sorted(float(value) for value, _ in self.values)
        place = self.values[0][1] * (len(numbers) - 1)
        low = math.floor(place)
        high = min(low + 1, len(numbers) - 1)
        return numbers[low] + (place - low) * (numbers[high] - numbers[low])


class PercentileDiscrete(_Collect):
    """PERCENTILE_DISC: (value, fraction)."""

    def finalize(self) -> object:
        if not self.values:
            return None
        ordered = sorted((value for value, _ in self.values), key=_sortable)
        return ordered[max(0, math.ceil(self.values[0][1] * len(ordered)) - 1)]


class Mode(_Collect):
    """MODE: the most frequent value; of equally frequent ones the least."""

    def finalize(self) -> object:
        counts: dict = {}
        for (value,) in self.values:
            counts[value] = counts.get(value, 0) + 1
        return min(counts, key=lambda value: (-counts[value], _sortable(value))) if counts else None


class Correlation(_Collect):
    def finalize(self) -> float | None:
        pairs = [(float(one), float(other)) for one, other in self.values if other is not None]
        try:
            return statistics.correlation(*zip(*pairs, strict=True)) if len(pairs) > 1 else None
        except statistics.StatisticsError:
            return None


class Slope(_Collect):
    """REGR_SLOPE: (y, x)."""

    part = 0

    def finalize(self) -> float | None:
        pairs = [(float(x), float(y)) for y, x in self.values if x is not None]
        try:
            return statistics.linear_regression(*zip(*pairs, strict=True))[type(self).part] if len(pairs) > 1 else None
        except statistics.StatisticsError:
            return None


class Intercept(Slope):
    """REGR_INTERCEPT: (y, x)."""

    part = 1


class _Bits(_Collect):
    start, combine = 0, staticmethod(operator.or_)

    def finalize(self) -> int:
        return functools.reduce(type(self).combine, (int(value) for (value,) in self.values), type(self).start)


class BitOr(_Bits):
    """MySQL's BIT_OR."""


class BitXor(_Bits):
    """MySQL's BIT_XOR."""

    combine = staticmethod(operator.xor)


class BitAnd(_Bits):
    """MySQL's BIT_AND; of no rows all bits, which SQLite holds as -1."""

    start, combine = -1, staticmethod(operator.and_)


class IntervalAverage(_Collect):
    """AVG of intervals: (value)."""

    def finalize(self) -> str | None:
        if not self.values:
            return None
        total = [sum(part) for part in zip(*(moments.parts(value) for (value,) in self.values), strict=True)]
        return scale(moments.interval(*total), 1 / len(self.values))


class IntervalSum(_Collect):
    def finalize(self) -> str | None:
        if not self.values:
            return None
        return moments.interval(
            *(sum(part) for part in zip(*(moments.parts(one) for (one,) in self.values), strict=True))
        )
