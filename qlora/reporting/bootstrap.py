"""Confidence intervals of metrics on test rows: the bootstrap over groups of rows.

Rows of one group (one schema, one conversation) are correlated, so groups are resampled, not rows (the cluster
bootstrap: Davison and Hinkley 1997, section 3.8). Two models that answered the same rows are compared row by row, so
rows that are hard or easy for both cancel out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2_000_000  # groups in all resamples of a block, to bound the memory
Statistic = Callable[[np.ndarray], np.ndarray]


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
    counts = np.stack([np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)], 1)
    return of_sums(counts, share, groups, seed)


def share(sums: np.ndarray) -> np.ndarray:
    """First sum by second sum (last axis); NaN where the second is 0."""
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.full(below.shape, math.nan), where=below > 0)


def of_sums(counts: np.ndarray, statistic: Statistic, groups: Sequence[int], seed: int = 0) -> Interval:
    """The interval of a statistic of sums over rows.

    Args:
        counts: What each row adds to each sum (rows, sums).
        statistic: The sums (last axis) -> the value; NaN where there is none.
        groups: Each row's group.
        seed: Of the resampling.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    of_group = np.stack([np.bincount(member, weights=column, minlength=count) for column in counts.T], 1)
    value = float(statistic(of_group.sum(0)))
    if count < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    values = []
    block = max(1, DRAWN_AT_ONCE // count)
    for begin in range(0, RESAMPLES, block):
        drawn = random.integers(count, size=(min(block, RESAMPLES - begin), count))
        places = (drawn + count * np.arange(len(drawn))[:, None]).ravel()
        times = np.bincount(places, minlength=drawn.size).reshape(drawn.shape)  # how often each group was drawn
        values.append(statistic(times @ of_group))
    values = np.concatenate(values)
    tail = _tail(count)
    low, high = np.quantile(values[~np.isnan(values)], [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _tail(groups: int) -> float:
    """The share of resamples beyond each end of the interval.

    Less than 2.5 % where groups are few, as Student's t is wider than the normal distribution (the expanded percentile
    interval: Hesterberg 2015, "What Teachers Should Know about the Bootstrap", section 4.2).
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), groups - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # Cornish and Fisher
    return NormalDist().cdf(-math.sqrt(groups / freedom) * t)
