"""The sections of results/report.md, each a list of Markdown lines."""

from collections import Counter
from collections.abc import Mapping

from qlora.recipe.metrics import DISTANCES, METRICS
from qlora.reporting.gates import Checked
from qlora.reporting.outcomes import Outcomes
from qlora.reporting.plots import how_it_ended
from qlora.reporting.steps import Step
from qlora.reporting.tables import change, metric_table, number, one_line, show, table

import numpy as np
import pandas

QUALITY = (
    *("execution_accuracy", "exact_match", "valid_sql"),
    *("loss", "perplexity", "next_token_accuracy", "stop_rate"),
)
COST = (
    *("size_mb", "tokens_per_second", "first_token_ms", "peak_memory_mb"),
    *("answer_tokens", "answer_tokens_p50", "answer_tokens_p95"),
)
WITH_INTERVAL = ("execution_accuracy", "loss")
STEP_METRICS = ("execution_accuracy", "loss", "next_token_accuracy")
MOST_ANSWERS = 10  # rows whose answers are shown
LOSSES = 8  # lines of the loss curve as a table


def artifact_section(metrics: dict[str, dict], found: Outcomes, data: dict) -> list[str]:
    return [
        quality_table(metrics, found),
        "",
        f"All artifacts answered the same {data['rows']['test']} test rows of {data['groups']['test']} groups that "
        "training never saw, greedily. In brackets: 95 % intervals (bootstrap over groups).",
        "",
        metric_table(metrics, COST),
        "",
        "The adapter needs the base model, too. Peak memory: of the GPU if one held the model, else of the process.",
        "",
    ]


def quality_table(metrics: dict[str, dict], found: Outcomes) -> str:
    """The artifacts in pipeline order, with a column for each metric that all of them have."""
    intervals = {
        (name, metric): found.interval(name, metric)
        for name in metrics
        for metric in WITH_INTERVAL
        if found.has(name, metric)
    }
    return metric_table(metrics, QUALITY, intervals)


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
    names = [name for name in STEP_METRICS if all(name in step.differences for step in steps)]
    rows = []
    for step in steps:
        cells = [change(name, step.differences[name]) for name in names]
        shown = [step.distances.get(name) for name in DISTANCES]
        cells += [show(name, one.value) if one else "-" for name, one in zip(DISTANCES, shown, strict=True)]
        rows.append([f"{step.before} → {step.after}", *cells])
    return table(["step", *(METRICS[name].heading for name in (*names, *DISTANCES))], rows)


def gate_section(checked: list[Checked]) -> list[str]:
    return ["## Gates", "", gate_table(checked), ""] if checked else []


def gate_table(checked: list[Checked]) -> str:
    rows = [
        [
            gate.name,
            "holds" if gate.holds else "BROKEN",
            number(gate.value),
            f"{gate.sign} {gate.limit:g}",
            "-" if gate.value is None else f"{gate.margin:+.4g}",
        ]
        for gate in checked
    ]
    return table(["gate", "", "value", "limit", "margin"], rows, left=2)


def training_section(training: dict, log: pandas.DataFrame) -> list[str]:
    validated = log[log["eval_loss"].notna()]
    picked = np.unique(np.linspace(0, len(validated) - 1, LOSSES).round().astype(int)) if len(validated) else []
    rows = [[str(line.step), number(line.loss), number(line.eval_loss)] for line in validated.iloc[picked].itertuples()]
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
    counts = {name: Counter(map(how_it_ended, answers)) for name, answers in predictions.items()}
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
            lines.append(f"- {name}, {how_it_ended(answers[at])}: `{one_line(answers[at]['answer'])}`")
        lines.append("")
    return lines


def telling(predictions: Mapping[str, list[dict]]) -> list[int]:
    """Row numbers, the most telling first: those on which tuned artifacts disagree, then those that all get wrong.

    Rows that all get right are left out. Chat answers are not judged: there the spread of the losses sorts the rows.
    """
    tuned = [answers for name, answers in predictions.items() if name != "base"] or list(predictions.values())
    if "execution_accuracy" not in tuned[0][0]:
        losses = np.array([[answer["nll"] / answer["supervised"] for answer in answers] for answers in tuned])
        return np.argsort(-np.ptp(losses, axis=0), kind="stable").tolist()
    judged = [at for at, answer in enumerate(tuned[0]) if answer["execution_accuracy"] is not None]
    right = {at: sum(answers[at]["execution_accuracy"] for answers in tuned) for at in judged}
    wrong = [at for at in judged if right[at] < len(tuned)]
    return sorted(wrong, key=lambda at: -min(right[at], len(tuned) - right[at]))
