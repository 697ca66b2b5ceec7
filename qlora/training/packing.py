"""Laying rows out for training: which rows an optimizer step sees, and in which packs they go through the model.

A pack is one sequence of several rows behind one another, whose position ids start at 0 with each row; the model's
attention mask keeps them apart (Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021,
arXiv:2107.02027). A step's rows are drawn first and packed after, so the size of the packs changes memory and speed,
and never what a step learns from.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from qlora.rows.chat import IGNORED, Encoded

if TYPE_CHECKING:
    from datasets import Dataset


def plan(
    lengths: Sequence[int],
    batch_size: int,
    pack_tokens: int,
    epochs: float,
    max_steps: int | None,
    seed: int,
    processes: int = 1,
) -> list[list[list[int]]]:
    """Lay out a training run.

    Args:
        lengths: tokens of each row, none above `pack_tokens`.
        batch_size: rows a step; an epoch's last rows are spread so that its steps differ by one row at most.
        pack_tokens: the most tokens in a pack.
        epochs: passes over the rows, each in its own order; may be fractional.
        max_steps: stop after that many steps, if it comes first.
        seed: of the order.
        processes: that share a step; its rows are the same for any number of them.

    Returns:
        Steps, each a list of packs, each a list of row numbers. All steps have the same number of packs (the trainer
        accumulates a fixed number of gradients), balanced by tokens; a pack of a small step may be empty. Each process
        takes one of `processes` packs behind one another, and in a step all of them take about equally many tokens.
    """
    steps_per_epoch = math.ceil(len(lengths) / batch_size)
    total = max(1, round(epochs * steps_per_epoch))
    total = total if max_steps is None else min(total, max_steps)
    steps: list[np.ndarray] = []
    epoch = 0
    while len(steps) < total:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        steps += np.array_split(order, steps_per_epoch)
        epoch += 1
    steps = steps[:total]

    packs_each = 1
    packed: list[list[list[int]]] = []
    while len(packed) < total:
        rows = steps[len(packed)]
        shares = [balance(share, lengths, packs_each) for share in balance(rows.tolist(), lengths, processes)]
        packs = [pack for together in zip(*shares, strict=True) for pack in together]
        if max(sum(lengths[row] for row in pack) for pack in packs) > pack_tokens:
            packs_each += 1  # too many tokens for so few packs: start over with one more
            packed = []
        else:
            packed.append(packs)
    return packed


def balance(rows: Sequence[int], lengths: Sequence[int], packs: int) -> list[list[int]]:
    """Deal rows into `packs` lists of about equal tokens: longest first, each to the emptiest (Graham's LPT rule)."""
    dealt: list[list[int]] = [[] for _ in range(packs)]
    filled = [0] * packs
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        emptiest = filled.index(min(filled))
        dealt[emptiest].append(row)
        filled[emptiest] += lengths[row]
    return dealt


def pack_evaluation(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Packs of at most `pack_tokens` tokens that hold each row once."""
    packs = max(1, math.ceil(sum(lengths) / pack_tokens))
    while max(sum(lengths[row] for row in pack) for pack in balance(range(len(lengths)), lengths, packs)) > pack_tokens:
        packs += 1
    return [pack for pack in balance(range(len(lengths)), lengths, packs) if pack]


def pack_dataset(packs: Sequence[Sequence[int]], encoded: Sequence[Encoded], pad_token_id: int) -> "Dataset":
    """A data set with one pack an example, put together when it is asked for.

    Each example has `input_ids` and `labels` (equally long lists) and `seq_lengths` (the rows' lengths), as trl's
    padding-free collator takes them. An empty pack becomes one pad token without a label.
    """
    from datasets import Dataset  # only training needs it, and it takes a second to import

    def assemble(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        examples: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
        for rows in batch["rows"]:
            members = [encoded[row] for row in rows] or [Encoded([pad_token_id], [IGNORED])]
            examples["input_ids"].append([token for row in members for token in row.input_ids])
            examples["labels"].append([label for row in members for label in row.labels])
            examples["seq_lengths"].append([len(row.input_ids) for row in members])
        return examples

    return Dataset.from_dict({"rows": list(map(list, packs))}).with_transform(assemble)


def pack_tensors(rows: Sequence[Encoded], device: torch.device) -> dict[str, torch.Tensor | bool]:
    """One pack as keyword arguments of the model's forward: input_ids and position_ids, both (1, tokens).

    transformers keeps the rows apart only where there is no key-value cache, which it would make by default.
    """
    ids = [token for row in rows for token in row.input_ids]
    positions = [at for row in rows for at in range(len(row.input_ids))]
    return {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "use_cache": False,
    }
