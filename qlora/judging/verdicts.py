"""The verdicts on an artifact's answers: by evaluate.scorer, then by each entry of evaluate.metrics.

A metric's function returns one record a row: its values by their names (1, 0 or a share; None if no answer to the row
can be judged), `outcome`, how the answer ended in a few words, and perhaps `reason`. The metric is the mean over rows,
weighted by the value named NAME_weight if there is one.
"""

from collections.abc import Sequence
from pathlib import Path

from qlora.judging import (
    choice,
    code_tests,
    execution,
    json_fields,
    labels,
    matches,
    model_grade,
    overlap,
    scorer,
    tool_calls,
)
from qlora.recipe.metrics import SCORER, SQL, measured_by
from qlora.recipe.schema import JudgedBy, Params

import numpy as np


def judge(rows: Sequence[dict], answers: Sequence[str], params: Params) -> tuple[list[dict], dict]:
    """One record a row with the verdicts of all metrics, and each metric over all rows, the headline first."""
    records, metrics = [{} for _ in rows], {}
    own = [JudgedBy.model_construct(name=SCORER)] if params.evaluate.scorer else []
    for entry in own + named(rows, params):
        found, values = judge_by(entry, rows, answers, params)
        for record, one in zip(records, found, strict=True):
            for key in ("outcome", "reason"):
                if key in one:
                    record.setdefault(f"{key}s", {})[entry.name] = one.pop(key)
            record.update(one)
        metrics |= {name: value for name, value in values.items() if name not in metrics}  # `judged`: the headline's
    return records, metrics


def named(rows: Sequence[dict], params: Params) -> list[JudgedBy]:
    """The entries of evaluate.metrics, with what the rows call for in place of `auto`; says what that is."""
    entries = []
    for entry in params.evaluate.metrics:
        if entry.name != "auto":
            entries.append(entry)
            continue
        if params.data.task == "text":
            names, why = [], "documents have no right answer"
        elif params.data.task == "text-to-sql":
            names, why = [SQL], "the rows are text-to-SQL"
        else:
            names, why = choice.choose(rows)
        print(f"metrics: {', '.join(names) or 'none'}, because {why} (evaluate.metrics names others)")
        entries += [JudgedBy(name=name) for name in names]
    names = [entry.name for entry in entries]
    by_product = {"exact_match"} if SQL in names else set()  # SQL is compared by its own rules
    return [entry for at, entry in enumerate(entries) if entry.name not in {*names[:at], *by_product}]


def judge_by(entry: JudgedBy, rows: Sequence[dict], answers: Sequence[str], params: Params) -> tuple[list[dict], dict]:
    """One record a row, and the metrics over all rows."""
    match entry.name:
        case "execution_accuracy":
            return execution.judge(rows, answers, params)
        case "scorer":
            records = scorer.scorer(rows, answers, Path(params.evaluate.scorer))
        case "exact_match":
            records = matches.exact_match(rows, answers)
        case "label_accuracy":
            records = labels.label_accuracy(rows, answers)
        case "number_match":
            records = matches.number_match(rows, answers, entry.tolerance)
        case "regex_match":
            records = matches.regex_match(rows, answers, entry.pattern)
        case "json_fields":
            records = json_fields.json_fields(rows, answers, entry.json_schema)
        case "tool_call":
            records = tool_calls.tool_call(rows, answers)
        case "rouge_l":
            records = overlap.rouge_l(rows, answers)
        case "chrf":
            records = overlap.chrf(rows, answers)
        case "code_tests":
            records = code_tests.code_tests(rows, answers, entry)
        case "model_grade":
            records = model_grade.model_grade(rows, answers, entry)
    values = {name: mean(records, name) for name in measured_by([entry.name]) if name != "macro_f1"}
    if entry.name == "label_accuracy":
        numbers = (np.array([record[name] for record in records]) for name in (labels.LABEL, labels.ANSWERED))
        values["macro_f1"] = round(float(labels.macro_f1(labels.label_counts(*numbers).sum(0))), 4)
    return records, values | {"judged": sum(record[entry.name] is not None for record in records)}


def mean(records: Sequence[dict], name: str) -> float | None:
    """The weighted mean of a value over the rows that have one; None if there is no such row."""
    weights = [record.get(f"{name}_weight", 1) for record in records if record[name] is not None]
    values = [record[name] for record in records if record[name] is not None]
    total = sum(weights)
    return round(float(np.dot(values, weights)) / total, 4) if total else None
