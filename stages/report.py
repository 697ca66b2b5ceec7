"""report: what every artifact measures, what each step from base to GGUF cost, and whether the gates hold.

Writes metrics/summary.json, metrics/rows.json and plots/*.csv (Git), results/report.md and results/model_card.md; then,
if a gate is broken, ends with a non-zero status.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora.recipe.params import DISTANCES, PLAIN, load_params, predecessor
from qlora.reporting import bootstrap, gates, model_card, outcomes
from qlora.reporting.bootstrap import Interval
from qlora.reporting.gates import Checked
from qlora.reporting.markdown import table
from qlora.reporting.outcomes import Outcomes
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_json, write_text
from qlora.scoring import top_tokens as distance

PREDICTIONS = Path("results/predictions")
MOST_ANSWERS = 10  # rows whose answers are shown
LOSSES = 8  # lines of the loss curve as a table
QUALITY = {  # heading -> metric, as far as the task has it
    "execution accuracy": "execution_accuracy",
    "exact match": "exact_match",
    "valid SQL": "valid_sql",
    "loss": "loss",
    "perplexity": "perplexity",
    "next token": "next_token_accuracy",
    "stops": "stop_rate",
}
COST = {
    "MB": "size_mb",
    "tokens/s": "tokens_per_second",
    "first token, ms": "first_token_ms",
    "peak memory, MB": "peak_memory_mb",
    "answer tokens": "answer_tokens",
    "median": "answer_tokens_p50",
    "95 %": "answer_tokens_p95",
}
SHARES = {
    *("execution_accuracy", "execution_accuracy_lenient", "exact_match", "valid_sql"),
    *("next_token_accuracy", "stop_rate", "same_top_token"),
}


def main() -> None:
    params = load_params()
    names = params.evaluate.artifacts
    metrics = {name: read_metrics(Path(f"metrics/{name}.json")) for name in names}
    training = json.loads(Path("results/train/metrics.json").read_text())
    data = json.loads(Path("data/prepared/report.json").read_text())
    rows = read_lines(Path("data/prepared/test.jsonl"))
    predictions = {name: read_lines(PREDICTIONS / f"{name}.jsonl") for name in names}
    found = outcomes.collect(rows, predictions)
    steps = compare_steps(found, names)
    for step in steps:
        if step.before == predecessor(step.after, names):
            metrics[step.after] |= {name: round(interval.value, 5) for name, interval in step.distances.items()}
    checked = gates.check(params.evaluate.gates, metrics)

    with Path("results/train/log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    score = "execution_accuracy" if params.data.task == "text-to-sql" else "next_token_accuracy"
    write_json(Path("metrics/summary.json"), summarize(metrics, training, data, checked, score))
    outcomes.write(found)
    write_csv(Path("plots/loss.csv"), loss_lines(log))
    write_csv(Path("plots/artifacts.csv"), artifact_lines(metrics, found, score))
    write_csv(Path("plots/outcomes.csv"), outcome_lines(predictions))
    text = [
        f"# {params.model.id} on {params.data.source}\n",
        *artifact_section(metrics, found, data),
        *step_section(steps),
        *gate_section(checked),
        *training_section(training, log),
        *row_section(data),
        *outcome_section(predictions),
        *answer_section(rows, predictions),
    ]
    write_text(Path("results/report.md"), "\n".join(text))
    base = json.loads(Path("models/base/base.json").read_text())
    measured = [*artifact_section(metrics, found, data), *gate_section(checked)]
    write_text(Path("results/model_card.md"), model_card.render(params, base, data, ["## Measured\n", *measured]))
    print(f"\nreport\n{quality_table(metrics, found)}\n\n{step_table(steps)}\n")
    if checked:
        print(f"{gate_table(checked)}\n")
    print("details: results/report.md; pictures: dvc plots show --open")
    if broken := [gate for gate in checked if not gate.holds]:
        raise Refusal(
            f"{len(broken)} of {len(checked)} gates broken: "
            + "; ".join(f"{gate.name} is {number(gate.value)}, must be {limit(gate)}" for gate in broken)
            + " (everything is written: results/report.md; the limits stand in params.yaml under evaluate.gates)"
        )


def read_metrics(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run `dvc repro evaluate@{path.stem}`") from None


def read_lines(path: Path) -> list[dict]:
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run `dvc repro`, which makes it") from None


# Comparing


@dataclass(frozen=True)
class Step:
    """What one artifact changes against the one it was made from, on the same test rows.

    differences: measure -> after - before; distances: the metrics of `distance`, each with its interval; empty for the
    step from the base, which is meant to change the predictions.
    """

    before: str
    after: str
    differences: dict[str, Interval]
    distances: dict[str, Interval]


def compare_steps(found: Outcomes, names: Sequence[str]) -> list[Step]:
    """Each artifact against the one it was made from, the last ones against the adapter, and importance matrices."""
    pairs = [(before, name) for name in names if (before := predecessor(name, list(names)))]
    if "adapter" in names:
        pairs += [("adapter", name) for name in names if name not in ("base", "adapter", "merged")]
    pairs += [(name, name.removesuffix(PLAIN)) for name in names if name.removesuffix(PLAIN) in set(names) - {name}]
    tops = {name: distance.load(PREDICTIONS / f"{name}.npz") for name in names if name != "base"}
    steps = []
    for before, after in dict.fromkeys(pairs):
        differences = {
            measure: found.difference(before, after, measure)
            for measure in outcomes.MEASURES
            if found.has(before, measure) and found.has(after, measure)
        }
        distances = {} if before == "base" else measure_distances(tops[before], tops[after], found)
        steps.append(Step(before, after, differences, distances))
    return steps


def measure_distances(before: distance.Top, after: distance.Top, found: Outcomes) -> dict[str, Interval]:
    """The metrics of DISTANCES over all supervised tokens of the test rows."""
    row_of_token = np.repeat(np.arange(len(found.tokens)), found.tokens)
    divergence = distance.kl_divergence(before, after)

    def over_tokens(values: np.ndarray) -> Interval:
        sums = np.bincount(row_of_token, weights=values, minlength=len(found.tokens))
        return bootstrap.ratio(sums, found.tokens, found.groups)

    p99 = float(np.quantile(divergence, 0.99))
    intervals = (
        over_tokens(distance.same_top(before, after)),
        over_tokens(divergence),
        Interval(p99, math.nan, math.nan),
    )
    return dict(zip(DISTANCES, intervals, strict=True))


# Files for Git and for plots


def summarize(metrics: dict[str, dict], training: dict, data: dict, checked: list[Checked], score: str) -> dict:
    """What the artifacts' own files do not hold, and the score once more, by which experiments are compared."""
    per_artifact = {
        metric: {name: values[metric] for name, values in metrics.items() if metric in values}
        for metric in (score, *DISTANCES)
    }
    broken = Counter({gate.artifact: 0 for gate in checked})
    broken.update(gate.artifact for gate in checked if not gate.holds)
    return {
        **{metric: values for metric, values in per_artifact.items() if values},
        "train": {name: training[name] for name in ("train_loss", "validation_loss", "trainable_parameters", "tokens")},
        "data": {f"{split}_rows": data["rows"][split] for split in ("train", "validation", "test")},
        "gates_broken": dict(sorted(broken.items())),
    }


