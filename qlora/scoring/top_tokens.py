"""The distance between two artifacts' predictions of the same tokens: KL divergence and the share of equal top tokens.

For each supervised token of the test rows, `evaluate` keeps the most probable ids with their log-probabilities. So any
two artifacts can be compared afterwards, without their weights.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora.runtime.outputs import write_bytes

import numpy as np

COUNT = 64  # ids kept a token; the others together have 0.2 % of the probability after SQL fine-tuning, 3 % before
SMALLEST = 1e-7  # probability; less is rounding error
BLOCK = 1024  # tokens compared at once


@dataclass(frozen=True)
class Top:
    """The most probable next tokens at some positions.

    Attributes:
        ids: (positions, COUNT) int32, most probable first.
        logprobs: (positions, COUNT) float32, natural logarithm of the full softmax.
    """

    ids: np.ndarray
    logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def save(path: Path, rows: Sequence[Top]) -> None:
    """Write the positions of all rows, concatenated."""
    buffer = io.BytesIO()
    ids = np.concatenate([row.ids for row in rows])
    np.savez_compressed(buffer, ids=ids, logprobs=np.concatenate([row.logprobs for row in rows]))
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> Top:
    with np.load(path) as arrays:
        return Top(arrays["ids"], arrays["logprobs"])


def kl_divergence(p: Top, q: Top) -> np.ndarray:
    """KL(p || q) at each position, in nats; p is the reference.

    Ids that both keep are compared one by one and all others as one event, so this is a lower bound (data-processing
    inequality). It is close where the others are improbable.

    Returns:
        (positions,) float64, not negative.
    """
    if len(p) != len(q):
        raise ValueError(f"{len(p)} positions against {len(q)}")
    blocks = [slice(begin, begin + BLOCK) for begin in range(0, len(p), BLOCK)]
    return np.concatenate([_kl_divergence(p, q, block) for block in blocks]) if blocks else np.zeros(0)


def _kl_divergence(p: Top, q: Top, block: slice) -> np.ndarray:
    log_p, log_q = p.logprobs[block].astype(np.float64), q.logprobs[block].astype(np.float64)
    same = p.ids[block][:, :, None] == q.ids[block][:, None, :]  # (positions, COUNT of p, COUNT of q)
    shared = same.any(2)
    log_q_of_p = np.take_along_axis(log_q, same.argmax(2), 1)
    probability = np.where(shared, np.exp(log_p), 0)
    rest_p = np.maximum(1 - probability.sum(1), SMALLEST)
    rest_q = np.maximum(1 - np.where(shared, np.exp(log_q_of_p), 0).sum(1), SMALLEST)
    divergence = (probability * (log_p - log_q_of_p)).sum(1) + rest_p * np.log(rest_p / rest_q)
    return np.maximum(divergence, 0)


def same_top(p: Top, q: Top) -> np.ndarray:
    """Whether the most probable ids are equal, at each position: (positions,) bool."""
    return p.ids[:, 0] == q.ids[:, 0]
