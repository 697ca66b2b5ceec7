"""Intervals for what was measured on test rows: the bootstrap over groups of rows.

Rows of one group (one schema, one conversation) are right or wrong together more often than others, so groups are
drawn, not rows (the cluster bootstrap: Davison and Hinkley 1997, section 3.8). Two models that answered the same rows
are compared row by row: what both find hard or easy drops out of the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2_000_000  # groups, in all resamples of a block


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; NaN where there are too few groups to tell."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than what drawing other groups would do to it."""
        return self.low > 0 or self.high < 0


def ratio(numerator: Sequence[float], denominator: Sequence[float], groups: Sequence[int], seed: int = 0) -> Interval:
    """The interval of sum(numerator) / sum(denominator) over rows.

    A mean over rows has ones as denominator, a mean over tokens each row's tokens; for the paired difference of two
    models the numerator is the difference of theirs.

    Args:
        numerator: One number a row.
        denominator: One a row, not negative.
        groups: Each row's group.
        seed: Of the resampling.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    above = np.bincount(member, weights=np.asarray(numerator, dtype=float), minlength=count)
    below = np.bincount(member, weights=np.asarray(denominator, dtype=float), minlength=count)
    value = above.sum() / below.sum() if below.sum() else math.nan
    if count < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    ratios = []
    block = max(1, DRAWN_AT_ONCE // count)
    for begin in range(0, RESAMPLES, block):
        drawn = random.integers(count, size=(min(block, RESAMPLES - begin), count))
        sums = below[drawn].sum(1)
        ratios.append(above[drawn].sum(1)[sums > 0] / sums[sums > 0])
    tail = _tail(count)
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def rows_needed(difference: float, disagreement: float, power: float = 0.8) -> int:
    """How many test rows show a paired difference of two rates, in `power` of all test sets, at 95 % confidence.

    For rows that are independent of one another (Connor 1987, on McNemar's test); rows that share groups tell less.

    Args:
        difference: Of the two rates, such as 0.02 for 2 points.
        disagreement: Share of the rows that exactly one of the two gets right; at least `difference`.
        power: Probability that the difference is seen.
    """
    significant = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    seen = NormalDist().inv_cdf(power)
    spread = significant * math.sqrt(disagreement) + seen * math.sqrt(disagreement - difference**2)
    return math.ceil((spread / difference) ** 2)


def _tail(groups: int) -> float:
    """The share of resamples beyond each end of the interval.

    Wider than 2.5 % where groups are few, as Student's t is wider than the normal distribution (the expanded percentile
    interval: Hesterberg 2015, "What Teachers Should Know about the Bootstrap", section 4.2).
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), groups - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # Cornish and Fisher
    return NormalDist().cdf(-math.sqrt(groups / freedom) * t)