def loss_lines(log: list[dict[str, str]]) -> list[dict]:
    """One line for each loss in the log: every step has one of its batch, some have one of the validation rows."""
    return [
        {"step": line["step"], "split": split, "loss": round(float(line[column]), 5)}
        for split, column in (("training", "loss"), ("validation", "eval_loss"))
        for line in log
        if line[column]
    ]


def artifact_lines(metrics: dict[str, dict], found: Outcomes, score: str) -> list[dict]:
    """One line an artifact, for the plots of quality by artifact and by size; low and high end the score's interval."""
    lines = []
    for name, values in metrics.items():
        line = {"artifact": name, "score": values[score]}
        if found.has(name, score):
            interval = found.interval(name, score)
            line |= {"low": round(interval.low, 4), "high": round(interval.high, 4)}
        lines.append(line | {key: values[key] for key in ("loss", "stop_rate", "size_mb")})
    return lines


def outcome_lines(predictions: dict[str, list[dict]]) -> list[dict]:
    """How many rows of each artifact ended how."""
    return [
        {"artifact": name, "outcome": outcome, "rows": count}
        for name, answers in predictions.items()
        for outcome, count in Counter(map(describe, answers)).most_common()
    ]


def describe(answer: dict) -> str:
    """How one answer ended: for text-to-SQL right, another result or the error; for chat whether it stopped."""
    if "strict" not in answer:
        return "stopped" if answer["stopped"] else "ran on"
    if not answer["judged"]:
        return "not judged"
    if answer["strict"]:
        return "right"
    return (answer["error"] or "another result").replace("_", " ")


