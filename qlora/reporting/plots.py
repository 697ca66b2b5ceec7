"""The CSV files of `dvc plots show`, and how one answer ended."""

from collections import Counter

from qlora.recipe.metrics import headline
from qlora.reporting.outcomes import Outcomes

import pandas


def losses(log: pandas.DataFrame, kept_step: int) -> pandas.DataFrame:
    """One line for each loss in the log: of each step's batch, and of the validation rows at some steps.

    If the adapter is not the last step's, one more line marks the step that was kept.
    """
    long = log.rename(columns={"loss": "training", "eval_loss": "validation"}).melt(
        "step", ["training", "validation"], "split", "loss"
    )
    if kept_step < log["step"].max():
        kept = long[(long["step"] == kept_step) & (long["split"] == "validation")]
        long = pandas.concat([long, kept.assign(split="kept")])
    return long.dropna().round({"loss": 5})


def artifacts(metrics: dict[str, dict], found: Outcomes, task: str) -> pandas.DataFrame:
    """One line an artifact, for quality by artifact and by size; low and high are the ends of the score's interval."""
    lines, score = [], headline(next(iter(metrics.values())), task)
    for name, values in metrics.items():
        line = {"artifact": name, "score": values[score]}
        if found.has(name, score):
            interval = found.interval(name, score)
            line |= {"low": round(interval.low, 4), "high": round(interval.high, 4)}
        lines.append(line | {key: values[key] for key in ("loss", "stop_rate", "size_mb")})
    return pandas.DataFrame(lines)


def outcome_counts(predictions: dict[str, list[dict]]) -> pandas.DataFrame:
    """How many rows of each artifact ended how."""
    return pandas.DataFrame(
        [
            {"artifact": name, "outcome": outcome, "rows": count}
            for name, answers in predictions.items()
            for outcome, count in Counter(map(how_it_ended, answers)).most_common()
        ]
    )


def how_it_ended(answer: dict) -> str:
    """For text-to-SQL: right, another result, or the error's class; else the headline's outcome, or if it stopped."""
    if "execution_accuracy" not in answer:
        if outcome := answer.get("outcomes", {}).get(headline(answer)):
            return outcome
        return "stopped" if answer["stopped"] else "ran on"
    if answer["execution_accuracy"] is None:
        return "not judged"
    if answer["execution_accuracy"]:
        return "right"
    return (answer["error"] or "another result").replace("_", " ")
