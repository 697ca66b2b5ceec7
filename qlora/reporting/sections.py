"""The sections of results/report.md, each a list of Markdown lines."""

import json
from collections import Counter
from collections.abc import Mapping

from qlora.judging.labels import ANSWERED, LABEL, NO_LABEL, labels
from qlora.recipe.metrics import DISTANCES, METRICS, headline, main
from qlora.reporting import bootstrap
from qlora.reporting.gates import Checked
from qlora.reporting.outcomes import Outcomes
from qlora.reporting.plots import how_it_ended
from qlora.reporting.steps import Step
from qlora.reporting.tables import change, metric_table, number, one_line, show, table, with_ends
from qlora.sql.reasons import by_reason

import numpy as np
import pandas

LANGUAGE = ("loss", "perplexity", "next_token_accuracy", "stop_rate")
COST = (
    *("size_mb", "tokens_per_second", "first_token_ms", "peak_memory_mb"),
    *("answer_tokens", "answer_tokens_p50", "answer_tokens_p95"),
)
NOT_SHOWN = ("execution_accuracy_lenient",)
MOST_LABELS = 12  # of a confusion table
MOST_REASONS = 5  # of an artifact
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
    verdicts = [name for name in next(iter(metrics.values())) if name in METRICS and METRICS[name].kinds]
    intervals = {
        (name, metric): found.interval(name, metric)
        for name in metrics
        for metric in (*main(verdicts), "loss")
        if found.has(name, metric)
    }
    shown = [name for name in verdicts if name not in NOT_SHOWN]
    return metric_table(metrics, [*shown, *LANGUAGE], intervals)


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
    names = [name for name in steps[0].differences if all(name in step.differences for step in steps)] if steps else []
    rows = []
    for step in steps:
        cells = [change(name, step.differences[name]) for name in names]
        shown = [step.distances.get(name) for name in DISTANCES]
        cells += [show(name, one.value) if one else "-" for name, one in zip(DISTANCES, shown, strict=True)]
        rows.append([f"{step.before} → {step.after}", *cells])
    return table(["step", *(METRICS[name].heading for name in (*names, *DISTANCES))], rows)


