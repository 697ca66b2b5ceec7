"""prepare-dataset: rows become checked, deduplicated conversations, split so that no group stands in two splits.

Writes data/prepared/{train,validation,test}.jsonl, rejected.jsonl (each dropped row with its reason) and report.json.
Two passes, so that memory stays bounded: the first checks each row and keeps the good ones in a temporary file, with
a few bytes a row in memory; the second copies the rows that the splits take.
"""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qlora.raw_rows import rows
from qlora.recipe.params import Data, Model, load_params
from qlora.rows import chat
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model

SPLITS = ("train", "validation", "test")


def main() -> None:
    params = load_params()
    data, max_length = params.data, params.train.max_length
    folder = base_model.locate(Path("models/base"))
    record = json.loads((Path("models/base") / base_model.RECORD).read_text(encoding="utf-8"))
    tokenizer = chat.load_tokenizer(folder)
    stops = chat.stop_ids(tokenizer, folder)

    with new_folder(Path("data/prepared")) as output:
        with (output / "rejected.jsonl").open("w", encoding="utf-8") as rejected_file:
            rejected = Rejections(rejected_file)
            index = Index(output / "accepted.tmp")
            for from_test_source, row_id, row in tqdm(source_rows(data), desc="rows", unit=" rows"):
                try:
                    index.add(check(row_id, row, data, tokenizer, stops, max_length), data, from_test_source)
                except (rows.Rejected, chat.Unusable) as reason:
                    rejected.add(row_id, str(reason))
            report = write_splits(output, index, rejected, data, max_length)
        report["rows"]["rejected"] = dict(rejected.reasons.most_common())
        refuse_empty_splits(report, data)
        report["made_from"] = made_from(Model(id=record["id"], revision=record["revision"]), data, max_length)
        write_json(output / "report.json", report)

    tokens = report["tokens"]["train"]
    summary(
        "prepare-dataset",
        {
            "rows": ", ".join(f"{report['rows'][split]} {split}" for split in SPLITS),
            "not used": ", ".join(f"{n} {why}" for why, n in rejected.reasons.most_common(4)) or "none",
            "tokens a row": f"median {tokens['p50']}, 95 % {tokens['p95']}, longest {tokens['max']} of {max_length}",
            "truncated": f"{tokens['truncated_share']:.1%}",
            "supervised": f"{tokens['supervised']} of {tokens['total']} training tokens",
        },
    )


def made_from(model: Model, data: Data, max_length: int) -> dict:
    """The parameters that decide the prepared rows, as report.json tells them."""
    return {"model": model.model_dump(), "data": data.model_dump(), "train.max_length": max_length}


def source_rows(data: Data) -> Iterator[tuple[bool, str, dict]]:
    """Yield (is it from the test source, "file:number", row); test rows first, so that training gives way to them."""
    for source in filter(None, (data.test_source, data.source)):
        for number, row in enumerate(rows.read(source, data), 1):
            yield source == data.test_source, f"{Path(source).name}:{number}", row


def check(row_id: str, row: dict, data: Data, tokenizer, stops: list[int], max_length: int) -> dict:
    """A source row as the prepared row that stands for it.

    Raises:
        rows.Rejected, chat.Unusable: with the reason.
    """
    messages = rows.conversation(row, data)
    encoded = chat.encode(tokenizer, messages, stops)
    tokens = len(encoded.input_ids)
    if tokens > max_length and data.overlong == "drop":
        raise rows.Rejected("longer than train.max_length")
    if all(label == chat.IGNORED for label in encoded.labels[:max_length]):
        raise rows.Rejected("truncated to train.max_length, nothing of the answer is left")
    prepared = {"id": row_id, "group": _group(row, messages, data), "messages": messages}
    if data.task == "text-to-sql":
        prepared |= {name: row[getattr(data.columns, name)].strip() for name in ("question", "context", "answer")}
    supervised = sum(label != chat.IGNORED for label in encoded.labels[:max_length])
    return prepared | {"tokens": tokens, "supervised": supervised}


