"""report: what every artifact measures, what each step cost, and whether the gates hold.

Writes metrics/summary.json and plots/*.csv (in Git), results/report.md and results/model_card.md. Then, if a gate is
broken, ends with a non-zero status.
"""

from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, predecessor
from qlora.recipe.load import load_params
from qlora.reporting import gates, model_card, outcomes, plots, sections, summary, trackers
from qlora.reporting.steps import compare_steps
from qlora.rows import jsonl, prepared
from qlora.rows.prepared import PREPARED
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.environment import in_words
from qlora.runtime.inputs import made_by, read_json
from qlora.runtime.outputs import write_text

import pandas

ANSWERS = Path("results/answers")
PREDICTIONS = Path("results/predictions")
SCORES = Path("results/scores")
TRAINING = Path("results/train")


def main() -> None:
    # What the other stages wrote
    params = load_params()
    names, task = params.evaluate.artifacts, params.data.task
    metrics = {name: read_scores(name) for name in names}
    general = {name: scores.pop("general_right", "") for name, scores in metrics.items()}
    by_kind = {name: scores.pop("general_by_kind", {}) for name, scores in metrics.items()}
    environments = {name: in_words(scores.pop("environment")) for name, scores in metrics.items()}
    training = read_json(TRAINING / "metrics.json", "quantize-load-train")
    with made_by("quantize-load-train", TRAINING / "log.csv"):
        log = pandas.read_csv(TRAINING / "log.csv")[["step", "loss", "eval_loss"]]
    data = read_json(PREPARED / "report.json", "prepare-dataset")
    base = read_json(ARTIFACTS["base"].folder / BASE_RECORD, "fetch-base")
    rows = prepared.read("test")
    predictions = {name: read_predictions(name) for name in names}

    # Comparisons
    found = outcomes.collect(rows, predictions)
    steps = compare_steps(found, names, ANSWERS)
    for step in steps:
        if step.before == predecessor(step.after, names):
            metrics[step.after] |= {name: round(interval.value, 5) for name, interval in step.distances.items()}
    preferences = {name: read_preference(name) for name in params.evaluate.preference.artifacts}
    for name, one in preferences.items():
        metrics[name]["preference"] = one["preference"]
    checked = gates.check(params.evaluate.gates, metrics)

    # Outputs
    summary.write(metrics, training["validation_loss"], checked, task, environments)
    outcomes.write(found)
    write_csv(Path("plots/loss.csv"), plots.losses(log, training["kept_step"]))
    write_csv(Path("plots/artifacts.csv"), plots.artifacts(metrics, found, task))
    write_csv(Path("plots/outcomes.csv"), plots.outcome_counts(predictions))
    page = [
        f"# {params.model.id} on {params.data.name}\n",
        *sections.artifact_section(metrics, found, data),
        *sections.step_section(steps),
        *sections.general_section(general, by_kind),
        *sections.preference_section(preferences, found),
        *sections.gate_section(checked),
        *sections.training_section(training, log),
        *sections.environment_section(environments),
        *sections.row_section(data),
        *sections.unjudged_section(rows, predictions),
        *sections.reason_section(predictions),
        *sections.label_section(rows, predictions),
        *sections.outcome_section(predictions),
        *sections.answer_section(rows, predictions),
    ]
    write_text(Path("results/report.md"), "\n".join(page))
    measured = [*sections.artifact_section(metrics, found, data), *sections.gate_section(checked)]
    write_text(Path("results/model_card.md"), model_card.render(params, base, data, ["## Measured\n", *measured]))

    trackers.add_scores(params, training["run"], training["kept_step"], metrics)

    # For the person who waits
    print(f"\nreport\n{sections.quality_table(metrics, found)}\n\n{sections.step_table(steps)}\n")
    if checked:
        print(f"{sections.gate_table(checked)}\n")
    print("details: results/report.md; pictures: dvc plots show --open")
    if broken := [gate for gate in checked if not gate.holds]:
        raise Refusal(
            f"{len(broken)} of {len(checked)} gates broken: "
            + "; ".join(map(gate_in_words, broken))
            + " (everything is written: results/report.md; the limits are in params.yaml, evaluate.gates)"
        )


def gate_in_words(gate: gates.Checked) -> str:
    value = f"{gate.name} is {gate.note}" if gate.value is None else f"{gate.name} is {gate.shown}"
    note = f" ({gate.note})" if gate.note and gate.value is not None else ""
    return f"{value}, must be {gate.sign} {gate.limit:g}{note}"


def read_scores(artifact: str) -> dict:
    """The metrics that `judge` wrote for an artifact. Raises Refusal if they are missing or damaged."""
    path, stage = SCORES / f"{artifact}.json", f"judge@{artifact}"
    metrics = read_json(path, stage)
    with made_by(stage, path):
        in_words(metrics["environment"])
    return metrics


def read_predictions(artifact: str) -> list[dict]:
    """The records of an artifact's answers with their verdicts. Raises Refusal if they are missing or damaged."""
    return jsonl.read_made(PREDICTIONS / f"{artifact}.jsonl", f"judge@{artifact}")


def read_preference(artifact: str) -> dict:
    """What `prefer` wrote for an artifact. Raises Refusal if it is missing or damaged."""
    path, stage = SCORES / f"{artifact}.preference.json", f"prefer@{artifact}"
    found = read_json(path, stage)
    with made_by(stage, path):
        return {key: found[key] for key in ("preference", "agreement", "judged", "model", "rows")}


def write_csv(path: Path, frame: pandas.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False))


if __name__ == "__main__":
    run_stage(main, __doc__)
