"""Label accuracy: answers out of a closed set, their confusion, and macro-F1."""

from collections.abc import Sequence

from qlora.judging.texts import gold, normalised, without_reasoning

import numpy as np

LABEL, ANSWERED = "label", "label_answered"  # numbers of the gold label and the answered one
NO_LABEL = -1


def labels(rows: Sequence[dict]) -> list[str]:
    """The distinct gold answers, normalised and sorted."""
    return sorted({normalised(gold(row)) for row in rows})


def label_accuracy(rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """One record a row: whether the answer is the gold label after `texts.normalised`, and the numbers of both.

    An answer that is none of the test rows' labels is "no label": NO_LABEL.
    """
    numbers = {label: number for number, label in enumerate(labels(rows))}
    records = []
    for row, answer in zip(rows, answers, strict=True):
        right = numbers[normalised(gold(row))]
        found = numbers.get(normalised(without_reasoning(answer)), NO_LABEL)
        outcome = "right" if found == right else "no label" if found == NO_LABEL else "another label"
        records.append({"label_accuracy": int(found == right), LABEL: right, ANSWERED: found, "outcome": outcome})
    return records


def label_counts(right: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For each row three counts a label: it is right and answered, it is right, it is answered."""
    names = np.arange(right.max() + 1)
    is_right, is_found = right[:, None] == names, found[:, None] == names
    return np.concatenate([is_right & is_found, is_right, is_found], 1).astype(float)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean F1 of the gold labels, by the sums of `label_counts` over rows (last axis).

    A label that no row has counts neither for nor against.
    """
    hits, right, found = np.split(sums, 3, axis=-1)
    there = right > 0
    scores = np.divide(2 * hits, right + found, out=np.zeros_like(hits), where=there)
    return scores.sum(-1) / there.sum(-1)