def write_csv(path: Path, lines: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


# results/report.md


def artifact_section(metrics: dict[str, dict], found: Outcomes, data: dict) -> list[str]:
    return [
        quality_table(metrics, found),
        "",
        f"All artifacts answered the same {data['rows']['test']} test rows of {data['groups']['test']} groups that "
        "training never saw, greedily. In brackets: 95 % intervals (bootstrap over groups).",
        "",
        plain_table(metrics, COST),
        "",
        "The adapter needs the base model, too. Peak memory: of the GPU if one held the model, else of the process.",
        "",
    ]


def quality_table(metrics: dict[str, dict], found: Outcomes) -> str:
    """The artifacts in pipeline order, a column for each measure that they have."""
    return plain_table(metrics, QUALITY, found)


def plain_table(metrics: dict[str, dict], columns: Mapping[str, str], found: Outcomes | None = None) -> str:
    columns = {head: name for head, name in columns.items() if all(name in values for values in metrics.values())}

    def cell(artifact: str, name: str) -> str:
        text = show(name, metrics[artifact][name])
        if found and name in ("execution_accuracy", "loss") and found.has(artifact, name):
            interval = found.interval(artifact, name)
            if interval.low < interval.high:
                text += f" ({show(name, interval.low)} to {show(name, interval.high)})"
        return text

    return table(["artifact", *columns], [[name, *(cell(name, key) for key in columns.values())] for name in metrics])


def step_section(steps: list[Step]) -> list[str]:
    if not steps:
        return []
    return [
        "## What each step cost",
        "",
        step_table(steps),
        "",
        "Differences are paired, row by row; in brackets 95 % intervals: one that holds 0 shows no difference. KL "
        "divergence (nats) and same top token compare the predictions of the answers' tokens, given the gold answer "
        "so far; KL is of the left artifact to the right one.",
        "",
    ]


def step_table(steps: list[Step]) -> str:
    measures = {"execution accuracy": "execution_accuracy", "loss": "loss", "next token": "next_token_accuracy"}
    measures = {head: name for head, name in measures.items() if all(name in step.differences for step in steps)}
    rows = []
    for step in steps:
        cells = [change(name, step.differences[name]) for name in measures.values()]
        shown = [step.distances.get(name) for name in DISTANCES]
        cells += [show(name, one.value) if one else "-" for name, one in zip(DISTANCES, shown, strict=True)]
        rows.append([f"{step.before} → {step.after}", *cells])
    return table(["step", *measures, "same top token", "KL mean", "KL 99 %"], rows)


def gate_section(checked: list[Checked]) -> list[str]:
    if not checked:
        return []
    return ["## Gates", "", gate_table(checked), ""]


def gate_table(checked: list[Checked]) -> str:
    rows = [
        [gate.name, "holds" if gate.holds else "BROKEN", number(gate.value), limit(gate), f"{gate.margin:+.4g}"]
        for gate in checked
    ]
    return table(["gate", "", "value", "limit", "margin"], rows, left=2)


def limit(gate: Checked) -> str:
    return f"{gate.sign} {gate.limit:g}"


def training_section(training: dict, log: list[dict[str, str]]) -> list[str]:
    lines = [line for line in log if line["eval_loss"]]
    picked = sorted({round(at * (len(lines) - 1) / (LOSSES - 1)) for at in range(LOSSES)}) if lines else []
    trained = {line["step"]: line["loss"] for line in log if line["loss"]}
    rows = [
        [lines[at]["step"], number(float(trained.get(lines[at]["step"], "nan"))), number(float(lines[at]["eval_loss"]))]
        for at in picked
    ]
    return [
        "## Training",
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in training.items()),
        "",
        table(["step", "loss of its batch", "validation loss"], rows, left=0),
        "",
        "Every step: `dvc plots show plots/loss.csv --open`.",
        "",
    ]


