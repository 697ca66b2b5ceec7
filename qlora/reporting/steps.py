"""What each step from base to GGUF cost: every artifact against the one it was made from, on the same test rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.artifacts import PLAIN, predecessor
from qlora.recipe.metrics import DISTANCES, main
from qlora.reporting import bootstrap, outcomes
from qlora.reporting.bootstrap import Interval
from qlora.reporting.outcomes import Outcomes
from qlora.runtime.inputs import made_by
from qlora.scoring import top_tokens
from qlora.scoring.top_tokens import Top

import numpy as np


@dataclass(frozen=True)
class Step:
    """One artifact compared with another.

    Attributes:
        before: The artifact that `after` was made from, or another reference.
        after: The artifact.
        differences: Metric -> after - before.
        distances: The metrics of DISTANCES; empty for the step from the base model, whose predictions tuning is meant
            to change.
    """

    before: str
    after: str
    differences: dict[str, Interval]
    distances: dict[str, Interval]


def compare_steps(found: Outcomes, names: Sequence[str], answers: Path) -> list[Step]:
    """Compare each artifact with the one it was made from, later ones with the adapter, and types with -plain ones.

    Args:
        found: The outcomes of all artifacts.
        names: Of the scored artifacts.
        answers: The folder with their most probable tokens (NAME.npz).
    """
    pairs = [(before, name) for name in names if (before := predecessor(name, names))]
    if "adapter" in names:
        pairs += [("adapter", name) for name in names if name not in ("base", "adapter", "merged")]
    pairs += [(name, name.removesuffix(PLAIN)) for name in names if name.removesuffix(PLAIN) in set(names) - {name}]
    tokens = int(found.rows["supervised"].sum())
    tops = {name: read_top(name, answers, tokens) for name in names if name != "base"}
    measured = [name for name in outcomes.MEASURES if found.has(names[0], name)]
    compared = [*main(measured), "loss", "next_token_accuracy"]
    steps = []
    for before, after in dict.fromkeys(pairs):
        differences = {
            metric: found.difference(before, after, metric)
            for metric in compared
            if found.has(before, metric) and found.has(after, metric)
        }
        distances = {} if before == "base" else distances_between(tops[before], tops[after], found)
        steps.append(Step(before, after, differences, distances))
    return steps


def read_top(name: str, answers: Path, tokens: int) -> Top:
    """An artifact's most probable ids at `tokens` tokens. Raises Refusal if they are missing or damaged."""
    path = answers / f"{name}.npz"
    with made_by(f"evaluate@{name}", path):
        top = top_tokens.load(path)
        if len(top) != tokens:
            raise ValueError(f"it holds {len(top)} tokens of {tokens}")
    return top


def distances_between(before: Top, after: Top, found: Outcomes) -> dict[str, Interval]:
    """The metrics of DISTANCES over all supervised tokens of the test rows."""
    rows = found.rows
    row_of_token = np.repeat(np.arange(len(rows)), rows["supervised"])
    divergence = top_tokens.kl_divergence(before, after)

    def over_tokens(values: np.ndarray) -> Interval:
        sums = np.bincount(row_of_token, weights=values, minlength=len(rows))
        return bootstrap.ratio(sums, rows["supervised"], rows["group"])

    p99 = float(np.quantile(divergence, 0.99))
    intervals = (
        over_tokens(top_tokens.same_top(before, after)),
        over_tokens(divergence),
        Interval(p99, math.nan, math.nan),
    )
    return dict(zip(DISTANCES, intervals, strict=True))