class Index:
    """Accepted rows: their text in a temporary file, and in memory what splitting needs (about 150 bytes a row)."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("w+b")
        self.group_of = array("q")
        self.groups: dict[bytes, int] = {}
        self.is_test = bytearray()  # by group: is it in the test source?
        self.seen: set[bytes] = set()

    def add(self, prepared: dict, data: Data, from_test_source: bool) -> None:
        """Keep a row.

        Raises:
            rows.Rejected: if it is a duplicate, or a training row whose group the test source holds.
        """
        group = _digest(" ".join(prepared["group"].casefold().split()))
        for kind, key in _duplicate_keys(prepared, data):
            if key in self.seen:
                raise rows.Rejected(kind)
            self.seen.add(key)
        if group not in self.groups:
            self.groups[group] = len(self.groups)
            self.is_test.append(from_test_source)
        number = self.groups[group]
        if self.is_test[number] and not from_test_source:
            raise rows.Rejected("its group stands in data.test_source")
        self.group_of.append(number)
        self.file.write(json.dumps(prepared, ensure_ascii=False).encode() + b"\n")

    def read(self) -> Iterator[dict]:
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)

    def remove(self) -> None:
        self.file.close()
        self.path.unlink()


class Rejections:
    """rejected.jsonl, and a count of its reasons."""

    def __init__(self, file):
        self.file = file
        self.reasons: Counter[str] = Counter()

    def add(self, row_id: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.file.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")


def assign_splits(index: Index, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """The split of each accepted row, as its place in SPLITS, and whether the row stays within that split's limit.

    Groups are dealt in an order that data.seed decides; so is which rows of a split stay when it has more than asked.
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
    stays = np.ones(len(split_of_row), dtype=bool)
    for number, split in enumerate(SPLITS):
        limit = getattr(data, f"{split}_rows")
        members = np.flatnonzero(split_of_row == number)
        if limit is not None and len(members) > limit:
            stays[np.random.default_rng([data.seed, number]).permutation(members)[limit:]] = False
    return split_of_row, stays


def write_splits(output: Path, index: Index, rejected: Rejections, data: Data, max_length: int) -> dict:
    """Copy the accepted rows into their splits and return the report's counts."""
    split_of_row, stays = assign_splits(index, data)
    lengths = {split: array("q") for split in SPLITS}
    supervised: Counter[str] = Counter()
    groups: dict[str, set[int]] = {split: set() for split in SPLITS}
    with ExitStack() as stack:
        files = {s: stack.enter_context((output / f"{s}.jsonl").open("w", encoding="utf-8")) for s in SPLITS}
        for row, (prepared, number, stay) in enumerate(zip(index.read(), split_of_row, stays, strict=True)):
            split = SPLITS[number]
            if not stay:
                rejected.add(prepared["id"], f"beyond data.{split}_rows")
                continue
            files[split].write(json.dumps(prepared, ensure_ascii=False) + "\n")
            lengths[split].append(prepared["tokens"])
            supervised[split] += prepared["supervised"]
            groups[split].add(index.group_of[row])
    index.remove()
    return {
        "rows": {split: len(lengths[split]) for split in SPLITS},
        "groups": {split: len(groups[split]) for split in SPLITS},
        "tokens": {split: token_statistics(lengths[split], supervised[split], max_length) for split in SPLITS},
    }


def token_statistics(lengths: array, supervised: int, max_length: int) -> dict:
    """Quantiles of the rows' lengths in tokens (before truncation), and how many tokens training sees and learns."""
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


def refuse_empty_splits(report: dict, data: Data) -> None:
    """Raise Refusal if a split has no row, with the reasons that emptied it."""
    empty = [split for split in SPLITS if report["rows"][split] == 0]
    if not empty:
        return
    reasons = "; ".join(f"{count} rows: {why}" for why, count in report["rows"]["rejected"].items())
    groups = sum(report["groups"].values())
    if reasons and groups == 0:
        raise Refusal(f"{data.source}: every row was dropped ({reasons})")
    raise Refusal(
        f"{data.source}: no row is left for {' and '.join(empty)}: {groups} groups were split by "
        f"data.validation_fraction ({data.validation_fraction}) and data.test_fraction ({data.test_fraction}); raise "
        "them, or group the rows by another column (data.columns.group)" + (f"; dropped: {reasons}" if reasons else "")
    )


def _group(row: dict, messages: chat.Messages, data: Data) -> str:
    """What must not stand in two splits: the group column, or the schema, or the first question of a conversation."""
    if data.columns.group:
        value = row.get(data.columns.group)
        if value is None or value == "":
            raise rows.Rejected(f"{data.columns.group!r} is missing")
        return rows.whole(str(value))
    if data.task == "text-to-sql":
        return row[data.columns.context].strip()
    return next(message["content"] for message in messages if message["role"] == "user").strip()


def _duplicate_keys(prepared: dict, data: Data) -> Iterator[tuple[str, bytes]]:
    """Yield (reason, key) under which a row must be alone.

    Near duplicates have the same bag of words once case, punctuation, numbers and (in SQL) literals are set aside; a
    key of 16 bytes a row keeps memory small where MinHash tables would take gigabytes.
    """
    contents = [message["content"] for message in prepared["messages"]]
    yield "duplicate", _digest("\0".join(contents))
    if data.near_duplicates == "drop":
        if data.task == "text-to-sql":
            sql = re.sub(r"'[^']*'", "0", prepared["answer"])
            yield "near duplicate", _digest("\0".join([prepared["group"], _bag(prepared["question"]), _bag(sql)]))
        else:
            yield "near duplicate", _digest("\0".join(map(_bag, contents)))


def _bag(text: str) -> str:
    words = re.findall(r"\w+", re.sub(r"\d+(\.\d+)?", "0", text.casefold()))
    return " ".join(sorted(words)) or text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


if __name__ == "__main__":
    run_stage(main)
