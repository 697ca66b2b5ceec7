"""The metrics of an artifact, in one table, and the names of gates on them."""

import re
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
        sql: Whether only text-to-SQL has it.
        distance: Whether it compares the artifact with the one it was made from.
    """

    name: str
    heading: str
    unit: str = ""
    higher_is_better: bool = False
    machine_dependent: bool = False
    sql: bool = False
    distance: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("execution_accuracy", "execution accuracy", "share", higher_is_better=True, sql=True),
        Metric("execution_accuracy_lenient", "lenient", "share", higher_is_better=True, sql=True),
        Metric("exact_match", "exact match", "share", higher_is_better=True, sql=True),
        Metric("valid_sql", "valid SQL", "share", higher_is_better=True, sql=True),
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
DISTANCES = tuple(metric.name for metric in METRICS.values() if metric.distance)


def headline(task: str) -> str:
    """The name of the metric by which artifacts and experiments of a task are compared first."""
    return "execution_accuracy" if task == "text-to-sql" else "next_token_accuracy"


def parse_gate(name: str) -> tuple[str, str | None, str | None]:
    """Split a gate's name into its metric and, for a limit on a change, "drop" or "rise" and the other artifact.

    `loss` -> loss, None, None; `execution_accuracy_drop_from_adapter` -> execution_accuracy, drop, adapter.
    """
    return re.fullmatch(r"(.*?)(?:_(drop|rise)_from_(.+))?", name, re.DOTALL).groups()
