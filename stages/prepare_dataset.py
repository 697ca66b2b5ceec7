"""prepare-dataset: check and deduplicate the rows, and split them so that no group is in two splits.

Writes data/prepared: train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl (each dropped row with its reason) and
report.json. Two passes bound the memory: the first checks each row and copies the accepted ones to a temporary file,
with a few bytes a row in memory; the second copies them into their splits.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from qlora.raw_rows import sources
from qlora.raw_rows.conversations import Rejected, conversation
from qlora.raw_rows.index import Index, Rejections, group_of
from qlora.raw_rows.splits import refuse_empty_splits, write_splits
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data, Model
from qlora.rows.chat import Chat, Unusable, load_chat
from qlora.rows.loss_mask import IGNORED, encode
from qlora.rows.prepared import PREPARED, SPLITS, made_from
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model

from tqdm import tqdm


def main() -> None:
    params = load_params()
    data, max_length = params.data, params.train.max_length
    base = ARTIFACTS["base"].folder
    chat = load_chat(base_model.locate(base))
    record = json.loads((base / BASE_RECORD).read_text(encoding="utf-8"))

    with new_folder(PREPARED) as output:
        with (output / "rejected.jsonl").open("w", encoding="utf-8") as rejected_file:
            rejected = Rejections(rejected_file)
            index = Index(output / "accepted.tmp")
            for from_test_source, row_id, row in tqdm(source_rows(data), desc="rows", unit=" rows"):
                try:
                    index.add(check(row_id, row, data, chat, max_length), data, from_test_source)
                except (Rejected, Unusable) as reason:
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


def source_rows(data: Data) -> Iterator[tuple[bool, str, dict]]:
    """Yield (whether it is from the test source, "file:number", row).

    Test rows come first, so that a row in both sources is dropped from training.
    """
    for source in filter(None, (data.test_source, data.source)):
        for number, row in enumerate(sources.read(source, data), 1):
            yield source == data.test_source, f"{Path(source).name}:{number}", row


def check(row_id: str, row: dict, data: Data, chat: Chat, max_length: int) -> dict:
    """The prepared row of a source row.

    Raises:
        Rejected, Unusable: with the reason why the row cannot be used.
    """
    messages = conversation(row, data)
    encoded = encode(chat, messages)
    tokens = len(encoded.input_ids)
    if tokens > max_length and data.overlong == "drop":
        raise Rejected("longer than train.max_length")
    if all(label == IGNORED for label in encoded.labels[:max_length]):
        raise Rejected("truncated to train.max_length, nothing of the answer is left")
    prepared = {"id": row_id, "group": group_of(row, messages, data), "messages": messages}
    if data.task == "text-to-sql":
        prepared |= {name: row[getattr(data.columns, name)].strip() for name in ("question", "context", "answer")}
    supervised = sum(label != IGNORED for label in encoded.labels[:max_length])
    return prepared | {"tokens": tokens, "supervised": supervised}


if __name__ == "__main__":
    run_stage(main)