def row_section(data: dict) -> list[str]:
    quantiles = ("p5", "p50", "p95", "p99", "max")
    rows = [
        [split, f"{data['rows'][split]:,}", f"{data['groups'][split]:,}"]
        + [str(tokens[name]) for name in quantiles]
        + [f"{tokens['truncated_share']:.1%}"]
        for split, tokens in data["tokens"].items()
    ]
    heads = ["split", "rows", "groups", "tokens 5 %", "median", "95 %", "99 %", "longest", "truncated"]
    reasons = [f"- {count:,} rows: {reason}" for reason, count in data["rows"]["rejected"].items()] or ["- none"]
    return ["## Rows", "", table(heads, rows), "", "Not used:", "", *reasons, ""]


def outcome_section(predictions: dict[str, list[dict]]) -> list[str]:
    counts = {name: Counter(map(describe, answers)) for name, answers in predictions.items()}
    classes = [outcome for outcome, _ in sum(counts.values(), Counter()).most_common()]
    rows = [[outcome, *(str(count[outcome]) for count in counts.values())] for outcome in classes]
    return ["## How the answers ended", "", table(["rows", *counts], rows), ""]


def answer_section(rows: list[dict], predictions: dict[str, list[dict]]) -> list[str]:
    """The most telling rows, with every artifact's answer."""
    lines = ["## Answers to read", "", "Rows on which the artifacts disagree most come first.", ""]
    for at in telling(predictions)[:MOST_ANSWERS]:
        question, gold = rows[at]["messages"][-2:]
        lines += [f"### {rows[at]['id']}", "", "````", question["content"], "````", ""]
        lines += [f"gold: `{one_line(gold['content'])}`", ""]
        for name, answers in predictions.items():
            lines.append(f"- {name}, {describe(answers[at])}: `{one_line(answers[at]['answer'])}`")
        lines.append("")
    return lines


def telling(predictions: dict[str, list[dict]]) -> list[int]:
    """Row numbers, the most telling first: where tuned artifacts disagree; then where all of them are wrong.

    Rows that all get right are left out. Chats have no right or wrong: there the loss must differ.
    """
    tuned = [answers for name, answers in predictions.items() if name != "base"] or list(predictions.values())
    count = len(tuned[0])
    if "strict" not in tuned[0][0]:
        losses = np.array([[answer["nll"] / answer["supervised"] for answer in answers] for answers in tuned])
        return np.argsort(-np.ptp(losses, axis=0), kind="stable").tolist()
    right = [sum(answers[at]["strict"] for answers in tuned) for at in range(count)]
    wrong = [at for at in range(count) if right[at] < len(tuned) and tuned[0][at]["judged"]]
    return sorted(wrong, key=lambda at: -min(right[at], len(tuned) - right[at]))


def show(name: str, value: float | None) -> str:
    """A metric's value as a person reads it."""
    if value is None or math.isnan(value):
        return "-"
    if name in COST.values():
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.1%}" if name in SHARES else number(value)


def change(name: str, difference: Interval) -> str:
    """A difference with its interval; of shares, in percentage points."""
    scale, digits = (100, 1) if name in SHARES else (1, 4)
    value, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.value, difference.low, difference.high))
    return value if math.isnan(difference.low) else f"{value} ({low} to {high})"


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return (
        f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.5f}"
    )


def one_line(text: str, most: int = 300) -> str:
    text = " ".join(text.split()).replace("`", "'")
    return text if len(text) <= most else text[:most] + " ..."


if __name__ == "__main__":
    run_stage(main)
