"""What each artifact did on each test row: the numbers that differences between experiments are computed from.

`report` writes it to plots/rows.csv, one line for each artifact and row. That file is in Git, so two commits can be
compared row by row without the models, the answers or DVC's cache.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora.judging.labels import ANSWERED, LABEL, NO_LABEL, label_counts, macro_f1
from qlora.recipe.metrics import METRICS
from qlora.reporting import bootstrap
from qlora.reporting.bootstrap import Interval, Statistic
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_text

import numpy as np
import pandas

PATH = Path("plots/rows.csv")
# Metric -> the columns of its numerator and denominator; ROWS counts rows.
ROWS = "rows"
OF_TOKENS = {
    "loss": ("nll", "supervised"),
    "next_token_accuracy": ("top1", "supervised"),
    "stop_rate": ("stopped", ROWS),
}
# The columns of a verdict are its value and, if it has one, its weight in the mean over rows.
VERDICTS = tuple(name for name, metric in METRICS.items() if metric.kinds and name != "macro_f1")
WEIGHT = "_weight"
LABELS = [LABEL, ANSWERED]
MEASURES = (*VERDICTS, "macro_f1", *OF_TOKENS)
# For each artifact and row: id ("file:line"), digest of the messages, number of the group, supervised tokens, and the
# numerators. Between FACTS and NUMERATORS stand the verdicts, each empty where it was not judged.
FACTS = ["artifact", "id", "digest", "group", "supervised"]
NUMERATORS = ["nll", "top1", "stopped"]
VERDICT_COLUMNS = [*(column for name in VERDICTS for column in (name, name + WEIGHT)), *LABELS]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of all artifacts, by artifact and then by row; `frame` has FACTS, verdicts and NUMERATORS."""

    frame: pandas.DataFrame

    @property
    def artifacts(self) -> list[str]:
        return list(self.frame["artifact"].unique())

    def of(self, artifact: str) -> pandas.DataFrame:
        """The lines of one artifact, one a test row."""
        return self.frame[self.frame["artifact"] == artifact]

    @property
    def rows(self) -> pandas.DataFrame:
        """The test rows: id, digest, group and supervised tokens."""
        return self.of(self.artifacts[0])[["id", "digest", "group", "supervised"]].reset_index(drop=True)

    def has(self, artifact: str, metric: str) -> bool:
        """Whether the artifact has this metric, of at least one row."""
        return bool(self.judged(artifact, metric).any())

    def judged(self, artifact: str, metric: str) -> np.ndarray:
        """Which rows count in the metric."""
        lines, column = self.of(artifact), _value_column(metric)
        if column not in lines:
            return np.zeros(len(lines), bool)
        return lines[column].notna().to_numpy() & (_weights(lines, metric) > 0)

    def interval(self, artifact: str, metric: str) -> Interval:
        """The metric with its interval."""
        return bootstrap.of_sums(self.counts(artifact, metric), statistic(metric), self.rows["group"])

    def difference(self, before: str, after: str, metric: str) -> Interval:
        """The metric of `after` minus that of `before` on the rows that count in both, with its interval."""
        both = self.judged(before, metric) & self.judged(after, metric)
        counts = (self.counts(artifact, metric)[both] for artifact in (before, after))
        return paired(*counts, metric, self.rows["group"][both])

    def counts(self, artifact: str, metric: str) -> np.ndarray:
        """What each row adds to the sums of which the metric is a statistic (rows, sums)."""
        lines, judged = self.of(artifact), self.judged(artifact, metric)
        if metric == "macro_f1":
            right, found = (lines[name].fillna(NO_LABEL).to_numpy(int) for name in LABELS)
            return label_counts(right, found) * judged[:, None]
        values, weights = lines[_value_column(metric)].fillna(0).to_numpy(float), _weights(lines, metric) * judged
        return np.stack([values * (1 if metric in OF_TOKENS else weights), weights], 1)


def _value_column(metric: str) -> str:
    return LABEL if metric == "macro_f1" else OF_TOKENS[metric][0] if metric in OF_TOKENS else metric


def _weights(lines: pandas.DataFrame, metric: str) -> np.ndarray:
    """What each row counts in the metric's denominator, if it is judged."""
    column = OF_TOKENS[metric][1] if metric in OF_TOKENS else metric + WEIGHT
    return lines[column].fillna(0).to_numpy(float) if column in lines else np.ones(len(lines))


def statistic(metric: str) -> Statistic:
    return macro_f1 if metric == "macro_f1" else bootstrap.share


def paired(before: np.ndarray, after: np.ndarray, metric: str, groups: Sequence[int]) -> Interval:
    """The metric by `after` minus that by `before`, both as `Outcomes.counts` gives them of the same rows."""
    value, sums = statistic(metric), before.shape[1]
    both = np.concatenate([before, after], 1)
    return bootstrap.of_sums(both, lambda of: value(of[..., sums:]) - value(of[..., :sums]), groups)


def collect(rows: list[dict], predictions: dict[str, list[dict]]) -> Outcomes:
    """The outcomes of `predictions` (artifact -> one record a row, as `judge` writes them) on the test rows.

    Raises:
        Refusal: if an artifact's predictions are not those of these rows.
    """
    for artifact, answers in predictions.items():
        if [answer["id"] for answer in answers] != [row["id"] for row in rows]:
            raise Refusal(f"results/predictions/{artifact}.jsonl answers other rows: run `dvc repro judge@{artifact}`")
    groups: dict[str, int] = {}
    facts = [
        {"id": row["id"], "digest": _digest(row), "group": groups.setdefault(row["group"], len(groups))} for row in rows
    ]
    frame = pandas.DataFrame(
        [
            {**fact, **answer, "artifact": artifact, "stopped": int(answer["stopped"])}
            for artifact, answers in predictions.items()
            for fact, answer in zip(facts, answers, strict=True)
        ]
    )
    verdicts = [column for column in VERDICT_COLUMNS if column in frame]
    return Outcomes(frame[[*FACTS, *verdicts, *NUMERATORS]].astype(dict.fromkeys(verdicts, "Float64")))


def _digest(row: dict) -> str:
    content = json.dumps(row["messages"], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def write(outcomes: Outcomes, path: Path = PATH) -> None:
    frame = outcomes.frame.round({"nll": 3})
    whole = {column: "Int64" for column in verdict_columns(frame) if (frame[column].dropna() % 1 == 0).all()}
    write_text(path, frame.round(dict.fromkeys(verdict_columns(frame), 6)).astype(whole).to_csv(index=False))


def verdict_columns(frame: pandas.DataFrame) -> list[str]:
    return [column for column in frame.columns if column in VERDICT_COLUMNS]


def parse(text: str) -> Outcomes:
    """Read what `write` wrote.

    Raises:
        ValueError: if it has other columns.
    """
    frame = pandas.read_csv(io.StringIO(text), dtype={"digest": str, "id": str, "artifact": str})
    verdicts = verdict_columns(frame)
    if list(frame.columns) != [*FACTS, *verdicts, *NUMERATORS]:
        raise ValueError(f"its columns are {', '.join(frame.columns)}")
    return Outcomes(frame.astype(dict.fromkeys(verdicts, "Float64")))
