"""What an artifact did with the test rows: answers, scores, the metrics of both, and one record for each row."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.schema import Params
from qlora.scoring.top_tokens import Top
from qlora.sql import verdict

import numpy as np
from tqdm import tqdm

TIMED_PROMPTS = 5  # answered one at a time, to measure the time to the first token


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the stop token, and whether the model stopped by itself."""

    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class Score:
    """Teacher-forced scores of one row's supervised tokens.

    Attributes:
        supervised: Number of supervised tokens.
        nll: Their summed negative log-likelihood, in nats.
        top1: How many of them were the most probable token.
        top: The most probable tokens at each of their positions.
    """

    supervised: int
    nll: float
    top1: int
    top: Top


@dataclass(frozen=True)
class Results:
    """What an artifact did with all test rows.

    Attributes:
        answers: One a row.
        scores: One a row.
        tokens_per_second: Generated tokens, of several answers at a time on all devices.
        first_token_seconds: Median over TIMED_PROMPTS prompts, one at a time.
        peak_memory: In bytes, of the GPU that holds the model (the fullest of several), else of the process that runs
            it; None if the system does not tell.
    """

    answers: list[Answer]
    scores: list[Score]
    tokens_per_second: float
    first_token_seconds: float
    peak_memory: int | None


def records(rows: list[dict], texts: list[str], results: Results) -> list[dict]:
    """One record a row, for results/predictions: its answer and its scores."""
    return [
        {"id": row["id"], "answer": text, "answer_tokens": len(answer.ids), "stopped": answer.stopped}
        | {"nll": round(score.nll, 4), "supervised": score.supervised, "top1": score.top1}
        for row, text, answer, score in zip(rows, texts, results.answers, results.scores, strict=True)
    ]


def language_metrics(results: Results, size: int) -> dict:
    """The metrics that every task has.

    Args:
        results: Of all test rows.
        size: Bytes of the artifact.
    """
    answers, scores = results.answers, results.scores
    supervised = sum(score.supervised for score in scores)
    loss = sum(score.nll for score in scores) / supervised
    lengths = [len(answer.ids) for answer in answers]
    return {
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 4),
        "next_token_accuracy": round(sum(score.top1 for score in scores) / supervised, 4),
        "stop_rate": round(sum(answer.stopped for answer in answers) / len(answers), 4),
        "answer_tokens": round(float(np.mean(lengths)), 1),
        "answer_tokens_p50": round(float(np.quantile(lengths, 0.5)), 1),
        "answer_tokens_p95": round(float(np.quantile(lengths, 0.95)), 1),
        "rows": len(answers),
        "tokens_per_second": round(results.tokens_per_second, 1),
        "first_token_ms": round(1000 * results.first_token_seconds, 1),
        "peak_memory_mb": results.peak_memory and round(results.peak_memory / 1e6),
        "size_mb": round(size / 1e6, 1),
    }


def judge_sql(rows: list[dict], texts: list[str], records: list[dict], params: Params) -> dict:
    """Judge the answers by executing them on generated databases, and return the metrics of text-to-SQL.

    Each record gets what its row adds to these metrics, and `error`, the class of the error that the answer raised.
    The accuracies are None where the gold query cannot be judged.
    """
    settings = params.evaluate
    with tqdm(total=len(rows), desc="running SQL", unit=" rows") as bar:
        verdicts = verdict.score(
            rows,
            texts,
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
            progress=lambda done: bar.update(done - bar.n),
        )
    for record, one in zip(records, verdicts, strict=True):
        judged = one.gold is None
        record |= {
            "execution_accuracy": one.strict if judged else None,
            "execution_accuracy_lenient": one.lenient if judged else None,
            "exact_match": one.exact,
            "valid_sql": one.valid,
            "error": one.error,
        }
    totals = verdict.totals(verdicts)
    return {
        "execution_accuracy": totals["strict"],
        "execution_accuracy_lenient": totals["lenient"],
        "exact_match": totals["exact"],
        "valid_sql": totals["valid"],
        "gold_undetermined": totals["undetermined"],
        "gold_invalid": totals["gold_invalid"],
    }


def count_tokens(answers: Iterable[Answer]) -> int:
    return sum(len(answer.ids) for answer in answers)


def median_after_warm_up(seconds: list[float]) -> float:
    """The median of all but the first, which warms up."""
    return statistics.median(seconds[1:])


def peak_memory(pid: int) -> int | None:
    """The peak resident memory of a process in bytes; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
