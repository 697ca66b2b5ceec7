"""report: what every artifact measures, what each step cost, and whether the gates hold.

Writes metrics/summary.json and plots/*.csv (in Git), results/report.md and results/model_card.md. Then, if a gate is
broken, ends with a non-zero status.
"""

import json
from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, predecessor
from qlora.recipe.load import load_params
from qlora.reporting import gates, model_card, outcomes, plots, sections, summary
from qlora.reporting.steps import compare_steps
from qlora.reporting.tables import number
from qlora.rows import jsonl
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text

import pandas

PREPARED = Path("data/prepared")
PREDICTIONS = Path("results/predictions")
SCORES = Path("results/scores")


def main() -> None:
    # What the other stages wrote
    params = load_params()
    names, task = params.evaluate.artifacts, params.data.task
    metrics = {name: read_scores(name) for name in names}
    training = json.loads(Path("results/train/metrics.json").read_text())
    log = pandas.read_csv("results/train/log.csv")
    data = json.loads((PREPARED / "report.json").read_text())
    base = json.loads((ARTIFACTS["base"].folder / BASE_RECORD).read_text())
    rows = read_lines(PREPARED / "test.jsonl")
    predictions = {name: read_lines(PREDICTIONS / f"{name}.jsonl") for name in names}

    # Comparisons
    found = outcomes.collect(rows, predictions)
    steps = compare_steps(found, names, PREDICTIONS)
    for step in steps:
        if step.before == predecessor(step.after, names):
            metrics[step.after] |= {name: round(interval.value, 5) for name, interval in step.distances.items()}
    checked = gates.check(params.evaluate.gates, metrics)

    # Outputs
    summary.write(metrics, training["validation_loss"], checked, task)
    outcomes.write(found)
    write_csv(Path("plots/loss.csv"), plots.losses(log))
    write_csv(Path("plots/artifacts.csv"), plots.artifacts(metrics, found, task))
    write_csv(Path("plots/outcomes.csv"), plots.outcome_counts(predictions))
    page = [
        f"# {params.model.id} on {params.data.source}\n",
        *sections.artifact_section(metrics, found, data),
        *sections.step_section(steps),
        *sections.gate_section(checked),
        *sections.training_section(training, log),
        *sections.row_section(data),
        *sections.outcome_section(predictions),
        *sections.answer_section(rows, predictions),
    ]
    write_text(Path("results/report.md"), "\n".join(page))
    measured = [*sections.artifact_section(metrics, found, data), *sections.gate_section(checked)]
    write_text(Path("results/model_card.md"), model_card.render(params, base, data, ["## Measured\n", *measured]))

    # For the person who waits
    print(f"\nreport\n{sections.quality_table(metrics, found)}\n\n{sections.step_table(steps)}\n")
    if checked:
        print(f"{sections.gate_table(checked)}\n")
    print("details: results/report.md; pictures: dvc plots show --open")
    if broken := [gate for gate in checked if not gate.holds]:
        raise Refusal(
            f"{len(broken)} of {len(checked)} gates broken: "
            + "; ".join(f"{gate.name} is {number(gate.value)}, must be {gate.sign} {gate.limit:g}" for gate in broken)
            + " (everything is written: results/report.md; the limits are in params.yaml, evaluate.gates)"
        )


def read_scores(artifact: str) -> dict:
    """The metrics that `evaluate` wrote for an artifact. Raises Refusal if they are missing."""
    path = SCORES / f"{artifact}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run `dvc repro evaluate@{artifact}`") from None


def read_lines(path: Path) -> list[dict]:
    return [row for _, row in jsonl.read(path)]


def write_csv(path: Path, frame: pandas.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False))


if __name__ == "__main__":
    run_stage(main)
