"""Confidence intervals of metrics on test rows: the bootstrap over groups of rows.

Rows of one group (one schema, one conversation) are correlated, so groups are resampled, not rows (the cluster
bootstrap: Davison and Hinkley 1997, section 3.8). Two models that answered the same rows are compared row by row, so
rows that are hard or easy for both cancel out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2_000_000  # groups in all resamples of a block, to bound the memory


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; NaN where there are too few groups to tell."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is significant at 95 % confidence."""
        return self.low > 0 or self.high < 0


def ratio(numerator: Sequence[float], denominator: Sequence[float], groups: Sequence[int], seed: int = 0) -> Interval:
    """The interval of sum(numerator) / sum(denominator) over rows.

    The denominator is 1 for a mean over rows, and the row's tokens for a mean over tokens. For the paired difference of
    two models, the numerator is the difference of their numerators.

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


def _tail(groups: int) -> float:
    """The share of resamples beyond each end of the interval.

    Less than 2.5 % where groups are few, as Student's t is wider than the normal distribution (the expanded percentile
    interval: Hesterberg 2015, "What Teachers Should Know about the Bootstrap", section 4.2).
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), groups - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # Cornish and Fisher
    return NormalDist().cdf(-math.sqrt(groups / freedom) * t)
