"""metrics/summary.json: the one metrics file in Git, with a few numbers, and what they were measured with.

`dvc metrics show` and `dvc exp show` have a column for each number in it, but not for numbers in a list such as the
gates.
"""

import json
from pathlib import Path

from qlora.recipe.metrics import METRICS, headline, parse_gate
from qlora.reporting.gates import Checked
from qlora.runtime.outputs import write_json

PATH = Path("metrics/summary.json")
DIGITS = {"loss": 3}  # fewer than are measured: the kernels of another CPU round differently


def write(
    metrics: dict[str, dict],
    validation_loss: float | None,
    checked: list[Checked],
    task: str,
    environments: dict[str, str],
) -> None:
    """Write each artifact's score, loss and size, the validation loss, and the gates.

    Args:
        metrics: Artifact -> metric -> value.
        validation_loss: Of the step whose adapter was kept.
        checked: The gates.
        task: Decides what the score is where nothing is judged.
        environments: Artifact -> what it was measured with, in words.
    """
    score = headline(next(iter(metrics.values())), task)
    columns = {"score": score, "loss": "loss", "size_mb": "size_mb"}
    numbers = {
        column: {
            name: values[metric] and round(values[metric], DIGITS.get(metric, 4)) for name, values in metrics.items()
        }
        for column, metric in columns.items()
    }
    summary = {"metric": score, **numbers}
    summary["validation_loss"] = validation_loss and round(validation_loss, DIGITS["loss"])
    summary["gates_broken"] = sum(not gate.holds for gate in checked)
    summary["gates"] = [_record(gate) for gate in checked]
    summary["measured_with"] = environments
    write_json(PATH, summary)


def _record(gate: Checked) -> dict:
    metric = METRICS[parse_gate(gate.name.partition(".")[2])[0]]
    value = None if metric.machine_dependent or gate.value is None else round(gate.value, 5)  # as it was compared
    return {"gate": gate.name, "holds": gate.holds, "value": value, "sign": gate.sign, "limit": gate.limit}


def broken_gates(summary: dict) -> list[str]:
    """Names (ARTIFACT.METRIC) of the gates that were broken when `summary` was written."""
    return [gate["gate"] for gate in summary.get("gates", []) if not gate["holds"]]


def recorded_gates(summary: dict) -> list[Checked]:
    """The gates as they were when `summary` was written."""
    return [
        Checked(gate["gate"].partition(".")[0], gate["gate"], gate["sign"], gate["limit"], gate["value"], gate["holds"])
        for gate in summary.get("gates", [])
    ]


def read() -> dict:
    """The summary of the last report; empty if there is none."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
