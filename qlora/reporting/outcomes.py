"""What each artifact did on each test row: the numbers that differences between experiments are computed from.

`report` writes it to plots/rows.csv, one line for each artifact and row. That file is in Git, so two commits can be
compared row by row without the models, the answers or DVC's cache.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from qlora.reporting import bootstrap
from qlora.reporting.bootstrap import Interval
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_text

import numpy as np
import pandas

PATH = Path("plots/rows.csv")
# Metric -> the columns of its numerator and denominator; JUDGED and ROWS count rows.
JUDGED, ROWS = "judged", "rows"
MEASURES = {
    "execution_accuracy": ("execution_accuracy", JUDGED),
    "loss": ("nll", "supervised"),
    "next_token_accuracy": ("top1", "supervised"),
    "stop_rate": ("stopped", ROWS),
}
# For each artifact and row: id ("file:line"), digest of the messages, number of the group, supervised tokens, and the
# numerators. execution_accuracy is empty where nothing was judged: for chat, and where the gold query cannot be.
COLUMNS = ["artifact", "id", "digest", "group", "supervised", "execution_accuracy", "nll", "top1", "stopped"]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of all artifacts, by artifact and then by row; `frame` has COLUMNS."""

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
        """Whether the artifact has this metric; SQL is not judged in chats."""
        return bool(self.of(artifact)[MEASURES[metric][0]].notna().any())

    def interval(self, artifact: str, metric: str) -> Interval:
        """The metric with its interval."""
        return bootstrap.ratio(*self.sums(artifact, metric), self.rows["group"])

    def difference(self, before: str, after: str, metric: str) -> Interval:
        """The metric of `after` minus that of `before` on the same rows, with its interval."""
        first, weights = self.sums(before, metric)
        second, _ = self.sums(after, metric)
        return bootstrap.ratio(second - first, weights, self.rows["group"])

    def sums(self, artifact: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of the metric, one number a row each."""
        numerator, denominator = MEASURES[metric]
        lines = self.of(artifact)
        values = lines[numerator]
        weights = {JUDGED: values.notna(), ROWS: values.notna()}.get(denominator, lines.get(denominator))
        return values.fillna(0).to_numpy(float), weights.to_numpy(float)


def collect(rows: list[dict], predictions: dict[str, list[dict]]) -> Outcomes:
    """The outcomes of `predictions` (artifact -> one record a row, as `evaluate` writes them) on the test rows.

    Raises:
        Refusal: if an artifact's predictions are not those of these rows.
    """
    for artifact, answers in predictions.items():
        if [answer["id"] for answer in answers] != [row["id"] for row in rows]:
            raise Refusal(
                f"results/predictions/{artifact}.jsonl answers other rows: run `dvc repro evaluate@{artifact}`"
            )
    groups: dict[str, int] = {}
    facts = [
        {"id": row["id"], "digest": _digest(row), "group": groups.setdefault(row["group"], len(groups))} for row in rows
    ]
    lines = [
        {"execution_accuracy": None, **fact, **{name: answer[name] for name in COLUMNS if name in answer}}
        | {"artifact": artifact}
        for artifact, answers in predictions.items()
        for fact, answer in zip(facts, answers, strict=True)
    ]
    frame = pandas.DataFrame(lines, columns=COLUMNS)
    return Outcomes(frame.astype({"execution_accuracy": "Int64", "stopped": int}))


def _digest(row: dict) -> str:
    content = json.dumps(row["messages"], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def write(outcomes: Outcomes, path: Path = PATH) -> None:
    write_text(path, outcomes.frame.round({"nll": 3}).to_csv(index=False))


def parse(text: str) -> Outcomes:
    """Read what `write` wrote.

    Raises:
        ValueError: if it has other columns.
    """
    frame = pandas.read_csv(io.StringIO(text), dtype={"digest": str, "id": str, "execution_accuracy": "Int64"})
    if list(frame.columns) != COLUMNS:
        raise ValueError(f"its columns are {', '.join(frame.columns)}")
    return Outcomes(frame)
