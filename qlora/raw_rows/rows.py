"""Rows as people have them (JSONL, CSV, Parquet, a hub data set) turned into conversations, one at a time."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from qlora.recipe.params import Data
from qlora.rows import jsonl
from qlora.rows.chat import Messages
from qlora.runtime.console import Refusal
from qlora.source import hub

SUFFIXES = (".jsonl", ".csv", ".parquet")
ROLES = {"system", "user", "assistant"}


class Rejected(ValueError):
    """A row that cannot be used; the message is the reason that rejected.jsonl gives."""


def read(source: str, data: Data) -> Iterator[dict]:
    """Yield the rows of a file under data/raw, or of a hub data set at its pinned commit, as dictionaries.

    Raises:
        Refusal: if the source is missing, of another kind, empty, unreadable, or lacks a column that the task needs.
    """
    rows = _read_file(Path(source)) if source.startswith("data/raw/") else _read_hub(source, data)
    needed = _needed_columns(data)
    number = 0
    for number, row in enumerate(rows, 1):
        if number == 1 and (missing := [column for column in needed if column not in row]):
            raise Refusal(
                f"{source}: has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}: "
                "set data.columns to the names that the file uses"
            )
        yield row
    if number == 0:
        raise Refusal(f"{source}: is empty; it must hold at least one row")


def conversation(row: dict, data: Data) -> Messages:
    """The messages of one row, the assistant's answer last.

    Raises:
        Rejected: with the reason, if a value is missing, empty or of the wrong type.
    """
    if data.task == "text-to-sql":
        texts = {name: _text(row, getattr(data.columns, name)) for name in ("question", "context", "answer")}
        prompt = data.user_prompt.replace("{context}", texts["context"]).replace("{question}", texts["question"])
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": texts["answer"]}]
    elif data.columns.text:
        messages = split_text(_text(row, data.columns.text))
    else:
        messages = _messages(row.get(data.columns.messages))
    if data.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    return messages


def split_text(text: str) -> Messages:
    """Take apart a conversation that was flattened into one text.

    Knows guanaco's `### Human:` / `### Assistant:` and Llama-2's `<s>[INST] ... [/INST] ... </s>`, whose system prompt
    stands in `<<SYS>>`.

    Raises:
        Rejected: if neither mark is there, or the turns do not alternate.
    """
    if "[INST]" in text:
        messages = []
        for turn in re.split(r"(?:<s>)?\s*\[INST\]", text.replace("</s>", ""))[1:]:
            question, mark, answer = turn.partition("[/INST]")
            if not mark:
                raise Rejected("an [INST] without [/INST]")
            if system := re.match(r"\s*<<SYS>>(.*?)<</SYS>>", question, re.DOTALL):
                messages.append({"role": "system", "content": system[1].strip()})
                question = question[system.end() :]
            messages.append({"role": "user", "content": question.strip()})
            if answer.strip():  # nobody answered the last question of some conversations
                messages.append({"role": "assistant", "content": answer.strip()})
    elif "### Human:" in text:
        parts = re.split(r"### (Human|Assistant):", text)
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [
            {"role": roles[who], "content": content.strip()}
            for who, content in zip(parts[1::2], parts[2::2], strict=True)
        ]
    else:
        raise Rejected("the text has neither [INST] nor ### Human:")
    return _messages(messages)


def whole(text: str) -> str:
    """`text` itself.

    Raises:
        Rejected: if it holds half a character, which JSON's escapes can write and nothing else can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("a character is cut in half (an unpaired surrogate)") from None
    return text


def _needed_columns(data: Data) -> list[str]:
    columns = data.columns
    if data.task == "text-to-sql":
        needed = [columns.question, columns.context, columns.answer]
    else:
        needed = [columns.text or columns.messages]
    return needed + ([columns.group] if columns.group else [])


def _text(row: dict, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise Rejected(f"{column!r} is {'missing' if value is None else 'not text'}")
    if not value.strip():
        raise Rejected(f"{column!r} is empty")
    return whole(value.strip())


def _messages(value: object) -> Messages:
    if not isinstance(value, list) or not value:
        raise Rejected("'messages' is not a list of messages")
    messages = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise Rejected(f"a message needs role ({', '.join(sorted(ROLES))}) and content, not {str(message)[:80]}")
        if not content.strip():
            raise Rejected(f"an empty {role} message")
        messages.append({"role": role, "content": whole(content.strip())})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # a question at the end that nobody answered teaches nothing
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if not turns:
        raise Rejected("no assistant message")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise Rejected("the turns of user and assistant do not alternate")
    return messages


def _read_file(path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise Refusal(f"{path} is missing; put the file there (or `dvc pull` it), or change data.source")
    if path.suffix not in SUFFIXES:
        raise Refusal(f"{path}: must end in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            for batch in parquet.ParquetFile(path).iter_batches(1000):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise Refusal(f"{path}: not a Parquet file ({error})") from None
        return
    if path.suffix == ".jsonl":
        yield from (row for _, row in jsonl.read(path))
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            csv.field_size_limit(1 << 27)
            yield from csv.DictReader(file, strict=True)
        except UnicodeDecodeError as error:
            raise Refusal(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except csv.Error as error:
            raise Refusal(f"{path}: not CSV ({error})") from None


def _read_hub(name: str, data: Data) -> Iterator[dict]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    # As files of one commit: what load_dataset finds by name when the hub is away may be another commit's.
    folder = hub.download("dataset", name, data.revision)
    try:
        yield from load_dataset(str(folder), split=data.split)
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # A file that cannot be parsed hides behind "An error occurred while generating the dataset".
        reason = str(error.__cause__ or error).splitlines()[0]
        raise Refusal(f"data.source: {name}: {reason}") from None
