"""What each artifact did on each test row: as far as differences between artifacts and experiments need it.

`report` writes it to metrics/rows.json, one row a line. That file is in Git, so two commits can be compared row by row
without the models, the answers or DVC's cache.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora.reporting import bootstrap
from qlora.reporting.bootstrap import Interval
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_text

PATH = Path("metrics/rows.json")
# Measure -> what is summed over rows, and over how many of what ("": over rows).
MEASURES = {
    "execution_accuracy": ("right", "judged"),
    "loss": ("nll", "tokens"),
    "next_token_accuracy": ("top1", "tokens"),
    "stop_rate": ("stopped", ""),
}
COLUMNS = ("right", "nll", "top1", "stopped")  # of each artifact


@dataclass(frozen=True)
class Outcomes:
    """Of each test row, in the rows' order, and of each artifact on it.

    test_set: hash of the rows; ids, groups (numbered), tokens (supervised): one a row; artifacts: name -> column ->
    one number a row. `right` is None where SQL was not judged: for chat, and where the gold query is no measure.
    """

    test_set: str
    ids: list[str]
    groups: list[int]
    tokens: list[int]
    artifacts: dict[str, dict[str, list]]

    def has(self, artifact: str, measure: str) -> bool:
        """Whether the measure exists: SQL is not judged in chats."""
        column, _ = MEASURES[measure]
        return artifact in self.artifacts and any(value is not None for value in self.artifacts[artifact][column])

    def interval(self, artifact: str, measure: str) -> Interval:
        """The measure with its interval."""
        return bootstrap.ratio(*self.sums(artifact, measure), self.groups)

    def difference(self, before: str, after: str, measure: str) -> Interval:
        """How much more `after` measures than `before`, on the same rows, with the interval of that difference."""
        first, weights = self.sums(before, measure)
        second, _ = self.sums(after, measure)
        return bootstrap.ratio(second - first, weights, self.groups)

    def sums(self, artifact: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of the measure, one number a row each."""
        column, weight = MEASURES[measure]
        values = self.artifacts[artifact][column]
        weights = {
            "judged": [value is not None for value in values],
            "tokens": self.tokens,
            "": np.ones(len(values)),
        }
        return np.array([value or 0 for value in values], float), np.array(weights[weight], float)


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
    numbers: dict[str, int] = {}
    content = json.dumps([row["messages"] for row in rows], ensure_ascii=False)
    return Outcomes(
        test_set=hashlib.sha256(content.encode()).hexdigest()[:16],
        ids=[row["id"] for row in rows],
        groups=[numbers.setdefault(row["group"], len(numbers)) for row in rows],
        tokens=[answer["supervised"] for answer in next(iter(predictions.values()))],
        artifacts={artifact: _columns(answers) for artifact, answers in predictions.items()},
    )


def _columns(answers: list[dict]) -> dict[str, list]:
    """One artifact's columns."""
    return {
        "right": [int(answer["strict"]) if answer.get("judged") else None for answer in answers],
        "nll": [answer["nll"] for answer in answers],
        "top1": [answer["top1"] for answer in answers],
        "stopped": [int(answer["stopped"]) for answer in answers],
    }


def write(outcomes: Outcomes, path: Path = PATH) -> None:
    """Write one row a line, so that Git's diff shows which changed; all in lists, which `dvc metrics` leaves out."""
    heads = [f"{artifact} {column}" for artifact in outcomes.artifacts for column in COLUMNS]
    columns = [values[column] for values in outcomes.artifacts.values() for column in COLUMNS]
    rows = zip(outcomes.ids, outcomes.groups, outcomes.tokens, *columns, strict=True)
    lines = [json.dumps(line, ensure_ascii=False) for line in (["id", "group", "tokens", *heads], *map(list, rows))]
    test_set = json.dumps([outcomes.test_set])
    write_text(path, f'{{"test_set": {test_set},\n "rows": [\n' + ",\n".join(lines) + "\n]}\n")


def parse(text: str) -> Outcomes:
    """What `write` wrote."""
    content = json.loads(text)
    heads, *rows = content["rows"]
    columns = {head: [row[at] for row in rows] for at, head in enumerate(heads)}
    artifacts = list(dict.fromkeys(head.rpartition(" ")[0] for head in heads[3:]))
    return Outcomes(
        test_set=content["test_set"][0],
        ids=columns["id"],
        groups=columns["group"],
        tokens=columns["tokens"],
        artifacts={name: {column: columns[f"{name} {column}"] for column in COLUMNS} for name in artifacts},
    )
