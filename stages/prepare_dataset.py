"""prepare-dataset: check and deduplicate the rows, and split them so that no group is in two splits.

Writes data/prepared: train.jsonl, validation.jsonl, test.jsonl, general.json (evaluate.general), rejected.jsonl (each
dropped row with its reason) and report.json. Two passes bound the memory: the first checks each row and copies the
accepted ones to a temporary file, with a few bytes a row in memory; the second copies them into their splits.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qlora.gguf import parity
from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.findings import find
from qlora.raw_rows.general import general_rows
from qlora.raw_rows.index import Index, Rejections, group_of
from qlora.raw_rows.layouts import Layout
from qlora.raw_rows.rejected import Rejected
from qlora.raw_rows.sources import Source, open_source
from qlora.raw_rows.splits import refuse_empty_splits, write_splits
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data, Params
from qlora.rows import documents
from qlora.rows import prepared as prepared_rows
from qlora.rows.chat import Chat, Messages
from qlora.rows.fitted import fitted
from qlora.rows.loss_mask import Encoded, encode, is_learned, last_answer_only, runs
from qlora.rows.prepared import PREPARED, SPLITS, evenly, made_from
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.inputs import read_json
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model, tokenizer
from qlora.sql.reasons import in_words
from qlora.sql.verdict import unjudged
from qlora.weights import architecture, tower

from tqdm import tqdm

JUDGED_ROWS = 2000  # test rows whose gold queries are run
COMPARED_ROWS = 1000  # training rows that llama.cpp reads, too, if it reads rare text otherwise
SHOWN = 60  # characters of a message in the summary


def main() -> None:
    params = load_params()
    data, max_length = params.data, params.train.max_length
    base = ARTIFACTS["base"].folder
    folder, model = base_model.locate(base), base_model.recorded(base)
    architecture.check_length(tower.config_of(folder), params.train, params.evaluate)
    chat, _ = tokenizer.settled(folder, model)
    tokenizer.check_system_prompt(chat, data.system_prompt)
    record = read_json(base / BASE_RECORD, "fetch-base")
    general = general_rows(params.evaluate.general)

    with new_folder(PREPARED) as output:
        with (output / "rejected.jsonl").open("w", encoding="utf-8") as rejected_file:
            rejected = Rejections(rejected_file)
            index = Index(output / "accepted.tmp")
            opened, parts, absent = open_sources(data), len(data.parts), set(data.keep)
            for number, row_id, row in tqdm(source_rows(opened, parts), desc="rows", unit=" rows"):
                absent -= row.keys()
                with rejected.catching(row_id):
                    for prepared in prepare(row_id, row, opened[number].layout, params, chat):
                        with rejected.catching(prepared["id"]):
                            index.add(prepared, data, number, from_test_source=number == parts)
            report = write_splits(output, index, rejected, data, max_length)
        if absent:
            raise Refusal(f"data.keep: no row has a column {', '.join(map(repr, sorted(absent)))}")
        counts = report.pop("rows_of_source")
        report["sources"] = {s.name: s.described() | {"rows": n} for s, n in zip(opened, counts, strict=False)}
        report["rows"]["rejected"] = dict(rejected.reasons.most_common())
        refuse_empty_splits(report, rejected, data)
        if data.task == "text-to-sql":
            report["gold"] = check_gold(evenly("test", JUDGED_ROWS, output), params)
        named = model.model_copy(update={"chat_template": params.model.chat_template})  # the record holds its text
        report["made_from"] = made_from(named, data, params.train)
        report["findings"] = find(output, chat).report()
        write_json(output / "report.json", report)
        write_json(output / prepared_rows.GENERAL.name, {"rows": general})  # an object: DVC warns of an empty file
        if record.get("tokenizer", {}).get("differing"):  # fetch-base found text that llama.cpp reads otherwise
            parity.check_rows(chat, folder, model, [row["messages"] for row in evenly("train", COMPARED_ROWS, output)])

    sql = data.task == "text-to-sql"
    (first,) = prepared_rows.first("train", 1)
    lengths = report["tokens"]["train"]
    summary(
        "prepare-dataset",
        {
            **{source.name: source.in_short(report["sources"][source.name]["rows"]) for source in opened},
            "first training row": shown(first["messages"]),
            "rows": ", ".join(f"{report['rows'][split]} {split}" for split in SPLITS),
            "not used": rejected.most_common(4) or "none",
            "tokens a row": f"median {lengths['p50']}, 95 % {lengths['p95']}, longest {lengths['max']} of {max_length}",
            "truncated": f"{lengths['truncated_share']:.1%}",
            "supervised": f"{lengths['supervised']} of {lengths['total']} training tokens",
            **({"no score can judge": in_words(report["gold"]["unjudged"], report["gold"]["rows"])} if sql else {}),
            "look at": "; ".join(f"{f['rows']} rows: {kind}" for kind, f in report["findings"].items()) or "nothing",
            "see the rows": "make preview",
        },
    )


def check_gold(rows: list[dict], params: Params) -> dict:
    """How many of the test rows no score can judge, why, and an example of each."""
    settings = params.evaluate
    with tqdm(total=len(rows), desc="gold queries", unit=" rows") as bar:
        found = unjudged(
            rows,
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
            engine=settings.engine,
            progress=lambda done: bar.update(done - bar.n),
        )
    return {"rows": len(rows), "unjudged": found}


def open_sources(data: Data) -> list[Source]:
    """The open sources, in the order of data.parts; behind them data.test_source, if there is one."""
    test = data.model_copy(update={"source": data.test_source, "sources": [], "revision": None})
    return [open_source(settings, data) for settings in [*data.parts, *([test.parts[0]] if data.test_source else [])]]


def source_rows(opened: list[Source], parts: int) -> Iterator[tuple[int, str, dict]]:
    """Yield (number of the source, "file:number", row).

    Test rows (behind the first `parts` sources) come first, so that a row in both is dropped from training.
    """
    short = Counter(Path(source.name).name for source in opened)
    order = sorted(range(len(opened)), key=lambda number: number < parts)
    for number in order:
        name = opened[number].name
        label = name if short[Path(name).name] > 1 else Path(name).name
        for at, row in opened[number].rows:
            yield number, f"{label}:{at}", row


def prepare(row_id: str, row: dict, layout: Layout, params: Params, chat: Chat) -> Iterator[dict]:
    """The prepared row of a source row; of a document, those of its pieces.

    Raises:
        Rejected, Unusable: with the reason why the row cannot be used.
    """
    messages = fitted(chat, chat.normalized(conversation(row, layout, params.data)))
    group = group_of(row_id, row, messages, layout)
    if params.data.task == "text":
        for number, piece in enumerate(documents.pieces(chat, messages, params.train.max_length), 1):
            is_whole = number == 1 and "continues" not in piece[0]
            name = row_id if is_whole else f"{row_id}/{number}"
            yield {"id": name, "group": group, "messages": piece} | tokens(piece, params, chat)
        return
    if params.train.loss_on == "last_answer":
        messages = last_answer_only(messages)
    prepared = {"id": row_id, "group": group, "messages": messages}
    if params.data.task == "text-to-sql":
        prepared |= {part: row[column].strip() for part, column in layout.columns.items()}
    if params.data.keep:
        prepared["kept"] = {name: json.loads(json.dumps(row.get(name), default=str)) for name in params.data.keep}
    yield prepared | tokens(messages, params, chat)


def tokens(messages: Messages, params: Params, chat: Chat) -> dict[str, int]:
    """How many tokens the messages have, and how many are learned. Raises Rejected, Unusable."""
    max_length = params.train.max_length
    row = encode(chat, messages)
    if len(row.input_ids) > max_length and params.data.overlong == "drop":
        raise Rejected("longer than train.max_length")
    supervised = Encoded(row.input_ids[:max_length], row.labels[:max_length]).supervised
    if not supervised:
        raise Rejected("truncated to train.max_length, nothing of the answer is left")
    unlearned = sum(map(is_learned, messages)) - runs(row)
    return {"tokens": len(row.input_ids), "supervised": supervised} | ({"unlearned": unlearned} if unlearned else {})


def called(call: dict) -> str:
    return f"{call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})"


def shown(messages: Messages) -> str:
    """A conversation in one line."""
    texts = [" ".join(f"{m['content']} {' '.join(map(called, m.get('tool_calls', ())))}".split()) for m in messages]
    return " ".join(
        f"{message['role']}: {text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'}"
        for message, text in zip(messages, texts, strict=True)
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
