"""How many test rows show a given difference between two artifacts or experiments.

python -m benchmarks.rows_needed

Both answer the same rows and are compared row by row, so what counts is the share of rows that exactly one of them
gets right (results/report.md and metrics/rows.json tell it). For independent rows; where schemas repeat, more.
"""

from qlora.reporting import bootstrap
from qlora.reporting.markdown import table

DIFFERENCES = (0.01, 0.02, 0.03, 0.05, 0.10)
DISAGREEMENTS = (0.02, 0.05, 0.10, 0.20, 0.40)


def main() -> None:
    rows = [
        [f"{100 * difference:.0f} points"]
        + [f"{bootstrap.rows_needed(difference, share):,}" if share > difference else "-" for share in DISAGREEMENTS]
        for difference in DIFFERENCES
    ]
    print(table(["difference", *(f"{share:.0%} differ" for share in DISAGREEMENTS)], rows))


if __name__ == "__main__":
    main()
