"""Divide the accepted rows into training, validation and test rows, group by group."""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from qlora.raw_rows.index import Index, Rejections
from qlora.recipe.schema import Data
from qlora.rows.prepared import SPLITS
from qlora.runtime.console import Refusal

import numpy as np

BEYOND_SOURCE = "beyond the rows or the weight of its source"


def assign_splits(index: Index, data: Data) -> tuple[np.ndarray, dict[int, str]]:
    """The split of each accepted row, as an index into SPLITS, and why some rows are left out.

    data.seed decides which groups each split gets, and which rows are kept if a split has more than its limit
    (data.train_rows, data.validation_rows, data.test_rows).
    """
    groups = len(index.groups)
    order = np.random.default_rng(data.seed).permutation(groups)
    split_of_group = np.zeros(groups, dtype=np.int8)
    if data.test_source:
        is_test = np.frombuffer(bytes(index.is_test), dtype=np.uint8).astype(bool)
        split_of_group[is_test] = SPLITS.index("test")
        order = order[~is_test[order]]
    else:
        n_test = round(groups * data.test_fraction)
        split_of_group[order[:n_test]] = SPLITS.index("test")
        order = order[n_test:]
    split_of_group[order[: round(len(order) * data.validation_fraction)]] = SPLITS.index("validation")

    split_of_row = split_of_group[np.array(index.group_of, dtype=np.int64)]
    left_out = dict.fromkeys(_beyond_source(index, data, split_of_row), BEYOND_SOURCE)
    for number, split in enumerate(SPLITS):
        limit = getattr(data, f"{split}_rows")
        members = [row for row in np.flatnonzero(split_of_row == number) if row not in left_out]
        if limit is not None and len(members) > limit:
            beyond = np.random.default_rng([data.seed, number]).permutation(members)[limit:]
            left_out |= dict.fromkeys(map(int, beyond), f"beyond data.{split}_rows")
    return split_of_row, left_out


def _beyond_source(index: Index, data: Data, split_of_row: np.ndarray) -> Iterator[int]:
    """Training rows that are more than their source's `rows`, or than its weight allows beside the other sources.

    No row is repeated: the source that has the fewest rows for its weight decides how many the others give.
    """
    parts, weighted = data.parts, all(part.weight for part in data.parts)
    if not weighted and all(part.rows is None for part in parts):
        return
    source_of = np.array(index.source_of)
    members = [
        np.random.default_rng([data.seed, 3, number]).permutation(
            np.flatnonzero((split_of_row == SPLITS.index("train")) & (source_of == number))
        )[: part.rows]
        for number, part in enumerate(parts)
    ]
    kept = set()
    if weighted:
        if empty := [part.source for part, rows in zip(parts, members, strict=True) if not len(rows)]:
            raise Refusal(f"data.sources: no training row of {empty[0]} is left; leave it out, or look at its rows")
        whole = sum(part.weight for part in parts)
        share = min(len(rows) / part.weight for part, rows in zip(parts, members, strict=True))
        share = min(share, (data.train_rows or math.inf) / whole)
        members = [rows[: round(part.weight * share)] for part, rows in zip(parts, members, strict=True)]
    for rows in members:
        kept.update(map(int, rows))
    for row in np.flatnonzero(split_of_row == SPLITS.index("train")):
        if int(row) not in kept:
            yield int(row)


def write_splits(output: Path, index: Index, rejected: Rejections, data: Data, max_length: int) -> dict:
    """Copy the accepted rows into their splits and return the report's counts."""
    split_of_row, left_out = assign_splits(index, data)
    of_source: Counter[tuple[int, str]] = Counter()
    lengths = {split: array("q") for split in SPLITS}
    supervised: Counter[str] = Counter()
    groups: dict[str, set[int]] = {split: set() for split in SPLITS}
    with ExitStack() as stack:
        files = {s: stack.enter_context((output / f"{s}.jsonl").open("w", encoding="utf-8")) for s in SPLITS}
        for row, (prepared, number) in enumerate(zip(index.read(), split_of_row, strict=True)):
            split = SPLITS[number]
            if row in left_out:
                rejected.add(prepared["id"], left_out[row])
                continue
            of_source[index.source_of[row], split] += 1
            files[split].write(json.dumps(prepared, ensure_ascii=False) + "\n")
            lengths[split].append(prepared["tokens"])
            supervised[split] += prepared["supervised"]
            groups[split].add(index.group_of[row])
    index.remove()
    return {
        "rows": {split: len(lengths[split]) for split in SPLITS},
        "rows_of_source": [
            {split: of_source[number, split] for split in SPLITS} for number in range(len(data.parts) + 1)
        ],
        "groups": {split: len(groups[split]) for split in SPLITS},
        "tokens": {split: token_statistics(lengths[split], supervised[split], max_length) for split in SPLITS},
    }


def token_statistics(lengths: array, supervised: int, max_length: int) -> dict:
    """Quantiles of the rows' lengths in tokens (before truncation), and the tokens seen and supervised in training."""
    if not lengths:
        return {"total": 0, "supervised": 0}
    tokens = np.array(lengths)
    quantiles = {f"p{q}": int(np.percentile(tokens, q)) for q in (5, 50, 95, 99)}
    return quantiles | {
        "max": int(tokens.max()),
        "truncated_share": round(float((tokens > max_length).mean()), 4),
        "total": int(np.minimum(tokens, max_length).sum()),
        "supervised": supervised,
    }


def refuse_empty_splits(report: dict, rejected: Rejections, data: Data) -> None:
    """Raise Refusal if a split has no row, with the reasons that emptied it."""
    empty = [split for split in SPLITS if report["rows"][split] == 0]
    if not empty:
        return
    reasons = rejected.most_common(2)
    groups = sum(report["groups"].values())
    if reasons and groups == 0:
        raise Refusal(f"{data.name}: every row was dropped ({reasons})")
    raise Refusal(
        f"{data.name}: no row is left for {' and '.join(empty)}: {groups} groups were split by "
        f"data.validation_fraction ({data.validation_fraction}) and data.test_fraction ({data.test_fraction}); raise "
        "them, or group the rows by another column (data.columns.group)" + (f"; dropped: {reasons}" if reasons else "")
    )
