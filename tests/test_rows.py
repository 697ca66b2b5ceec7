"""People's rows: every format gives the same rows, and what cannot be read is named."""

import csv
import json

from qlora.raw_rows import sources
from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.layouts import detect
from qlora.raw_rows.rejected import Rejected
from qlora.recipe.schema import Columns, Data
from qlora.runtime.console import Refusal

import pyarrow
import pyarrow.parquet as parquet
import pytest

SQL = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="text-to-sql", user_prompt="{context} | {question}")
CHAT = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="chat", columns=Columns(messages="messages"))
TEXT = CHAT.model_copy(update={"columns": Columns(text="text")})
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


def rows_of(name: str, data: Data) -> list[tuple[int, dict]]:
    return list(sources.open_source(data.model_copy(update={"source": f"data/raw/{name}"}), data).rows)


def talk(row: dict, data: Data) -> list[dict]:
    """The conversation of a row, its format found from itself."""
    (layout,) = detect("rows", data, data.task, [row])
    return conversation(row, layout, data)


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
        assert [row for _, row in rows_of(name, SQL)] == ROWS, name


def test_parquet_keeps_the_messages_of_a_chat(raw):
    messages = [user("a"), assistant("b")]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), raw / "rows.parquet")
    ((_, row),) = rows_of("rows.parquet", CHAT)
    assert talk(row, CHAT) == messages


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
        ("rows.csv", b"a,b\nCaf\x81,1\n", r"rows\.csv: .*UTF-8"),
        ("rows.csv", b'question,context,answer\n"a"b,c,d\n', r"rows\.csv, line 2: .*CSV"),
        ("rows.csv", UNQUOTED, r"rows\.csv, line 4: .*4 .*3"),
        # From the first row on, where a reader could take the surplus for an index.
        ("rows.csv", UNQUOTED.replace(b"(id INT)", b"(id INT, size INT)"), r"rows\.csv, line 2: .*4 .*3"),
        ("rows.csv", b'question,context,answer\r\n\r\n"a\r\nb",c,d\r\n1,2,3,4\r\n', r"rows\.csv, line 5: .*4 .*3"),
        ("rows.csv", b'question,context,answer\n1,2,"3\n', r"rows\.csv, line 2: .*CSV"),
        ("rows.csv", b"question,context,answer,answer\n1,2,3,4\n", r"rows\.csv: .*'answer' twice"),
        ("rows.csv", "question,context,answer\nnejdelší řeka,2,3\n".encode("cp1250"), r"rows\.csv: .*data\.encoding"),
        ("rows.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", r"rows\.jsonl, line 1: cannot be read"),
        ("rows.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", r"rows\.jsonl, line 1: cannot be read"),
        ("rows.csv", b",".join(b"c%d" % n for n in range(5000)) + b"\n", r"rows\.csv: .*empty"),
        ("rows.csv", b",".join(b"c%d" % n for n in range(5000)) + b"\n1\n", r"'c9' and 4990 more: .*data\.columns"),
        ("rows.parquet", b"no parquet", r"rows\.parquet: .*Parquet"),
        ("rows.xlsx", b"PK", r"rows\.xlsx: .*\.jsonl, .*\.csv, .*\.parquet"),
        ("rows.json", b"[]", r"rows\.json: .*empty"),
        ("rows.json", b" [\n ] ", r"rows\.json: .*empty"),
        ("rows.json", b"[\n" + GOOD.encode() + b',\n["a"]]', r"rows\.json, row 2, line 4: .*list"),
        ("rows.json", b"[\n" + GOOD.encode() + b',\n{"a": 1', r"rows\.json, row 2, line 4: not JSON"),
        ("rows.json", b"[\n" + GOOD.encode() + b",\n", r"rows\.json: ends inside"),
        ("rows.json", b"[\n" + GOOD.encode() + GOOD.encode() + b"]", r"rows\.json, line 3: not JSON"),
        ("rows.json", b'{\n"data": []\n}', r"rows\.json: .*one JSON object; .*array"),
        ("rows.jsonl", b'{"q": "", "context": ""}\n', r"'question', 'answer'.*'q', 'context'.*data\.columns"),
        ("rows.csv", b"q;context\n1;2\n", r"'question', 'answer'.*'q', 'context'.*data\.columns"),
    ],
)
def test_a_bad_file_is_one_sentence(raw, name, content, named):
    if content is not None:
        (raw / name).write_bytes(content)
    with pytest.raises(Refusal, match=named) as refusal:
        list(rows_of(name, SQL))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_row_is_named_by_its_line_as_an_editor_counts(raw):
    (raw / "rows.csv").write_text('question,context,answer\n\n"a\nb",c,d\n\ne,f,g\n')
    assert [number for number, _ in rows_of("rows.csv", SQL)] == [3, 6]
    (raw / "rows.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[0]) + "\n")
    assert [number for number, _ in rows_of("rows.jsonl", SQL)] == [2, 4]


def test_a_short_row_of_a_csv_file_lacks_a_value(raw):
    (raw / "rows.csv").write_text("question,context,answer\nWhy?,CREATE TABLE t (a INT)\n")
    ((_, row),) = rows_of("rows.csv", SQL)
    assert row == {"question": "Why?", "context": "CREATE TABLE t (a INT)", "answer": None}
    with pytest.raises(Rejected, match="'answer' is missing"):
        talk(row, SQL)


def test_values_of_a_csv_file_stay_text(raw):
    """pandas would read these as a number, a missing value and a truth value."""
    (raw / "rows.csv").write_text("question,context,answer\n007,NA,true\n")
    ((_, row),) = rows_of("rows.csv", SQL)
    assert row == {"question": "007", "context": "NA", "answer": "true"}


# Text-to-SQL


def test_columns_are_mapped():
    columns = {"question": "utterance", "context": "ddl", "answer": "sql"}
    data = SQL.model_copy(update={"columns": SQL.columns.model_copy(update=columns)})
    row = {"utterance": " How many? ", "ddl": "CREATE TABLE t (a INT)", "sql": "SELECT 1\n", "question": "no"}
    assert talk(row, data) == [user("CREATE TABLE t (a INT) | How many?"), assistant("SELECT 1")]


def test_the_system_prompt_comes_first():
    data = SQL.model_copy(update={"system_prompt": "Answer in SQL."})
    assert talk(ROWS[1], data)[0] == {"role": "system", "content": "Answer in SQL."}
    chat = CHAT.model_copy(update={"system_prompt": "Be brief."})
    own = {"role": "system", "content": "Be long."}
    assert talk({"messages": [own, user("a"), assistant("b")]}, chat)[0] == own


def test_braces_in_a_value_are_not_filled_in():
    row = {"question": "What is {answer} in {context}?", "context": "t({question})", "answer": "{context}"}
    messages = talk(row, SQL)
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
        talk(ROWS[0] | {"answer": value}, SQL)


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
    assert talk({"text": text}, TEXT) == messages


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
        talk({"text": text}, TEXT)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "'messages' is missing"),
        ("[]", "not a list of messages"),
        ([], "not a list of messages"),
        (["a"], "a message needs role"),
        ([{"role": "narrator", "content": "x"}], r"a message needs role \(assistant, system, tool, user\)"),
        ([{"role": "tool", "content": "x"}], "no assistant message"),
        ([user("a"), assistant(None)], "a message needs role"),
        ([user(" "), assistant("b")], "an empty user message"),
        ([assistant("b")], "do not alternate"),
        ([user("a"), assistant("b"), assistant("c")], "do not alternate"),
        ([user("\udc00"), assistant("b")], "half"),
    ],
)
def test_messages_that_cannot_be_used_are_rejected(messages, reason):
    with pytest.raises(Rejected, match=reason):
        talk({"messages": messages}, CHAT)


def test_white_space_around_a_message_is_stripped():
    row = {"messages": [user("a\n"), assistant("\n\nb")]}
    assert talk(row, CHAT) == [user("a"), assistant("b")]


def test_a_reason_is_a_kind_and_its_example_a_piece_of_the_row():
    reasons, examples = set(), set()
    for n in range(3):
        with pytest.raises(Rejected) as rejected:
            talk({"messages": [{"from": "narrator", "value": f"{n}" * 10_000}]}, CHAT)
        reasons.add(str(rejected.value))
        examples.add(rejected.value.example)
    assert reasons == {"a message needs role (assistant, system, tool, user) and content as text"}
    assert len(examples) == 3
    assert max(map(len, examples)) == 80
