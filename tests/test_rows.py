"""People's rows: every format gives the same rows, and what cannot be read is named."""

import csv
import json

from qlora.raw_rows import sources
from qlora.raw_rows.conversations import Rejected, conversation
from qlora.recipe.schema import Data
from qlora.runtime.console import Refusal

import pyarrow
import pyarrow.parquet as parquet
import pytest

SQL = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="text-to-sql", user_prompt="{context} | {question}")
CHAT = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="chat")
TEXT = CHAT.model_copy(update={"columns": CHAT.columns.model_copy(update={"text": "text"})})
ROWS = [
    {
        "question": 'Naïve "quoted", with\na line break — 日本',
        "context": "CREATE TABLE t (a INT)",
        "answer": "SELECT a",
    },
    {"question": "Zweite, mit ; und \t", "context": "CREATE TABLE u (b INT)", "answer": "SELECT b FROM u"},
]


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    """An empty data/raw in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw"
    folder.mkdir(parents=True)
    return folder


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


# Files


def test_jsonl_csv_and_parquet_give_the_same_rows(raw):
    (raw / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with (raw / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), raw / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        assert list(sources.read(f"data/raw/{name}", SQL)) == ROWS, name


def test_parquet_keeps_the_messages_of_a_chat(raw):
    messages = [user("a"), assistant("b")]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), raw / "rows.parquet")
    (row,) = sources.read("data/raw/rows.parquet", CHAT)
    assert conversation(row, CHAT) == messages


GOOD = json.dumps(ROWS[0]) + "\n"
# A comma in SQL that nobody quoted: one field more than the header has, in line 4.
UNQUOTED = b"""question,context,answer
How many trees?,CREATE TABLE trees (id INT),SELECT COUNT(*) FROM trees
"Who, exactly?",CREATE TABLE owners (owner TEXT),SELECT owner FROM owners
Name all kinds,CREATE TABLE kinds (id INT, kind TEXT),SELECT kind FROM kinds
"""


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("rows.jsonl", None, r"rows\.jsonl .*missing.*data\.source"),
        ("rows.jsonl", b"", r"rows\.jsonl: .*empty"),
        ("rows.jsonl", b"\n \n", r"rows\.jsonl: .*empty"),
        ("rows.csv", b"", r"rows\.csv: .*empty"),
        ("rows.csv", b"question,context,answer\n", r"rows\.csv: .*empty"),
        ("rows.jsonl", GOOD.encode() * 6 + b"{'a': 1}\n", r"rows\.jsonl, line 7: .*column 2"),
        ("rows.jsonl", GOOD.encode() * 6 + b'["a"]\n', r"rows\.jsonl, line 7: .*list"),
        ("rows.jsonl", b'{"question": "Caf\xe9"}\n', r"rows\.jsonl: .*UTF-8.*byte 17"),
        ("rows.csv", b"a,b\nCaf\xe9,1\n", r"rows\.csv: .*UTF-8"),
        ("rows.csv", b'question,context,answer\n"a"b,c,d\n', r"rows\.csv: .*CSV"),
        ("rows.csv", UNQUOTED, r"rows\.csv: row 3 .*4 .*3"),
        ("rows.parquet", b"no parquet", r"rows\.parquet: .*Parquet"),
        ("rows.json", b"[]", r"rows\.json: .*\.jsonl, \.csv, \.parquet"),
        ("rows.jsonl", b'{"q": "", "context": ""}\n', r"'question', 'answer'.*'q', 'context'.*data\.columns"),
        ("rows.csv", b"q;context\n1;2\n", r"'question', 'context', 'answer'.*'q;context'.*data\.columns"),
    ],
)
def test_a_bad_file_is_one_sentence(raw, name, content, named):
    if content is not None:
        (raw / name).write_bytes(content)
    with pytest.raises(Refusal, match=named) as refusal:
        list(sources.read(f"data/raw/{name}", SQL))
    assert "\n" not in str(refusal.value)


def test_a_short_row_of_a_csv_file_lacks_a_value(raw):
    (raw / "rows.csv").write_text("question,context,answer\nWhy?,CREATE TABLE t (a INT)\n")
    (row,) = sources.read("data/raw/rows.csv", SQL)
    assert row == {"question": "Why?", "context": "CREATE TABLE t (a INT)", "answer": None}
    with pytest.raises(Rejected, match="'answer' is missing"):
        conversation(row, SQL)


def test_values_of_a_csv_file_stay_text(raw):
    """pandas would read these as a number, a missing value and a truth value."""
    (raw / "rows.csv").write_text("question,context,answer\n007,NA,true\n")
    assert list(sources.read("data/raw/rows.csv", SQL)) == [{"question": "007", "context": "NA", "answer": "true"}]


# Text-to-SQL


def test_columns_are_mapped():
    columns = {"question": "utterance", "context": "ddl", "answer": "sql"}
    data = SQL.model_copy(update={"columns": SQL.columns.model_copy(update=columns)})
    row = {"utterance": " How many? ", "ddl": "CREATE TABLE t (a INT)", "sql": "SELECT 1\n", "question": "no"}
    assert conversation(row, data) == [user("CREATE TABLE t (a INT) | How many?"), assistant("SELECT 1")]


def test_the_system_prompt_comes_first():
    data = SQL.model_copy(update={"system_prompt": "Answer in SQL."})
    assert conversation(ROWS[1], data)[0] == {"role": "system", "content": "Answer in SQL."}
    chat = CHAT.model_copy(update={"system_prompt": "Be brief."})
    own = {"role": "system", "content": "Be long."}
    assert conversation({"messages": [own, user("a"), assistant("b")]}, chat)[0] == own


def test_braces_in_a_value_are_not_filled_in():
    row = {"question": "What is {answer} in {context}?", "context": "t({question})", "answer": "{context}"}
    messages = conversation(row, SQL)
    assert messages[0]["content"].endswith("| What is {answer} in {context}?")
    assert messages[1]["content"] == "{context}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "'answer' is missing"),
        (7, "'answer' is not text"),
        ("  ", "'answer' is empty"),
        ("\ud83d", "half"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(value, reason):
    with pytest.raises(Rejected, match=reason):
        conversation(ROWS[0] | {"answer": value}, SQL)


# Conversations


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("### Human: a### Assistant: b", [user("a"), assistant("b")]),
        (
            "### Human: a\n### Assistant: b\n### Human: c\n### Assistant: d",
            [user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        ("### Human: a### Assistant: b### Human: and?", [user("a"), assistant("b")]),
        ("### Human: a\n\n# Title\n### Part### Assistant: b", [user("a\n\n# Title\n### Part"), assistant("b")]),
        ("<s>[INST] a [/INST] b </s>", [user("a"), assistant("b")]),
        ("<s>[INST] a [/INST] b </s><s>[INST] c [/INST]", [user("a"), assistant("b")]),
        (
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s>",
            [{"role": "system", "content": "Be kind."}, user("a"), assistant("b"), user("c"), assistant("d")],
        ),
    ],
)
def test_flattened_conversations_are_taken_apart(text, messages):
    assert conversation({"text": text}, TEXT) == messages


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello", r"neither \[INST\] nor ### Human:"),
        ("[INST] a", r"an \[INST\] without \[/INST\]"),
        ("### Human: a### Human: b### Assistant: c", "do not alternate"),
        ("### Assistant: a", "neither"),
        ("### Human: a### Assistant: ", "an empty assistant message"),
        ("### Human: a", "no assistant message"),
    ],
)
def test_a_text_that_is_no_conversation_is_rejected(text, reason):
    with pytest.raises(Rejected, match=reason):
        conversation({"text": text}, TEXT)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "not a list of messages"),
        ("[]", "not a list of messages"),
        ([], "not a list of messages"),
        (["a"], "a message needs role"),
        ([{"role": "tool", "content": "x"}], r"a message needs role \(assistant, system, user\)"),
        ([user("a"), assistant(None)], "a message needs role"),
        ([user(" "), assistant("b")], "an empty user message"),
        ([assistant("b")], "do not alternate"),
        ([user("a"), assistant("b"), assistant("c")], "do not alternate"),
        ([user("\udc00"), assistant("b")], "half"),
    ],
)
def test_messages_that_cannot_be_used_are_rejected(messages, reason):
    with pytest.raises(Rejected, match=reason):
        conversation({"messages": messages}, CHAT)


def test_white_space_around_a_message_is_stripped():
    row = {"messages": [user("a\n"), assistant("\n\nb")]}
    assert conversation(row, CHAT) == [user("a"), assistant("b")]


def test_a_reason_quotes_at_most_a_piece_of_the_row():
    with pytest.raises(Rejected) as reason:
        conversation({"messages": [{"role": "x" * 10_000, "content": "y"}]}, CHAT)
    assert len(str(reason.value)) < 200
    assert "role" in str(reason.value)