def general_section(right: Mapping[str, str], by_kind: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What tuning cost on the general set.

    Args:
        right: Artifact -> a digit for each row, 1 for right; empty if there is no general set.
        by_kind: Artifact -> kind of task -> share of right answers.
    """
    digits = {name: np.array(list(text), float) for name, text in right.items() if text}
    if not digits:
        return []
    rows = []
    for name, values in digits.items():
        ones = np.ones(len(values))
        score = bootstrap.ratio(values, ones, np.arange(len(values)))
        moved = "-"
        if name != "base" and "base" in digits:
            moved = change("general", bootstrap.ratio(values - digits["base"], ones, np.arange(len(values))))
        of_kind = [show("general", value) for value in by_kind[name].values()]
        rows.append([name, with_ends("general", score), moved, *of_kind])
    heads = ["artifact", "right", "against base, points", *next(kinds for kinds in by_kind.values() if kinds)]
    return [
        "## What tuning cost elsewhere",
        "",
        table(heads, rows),
        "",
        f"{len(next(iter(digits.values())))} short tasks beside the one that was trained (evaluate.general).",
        "",
    ]


def preference_section(preferences: Mapping[str, dict], found: Outcomes) -> list[str]:
    """Whose answers a larger model prefers, by what `prefer` wrote for each artifact."""
    rows = []
    for name, one in preferences.items():
        judged = np.array([value is not None for value in one["rows"]], float)
        values = np.array([value or 0 for value in one["rows"]], float)
        interval = bootstrap.ratio(values * judged, judged, found.rows["group"])
        rows.append([name, with_ends("preference", interval), show("preference", one["agreement"]), str(one["judged"])])
    if not rows:
        return []
    models = ", ".join(dict.fromkeys(one["model"] for one in preferences.values()))
    return [
        "## Preferred to the base model",
        "",
        table(["artifact", "preferred", "agrees with itself", "rows"], rows),
        "",
        f"By {models}, asked twice a row with the answers in both orders: 50 % is no preference. It agrees with itself "
        "where both orders give one verdict.",
        "",
    ]


def gate_section(checked: list[Checked]) -> list[str]:
    return ["## Gates", "", gate_table(checked), ""] if checked else []


def gate_table(checked: list[Checked]) -> str:
    rows = [
        [
            gate.name,
            "holds" if gate.holds else "BROKEN",
            gate.shown,
            f"{gate.sign} {gate.limit:g}",
            "-" if gate.value is None else f"{gate.margin:+.4g}",
            gate.note,
        ]
        for gate in checked
    ]
    heads = ["gate", "", "value", "limit", "margin", "note"]
    if not any(gate.note for gate in checked):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return table(heads, rows, left=2)


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


def environment_section(environments: dict[str, str]) -> list[str]:
    """Where the scores come from: libraries and processor move the last digits."""
    names = {words: [name for name in environments if environments[name] == words] for words in environments.values()}
    lines = [f"- {', '.join(artifacts)}: {words}" for words, artifacts in names.items()]
    return ["## Measured with", "", *lines, ""]


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


def unjudged_section(rows: list[dict], predictions: dict[str, list[dict]]) -> list[str]:
    """The rows that the accuracies leave out: which those are depends on no answer."""
    answers = next(iter(predictions.values()))
    found = by_reason(rows, [answer.get("unjudged") for answer in answers]) if "answer" in rows[0] else {}
    if not found:
        return []
    count = sum(one["rows"] for one in found.values())
    return [
        "## What no score can judge",
        "",
        f"{count} of {len(rows)} test rows ({count / len(rows):.1%}) are not in the execution accuracies, which are of "
        f"the other {len(rows) - count}. For example:",
        "",
        *(f"- {one['rows']}: {reason}: {one_line(one['example'])}" for reason, one in found.items()),
        "",
    ]


def outcome_section(predictions: dict[str, list[dict]]) -> list[str]:
    counts = {name: Counter(map(how_it_ended, answers)) for name, answers in predictions.items()}
    classes = [outcome for outcome, _ in sum(counts.values(), Counter()).most_common()]
    rows = [[outcome, *(str(count[outcome]) for count in counts.values())] for outcome in classes]
    return ["## How the answers ended", "", table(["rows", *counts], rows), ""]


def label_section(rows: list[dict], predictions: dict[str, list[dict]]) -> list[str]:
    """How often each gold label was answered with which label, by the first artifact and the last."""
    if LABEL not in next(iter(predictions.values()))[0]:
        return []
    names = labels(rows)
    lines = ["## Confusion", "", "Gold labels in rows, answers in columns.", ""]
    for artifact in dict.fromkeys([next(iter(predictions)), list(predictions)[-1]]):
        pairs = Counter((answer[LABEL], answer[ANSWERED]) for answer in predictions[artifact])
        shown = sorted(
            {right for right, _ in pairs}, key=lambda at: -sum(pairs[at, to] for to in range(-1, len(names)))
        )
        shown = sorted(shown[:MOST_LABELS])
        heads = [artifact, *(one_line(names[at], 20) for at in shown), "no label", "others"]
        table_rows = []
        for right in shown:
            of_label = {to: count for (gold, to), count in pairs.items() if gold == right}
            cells = [of_label.pop(to, 0) for to in (*shown, NO_LABEL)]
            table_rows.append([one_line(names[right], 20), *map(str, cells), str(sum(of_label.values()))])
        if len(shown) == len(names):
            heads, table_rows = heads[:-1], [row[:-1] for row in table_rows]
        lines += [table(heads, table_rows), ""]
    return lines


def reason_section(predictions: dict[str, list[dict]]) -> list[str]:
    """Why rows could not be judged, or failed in evaluate.scorer, with an example of each."""
    lines = []
    for artifact, answers in predictions.items():
        found: dict[tuple, list[str]] = {}
        for answer in answers:
            for kind, outcome in answer.get("outcomes", {}).items():
                if outcome in ("failed", "not judged") and kind in answer.get("reasons", {}):
                    found.setdefault((kind, outcome, answer["reasons"][kind]), []).append(answer["id"])
        lines += [
            f"- {artifact}, {METRICS[kind].heading}: {len(ids)} rows {outcome}: {one_line(reason)} (first {ids[0]})"
            for (kind, outcome, reason), ids in sorted(found.items(), key=lambda one: -len(one[1]))[:MOST_REASONS]
        ]
    return ["## Rows without a verdict", "", *lines, ""] if lines else []


def answer_section(rows: list[dict], predictions: dict[str, list[dict]]) -> list[str]:
    """The most telling rows, with every artifact's answer."""
    lines = ["## Answers to read", "", "Rows on which the artifacts disagree most come first.", ""]
    for at in telling(predictions)[:MOST_ANSWERS]:
        *prompt, gold = rows[at]["messages"]
        called = [call["function"] for call in gold.get("tool_calls", [])]
        lines += [f"### {rows[at]['id']}", ""]
        if prompt:  # a document has none: its first half is continued
            lines += ["````", prompt[-1]["content"], "````", ""]
        lines += [f"gold: `{one_line(gold['content'] or json.dumps(called, ensure_ascii=False))}`", ""]
        for name, answers in predictions.items():
            reasons = "; ".join(answers[at].get("reasons", {}).values())
            why = f" ({one_line(reasons)})" if reasons else ""
            lines.append(f"- {name}, {how_it_ended(answers[at])}: `{one_line(answers[at]['answer'])}`{why}")
        lines.append("")
    return lines


def telling(predictions: Mapping[str, list[dict]]) -> list[int]:
    """Row numbers, the most telling first: those on which tuned artifacts disagree, then those that all get wrong.

    Rows that all get right are left out. Where nothing is judged, the spread of the losses sorts the rows.
    """
    tuned = [answers for name, answers in predictions.items() if name != "base"] or list(predictions.values())
    metric = headline(tuned[0][0])
    if not METRICS[metric].kinds:
        losses = np.array([[answer["nll"] / answer["supervised"] for answer in answers] for answers in tuned])
        return np.argsort(-np.ptp(losses, axis=0), kind="stable").tolist()
    judged = [at for at in range(len(tuned[0])) if all(answers[at][metric] is not None for answers in tuned)]
    values = {at: [float(answers[at][metric]) for answers in tuned] for at in judged}
    if all(value in (0, 1) for row in values.values() for value in row):
        right = {at: sum(values[at]) for at in judged}
        wrong = [at for at in judged if right[at] < len(tuned)]
        return sorted(wrong, key=lambda at: -min(right[at], len(tuned) - right[at]))
    return sorted(judged, key=lambda at: (min(values[at]) - max(values[at]), sum(values[at])))
