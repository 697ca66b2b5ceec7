"""The metrics of an artifact, in one table, and the names of gates on them."""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of an artifact.

    Attributes:
        name: Its key in results/scores and in evaluate.gates.
        heading: Of its column in the report.
        unit: "share" (0 to 1), "nats", "tokens", "tokens/s", "ms" or "MB"; "" for a number without one.
        higher_is_better: Gates limit it from below if so, else from above.
        machine_dependent: Whether another machine measures another value of the same artifact. Such a value is never
            in a file that Git tracks.
        kinds: The entries of evaluate.metrics (or SCORER) that measure it; none for what every run measures.
        distance: Whether it compares the artifact with the one it was made from.
    """

    name: str
    heading: str
    unit: str = ""
    higher_is_better: bool = False
    machine_dependent: bool = False
    kinds: tuple[str, ...] = ()
    distance: bool = False


SQL = "execution_accuracy"  # the kind that needs rows with a schema and a query
SCORER = "scorer"  # the kind of evaluate.scorer
GENERAL = "general"  # the kind of evaluate.general
PREFERENCE = "preference"  # the kind of evaluate.preference


def _verdict(name: str, heading: str, *kinds: str, unit: str = "share") -> Metric:
    return Metric(name, heading, unit, higher_is_better=True, kinds=kinds)


METRICS = {
    metric.name: metric
    for metric in (
        _verdict("scorer", "own score", SCORER, unit=""),
        _verdict("execution_accuracy", "execution accuracy", SQL),
        _verdict("execution_accuracy_lenient", "lenient", SQL),
        _verdict("exact_match", "exact match", "exact_match", SQL),
        _verdict("valid_sql", "valid SQL", SQL),
        _verdict("label_accuracy", "label accuracy", "label_accuracy"),
        _verdict("macro_f1", "macro-F1", "label_accuracy"),
        _verdict("number_match", "number", "number_match"),
        _verdict("regex_match", "pattern", "regex_match"),
        _verdict("json_fields", "JSON fields (F1)", "json_fields"),
        _verdict("json_exact", "all fields", "json_fields"),
        _verdict("json_valid", "valid JSON", "json_fields"),
        _verdict("tool_call", "tool call", "tool_call"),
        _verdict("tool_name", "tool name", "tool_call"),
        _verdict("rouge_l", "ROUGE-L", "rouge_l"),
        _verdict("chrf", "chrF", "chrf"),
        _verdict("code_tests", "tests passed", "code_tests"),
        _verdict("model_grade", "grade by a model", "model_grade"),
        _verdict("general", "general set", GENERAL),
        _verdict("preference", "preferred to base", PREFERENCE),
        Metric("loss", "loss", "nats"),
        Metric("perplexity", "perplexity"),
        Metric("next_token_accuracy", "next token", "share", higher_is_better=True),
        Metric("stop_rate", "stops", "share", higher_is_better=True),
        Metric("same_top_token", "same top token", "share", higher_is_better=True, distance=True),
        Metric("kl_mean", "KL mean", "nats", distance=True),
        Metric("kl_p99", "KL 99 %", "nats", distance=True),
        Metric("size_mb", "MB", "MB"),
        Metric("tokens_per_second", "tokens/s", "tokens/s", higher_is_better=True, machine_dependent=True),
        Metric("first_token_ms", "first token, ms", "ms", machine_dependent=True),
        Metric("peak_memory_mb", "peak memory, MB", "MB", machine_dependent=True),
        Metric("answer_tokens", "answer tokens", "tokens"),
        Metric("answer_tokens_p50", "median", "tokens"),
        Metric("answer_tokens_p95", "95 %", "tokens"),
    )
}
AUTO = ("label_accuracy", "json_fields", "tool_call", "number_match", "rouge_l", "exact_match")  # for rows that chat
OWN_KEYS = (SCORER, GENERAL, PREFERENCE)  # kinds that are set by evaluate.KIND; the others are in evaluate.metrics
KINDS = tuple(dict.fromkeys(kind for metric in METRICS.values() for kind in metric.kinds if kind not in OWN_KEYS))
DISTANCES = tuple(metric.name for metric in METRICS.values() if metric.distance)


def measured_by(kinds: Collection[str]) -> list[str]:
    """The names of the metrics that these kinds measure, in the order of METRICS."""
    return [metric.name for metric in METRICS.values() if set(metric.kinds) & set(kinds)]


def main(names: Collection[str]) -> list[str]:
    """The verdicts among `names` that stand for their kind, in this order; the others are their details."""
    by_product = "exact_match" if SQL in names else None
    return [name for name in names if name in (*KINDS, SCORER, "macro_f1") and name != by_product]


def headline(names: Collection[str], task: str = "chat") -> str:
    """The metric by which artifacts and experiments are compared first: the first of `names` that is a verdict."""
    unjudged = "loss" if task == "text" else "next_token_accuracy"
    return next((name for name in names if name in METRICS and METRICS[name].kinds), unjudged)


def parse_gate(name: str) -> tuple[str, str | None, str | None]:
    """Split a gate's name into its metric and, for a limit on a change, "drop" or "rise" and the other artifact.

    `loss` -> loss, None, None; `execution_accuracy_drop_from_adapter` -> execution_accuracy, drop, adapter.
    """
    return re.fullmatch(r"(.*?)(?:_(drop|rise)_from_(.+))?", name, re.DOTALL).groups()
