"""What an artifact did with the test rows: answers, scores, the metrics of both, and one record for each row."""

import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qlora.scoring.top_tokens import Top

import numpy as np

LARGEST_LOSS = math.log(sys.float_info.max)  # above it, the perplexity is larger than any number of 64 bits
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
    """One record a row, for results/answers: its answer and its scores."""
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
        "perplexity": round(math.exp(loss), 4) if loss < LARGEST_LOSS else None,
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


def count_tokens(answers: Iterable[Answer]) -> int:
    return sum(len(answer.ids) for answer in answers)


def median_after_warm_up(seconds: list[float]) -> float:
    """The median of all but the first, which warms up; the first if there is no other."""
    return statistics.median(seconds[1:] or seconds)


def peak_memory(pid: int) -> int | None:
    """The peak resident memory of a process in bytes; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
