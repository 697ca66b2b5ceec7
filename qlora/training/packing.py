"""Packing: which rows an optimizer step sees, and in which packs they go through the model.

A pack is one sequence of concatenated rows whose position ids start at 0 with each row; the attention mask keeps the
rows apart (Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021, arXiv:2107.02027). A step's
rows are drawn first and packed afterwards, so the size of the packs changes memory and speed, never what a step learns
from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from qlora.recipe.schema import Train
from qlora.rows.loss_mask import IGNORED, Encoded

import numpy as np
from datasets import Dataset

Pack = list[int]  # row numbers


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a run.

    Attributes:
        steps: A list of packs for each step, equally many in all steps; a pack of a small step may be empty.
        lengths: Tokens of each row.
        alone: Whether each row is a pack of its own.
    """

    steps: list[list[Pack]]
    lengths: Sequence[int]
    alone: bool = False

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def packs_a_step(self) -> int:
        return len(self.steps[0])

    @cached_property
    def packs(self) -> list[Pack]:
        """The packs of all steps, in order."""
        return [pack for step in self.steps for pack in step]

    @cached_property
    def pack_tokens(self) -> list[int]:
        """Tokens of each pack in `packs`."""
        return [sum(self.lengths[row] for row in pack) for pack in self.packs]

    @property
    def longest_pack(self) -> int:
        """Index in `packs` of the pack with the most tokens."""
        return self.pack_tokens.index(max(self.pack_tokens))

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens of each step."""
        return [sum(self.lengths[row] for pack in step for row in pack) for step in self.steps]

    @property
    def rows(self) -> int:
        """Number of rows in all steps; a row that is seen in several epochs counts in each."""
        return sum(map(len, self.packs))


def plan(
    lengths: Sequence[int], train: Train, pack_tokens: int | None = None, processes: int = 1, alone: bool = False
) -> Steps:
    """Lay out a training run.

    The steps of an epoch differ by at most one row. A step's packs are balanced by tokens. Each process takes every
    `processes`-th pack of a step, so all processes get about equally many tokens.

    Args:
        lengths: Tokens of each row.
        train: Batch size, epochs (may be fractional), max_steps and seed of the order.
        pack_tokens: Largest number of tokens in a pack, at least those of the longest row; None for one pack a step.
        processes: Number of processes that share a step; a step's rows do not depend on it.
        alone: Whether each row is a pack of its own.
    """
    steps_per_epoch = math.ceil(len(lengths) / train.batch_size)
    total = max(1, round(train.epochs * steps_per_epoch))
    total = total if train.max_steps is None else min(total, train.max_steps)
    rows_of_steps: list[np.ndarray] = []
    epoch = 0
    while len(rows_of_steps) < total:
        order = np.random.default_rng([train.seed, epoch]).permutation(len(lengths))
        rows_of_steps += np.array_split(order, steps_per_epoch)
        epoch += 1

    # Packs of a process in a step.
    packs_each = math.ceil(max(map(len, rows_of_steps[:total])) / processes) if alone else 1
    steps: list[list[Pack]] = []
    while len(steps) < total:
        rows = rows_of_steps[len(steps)].tolist()
        divided = deal(rows, processes) if alone else balance(rows, lengths, processes)
        shares = [balance(share, lengths, packs_each) for share in divided]
        packs = [pack for together in zip(*shares, strict=True) for pack in together]
        if pack_tokens is not None and max(sum(lengths[row] for row in pack) for pack in packs) > pack_tokens:
            packs_each += 1  # too few packs for this step's tokens: start over, because all steps have equally many
            steps = []
        else:
            steps.append(packs)
    return Steps(steps, lengths, alone)


def deal(rows: Sequence[int], processes: int) -> list[Pack]:
    """Divide rows into shares of about equally many rows."""
    return [list(rows[at::processes]) for at in range(processes)]


def balance(rows: Sequence[int], lengths: Sequence[int], packs: int) -> list[Pack]:
    """Divide rows into `packs` packs of about equal tokens: each row, longest first, goes to the pack with the fewest
    tokens (Graham's LPT rule)."""
    dealt: list[Pack] = [[] for _ in range(packs)]
    filled = [0] * packs
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        emptiest = filled.index(min(filled))
        dealt[emptiest].append(row)
        filled[emptiest] += lengths[row]
    return dealt


def pack_evaluation(lengths: Sequence[int], pack_tokens: int, alone: bool = False) -> list[Pack]:
    """Packs of at most `pack_tokens` tokens, or of one row, that hold each row once."""
    if alone:
        return [[row] for row in range(len(lengths))]
    packs = max(1, math.ceil(sum(lengths) / pack_tokens))
    while max(sum(lengths[row] for row in pack) for pack in balance(range(len(lengths)), lengths, packs)) > pack_tokens:
        packs += 1
    return [pack for pack in balance(range(len(lengths)), lengths, packs) if pack]


def pack_dataset(packs: Sequence[Pack], encoded: Sequence[Encoded], pad_token_id: int) -> Dataset:
    """A data set with one pack an example, whose rows are concatenated on access.

    An example has the columns of trl's padding-free collator: `input_ids` and `labels` (equally long lists) and
    `seq_lengths` (the rows' lengths). An empty pack becomes one pad token without loss.
    """

    def concatenate(batch: dict[str, list[Pack]]) -> dict[str, list[list[int]]]:
        examples: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
        for rows in batch["rows"]:
            members = [encoded[row] for row in rows] or [Encoded([pad_token_id], [IGNORED])]
            examples["input_ids"].append([token for row in members for token in row.input_ids])
            examples["labels"].append([label for row in members for label in row.labels])
            examples["seq_lengths"].append([len(row.input_ids) for row in members])
        return examples

    return Dataset.from_dict({"rows": list(map(list, packs))}).with_transform(concatenate)
