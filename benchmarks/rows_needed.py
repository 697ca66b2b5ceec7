"""How many test rows show a given difference between two artifacts or experiments.

python -m benchmarks.rows_needed

Both answer the same rows and are compared row by row, so the number depends on their disagreement: the share of rows
that exactly one of them gets right. The rows are taken to be independent; more are needed where they share schemas.
"""

import math
from statistics import NormalDist

from qlora.reporting.bootstrap import CONFIDENCE
from qlora.reporting.tables import table

DIFFERENCES = (0.01, 0.02, 0.03, 0.05, 0.10)
DISAGREEMENTS = (0.02, 0.05, 0.10, 0.20, 0.40)


def main() -> None:
    rows = [
        [f"{100 * difference:.0f} points"]
        + [f"{rows_needed(difference, share):,}" if share > difference else "-" for share in DISAGREEMENTS]
        for difference in DIFFERENCES
    ]
    print(table(["difference", *(f"{share:.0%} differ" for share in DISAGREEMENTS)], rows))


def rows_needed(difference: float, disagreement: float, power: float = 0.8) -> int:
    """Number of independent test rows that show a paired difference of two rates at 95 % confidence.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", 1987 (McNemar's test).

    Args:
        difference: Of the two rates, such as 0.02 for 2 points.
        disagreement: Share of the rows that exactly one of the two gets right; at least `difference`.
        power: Probability that the difference is significant.
    """
    z_confidence, z_power = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), NormalDist().inv_cdf(power)
    spread = z_confidence * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
    return math.ceil((spread / difference) ** 2)


if __name__ == "__main__":
    main()
