# ruff: noqa: RUF001 (letters of other alphabets)
"""The formats that people's rows are in: each becomes the conversations of its `messages` twin, or is refused."""

import csv
import io
import json
from pathlib import Path

from qlora.recipe.schema import Columns, Data
from qlora.runtime.console import Refusal

import pyarrow
import pyarrow.parquet as parquet
import pytest
from row_files import chat, conversations, lines, opened, pair, system

QUESTIONS = [f"Frage {n}: größer; als\n„{n}“, | oder\tnicht?" for n in range(10)]
ANSWERS = [f'Antwort {n}, mit Ümläuten; und "Zeichen"' for n in range(10)]


TWIN = [pair(*texts) for texts in zip(QUESTIONS, ANSWERS, strict=True)]


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw"
    folder.mkdir(parents=True)
    return folder


def table(header: list[str], rows: list[list], delimiter: str, encoding: str, **options) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, **options).writerows([header, *rows])
    return text.getvalue().encode(encoding)


def arrow(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


PAIRS = list(zip(QUESTIONS, ANSWERS, strict=True))
FILES = {
    "messages, JSON Lines with BOM and CRLF": (
        "rows.jsonl",
        b"\xef\xbb\xbf" + lines([{"messages": messages, "id": n} for n, messages in enumerate(TWIN)], "\r\n"),
        "messages",
        "JSON Lines",
    ),
    "messages with parts and nulls, Parquet": (
        "rows.parquet",
        arrow(
            [
                {
                    "messages": [
                        {"role": role, "content": [{"type": "text", "text": text}], "tool_calls": None, "weight": None}
                        for role, text in (("user", question), ("assistant", answer))
                    ]
                }
                for question, answer in PAIRS
            ]
        ),
        "messages",
        "Parquet",
    ),
    "ShareGPT in a JSON array": (
        "rows.json",
        json.dumps(
            [
                {"id": n, "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
                for n, (q, a) in enumerate(PAIRS)
            ],
            indent=2,
        ).encode("utf-8-sig"),
        "sharegpt",
        "JSON array",
    ),
    "ShareGPT as text in a CSV file, as pandas writes it": (
        "rows.csv",
        table(
            ["", "conversations"],
            [[n, str([{"from": "Human", "value": q}, {"from": "GPT", "value": a}])] for n, (q, a) in enumerate(PAIRS)],
            ",",
            "utf-8",
        ),
        "sharegpt",
        "CSV with commas in UTF-8",
    ),
    "Alpaca with NaN, JSON array in a .json of lines": (
        "rows.json",
        lines([{"instruction": q, "input": float("nan"), "output": a, "text": q + a} for q, a in PAIRS]),
        "alpaca",
        "JSON Lines",
    ),
    "Alpaca with input, semicolons and UTF-16": (
        "rows.csv",
        table(
            ["Instruction", "Input ", "Output"],
            [[*q.split("\n"), a] for q, a in PAIRS],
            ";",
            "utf-16",
            lineterminator="\r\n",
        ),
        "alpaca",
        "CSV with semicolons in UTF-16",
    ),
    "prompt and completion in Windows-1252 with bars": (
        "rows.csv",
        table(["prompt", "completion", "source"], [[q, a, "x"] for q, a in PAIRS], "|", "cp1252"),
        "prompt-completion",
        "CSV with bars in Windows-1252",
    ),
    "query and response with tabs and an index": (
        "rows.tsv",
        table(["", "query", "response"], [[n, q, a] for n, (q, a) in enumerate(PAIRS)], "\t", "utf-8-sig"),
        "prompt-completion",
        "CSV with tabs in UTF-8",
    ),
    "prompt and completion as messages": (
        "rows.jsonl",
        lines([{"prompt": messages[:1], "completion": messages[1:]} for messages in TWIN]),
        "prompt-completion",
        "JSON Lines",
    ),
    "one flattened text, Excel's sep= line and empty rows": (
        "rows.csv",
        b"sep=;\r\n"
        + table(["text"], [[f"### Human: {q}### Assistant: {a}"] for q, a in PAIRS], ";", "utf-8")
        + b"\r\n",
        "text",
        "CSV with semicolons in UTF-8",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_ten_formats_become_the_conversations_of_their_twin(raw, name):
    file, content, format_, kind = FILES[name]
    (raw / file).write_bytes(content)
    data = chat(file)
    assert conversations(data) == TWIN
    source = opened(data)
    assert (source.layout.format, source.kind) == (format_, kind)


def test_parts_that_a_row_may_have(raw):
    rows = [
        {"instruction": "a", "input": None, "output": "b", "system": "s", "history": [["q", "r"]]},
        {"instruction": "a", "input": "<noinput>", "output": "b", "system": "", "history": []},
        {"instruction": "a", "input": "i", "output": "b", "system": None, "history": None},
        {"instruction": "a", "input": "", "output": "b", "system": None, "history": ["q"]},
    ]
    (raw / "rows.jsonl").write_bytes(lines(rows))
    assert conversations(chat("rows.jsonl")) == [
        [system("s"), *pair("q", "r"), *pair("a", "b")],
        pair("a", "b"),
        pair("a\ni", "b"),
        "'history' is not a list of question and answer pairs",
    ]
    rows = [{"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    (raw / "rows.jsonl").write_bytes(lines(rows))
    assert conversations(chat("rows.jsonl")) == [[system("s"), *pair("a", "b")]]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([*pair("a", "b"), *pair("c", "d"), system("s")], None),
        ([*pair("a", "b")[:1], *pair("a", "b")], "do not alternate"),
        ([{"role": "developer", "content": "s"}, *pair("a", "b")], None),
        ([{"role": "narrator", "content": "s"}, *pair("a", "b")], "needs role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, *pair("a", "b")[1:]], "image_url"),
        ([{"role": "user", "content": [{"text": "a"}, {"text": "b"}]}, *pair("a", "b")[1:]], None),
        ([{"role": "user", "content": []}, *pair("a", "b")[1:]], "needs role"),
    ],
)
def test_turns_that_are_out_of_order_are_a_reason(raw, messages, reason):
    (raw / "rows.jsonl").write_bytes(lines([{"messages": messages}]))
    (found,) = conversations(chat("rows.jsonl"))
    assert reason in found if reason else found[-1]["role"] == "assistant"


# Which format


def test_columns_and_format_override_what_is_found(raw):
    row = {"frage": "f", "antwort": "g", "prompt": "a", "completion": "b"}
    (raw / "rows.jsonl").write_bytes(lines([row]))
    named = chat("rows.jsonl", columns=Columns(prompt="frage", completion="antwort"))
    assert conversations(chat("rows.jsonl")) == [pair("a", "b")]
    assert conversations(named) == [pair("f", "g")]
    assert opened(named).layout.unread == ["prompt", "completion"]
    row = {"instruction": "a", "input": "i", "output": "b"}
    (raw / "rows.jsonl").write_bytes(lines([row]))
    assert conversations(chat("rows.jsonl", format="prompt-completion")) == [pair("a", "b")]
    assert conversations(chat("rows.jsonl", format="alpaca")) == [pair("a\ni", "b")]


def test_two_readings_are_refused_unless_they_are_the_same(raw):
    text = "### Human: a### Assistant: b"
    (raw / "rows.jsonl").write_bytes(lines([{"messages": pair("a", "b"), "text": text}]))
    assert opened(chat("rows.jsonl")).layout.format == "messages"
    (raw / "rows.jsonl").write_bytes(lines([{"messages": pair("a", "c"), "text": text}]))
    with pytest.raises(Refusal, match=r"messages \(messages\) or as text \(text\), .*data\.format") as refusal:
        opened(chat("rows.jsonl"))
    assert len(str(refusal.value)) < 300
    assert conversations(chat("rows.jsonl", format="text")) == [pair("a", "b")]
    assert conversations(chat("rows.jsonl", format="messages")) == [pair("a", "c")]
    assert conversations(chat("rows.jsonl", columns=Columns(text="text"))) == [pair("a", "b")]
    (raw / "rows.jsonl").write_bytes(lines([{"problem": "p", "solution": "s", "answer": "a"}]))
    with pytest.raises(Refusal, match=r"completion from 'solution'.*completion from 'answer'.*data\.columns"):
        opened(chat("rows.jsonl"))
    assert conversations(chat("rows.jsonl", columns=Columns(completion="answer"))) == [pair("p", "a")]


@pytest.mark.parametrize(
    ("row", "named", "columns"),
    [
        ({"text": "Call me Ishmael."}, r"no turns .*data\.task to text", None),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            r"data\.columns\.completion to chosen",
            {"completion": "chosen"},
        ),
        (
            {"chosen": pair("a", "b"), "rejected": pair("a", "c")},
            r"data\.columns\.messages to chosen",
            {"messages": "chosen"},
        ),
        (
            {"frage": "a", "antwort": "b"},
            r"'frage', 'antwort': set data\.columns",
            {"prompt": "frage", "completion": "antwort"},
        ),
    ],
)
def test_no_known_format_is_refused_with_advice_that_works(raw, row, named, columns):
    (raw / "rows.jsonl").write_bytes(lines([row]))
    with pytest.raises(Refusal, match=named) as refusal:
        opened(chat("rows.jsonl"))
    assert len(str(refusal.value)) < 300
    if columns:
        assert conversations(chat("rows.jsonl", columns=Columns(**columns))) == [pair("a", "b")]


def test_text_to_sql_columns_are_found_by_their_usual_names(raw):
    (raw / "rows.jsonl").write_bytes(
        lines([{"sql_prompt": "How many?", "sql_context": "CREATE TABLE t (a INT)", "sql": "SELECT 1", "id": 1}])
    )
    data = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="text-to-sql", user_prompt="{context} {question}")
    assert conversations(data) == [pair("CREATE TABLE t (a INT) How many?", "SELECT 1")]
    (raw / "rows.jsonl").write_bytes(lines([{"question": "q", "context": "c", "sql": "s", "query": "t"}]))
    with pytest.raises(Refusal, match=r"'sql', 'query'; set data\.columns\.answer"):
        opened(data)


# Encodings


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Où est l’école ? À côté — œuvre, 5 €", "cp1252"),
        ("¿Dónde está la niña? ¡Aquí!", "cp1252"),
        ("Największą rzeką jest Wisła", "cp1250"),
        ("Největší řeka je Vltava", "cp1250"),
        ("Самая длинная река", "cp1251"),
        ("一番長い川は何ですか", "shift_jis"),
        ("Ποιος είναι ο μεγαλύτερος ποταμός;", "cp1253"),
        ("İstanbul’da yağmur yağıyor", "cp1254"),
    ],
)
def test_an_encoding_is_found_or_asked_for_and_never_guessed_wrong(raw, text, encoding):
    (raw / "rows.csv").write_bytes(f'prompt,completion\n"{text}",b\n'.encode(encoding))
    if encoding == "cp1252":
        assert conversations(chat("rows.csv")) == [pair(text, "b")]
    else:
        with pytest.raises(Refusal, match=r"data\.encoding"):
            opened(chat("rows.csv"))
    assert conversations(chat("rows.csv", encoding=encoding)) == [pair(text, "b")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_json_is_read_in_the_encodings_that_have_a_mark(raw, encoding):
    (raw / "rows.jsonl").write_bytes(lines([{"prompt": "ä", "completion": "日本"}]).decode().encode(encoding))
    assert conversations(chat("rows.jsonl")) == [pair("ä", "日本")]


def test_a_large_array_is_read_in_pieces(raw):
    rows = [{"prompt": f"{n} " * 50_000, "completion": "]} ,{["} for n in range(30)]
    (raw / "rows.json").write_text(json.dumps(rows))
    assert conversations(chat("rows.json")) == [pair(row["prompt"].strip(), "]} ,{[") for row in rows]
