"""Messages in forms that people's rows have, and files of several formats: each is its twin, or a reason."""

import json
from pathlib import Path

from qlora.runtime.console import Refusal

import pytest
from row_files import chat, conversations, lines, opened, pair


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw"
    folder.mkdir(parents=True)
    return folder


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALLED = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]


def called(call: dict, result: object) -> list[dict]:
    """A conversation with a call and its result."""
    asked = {"role": "user", "content": "q"}
    return [asked, {"role": "assistant"} | call, {"role": "tool", "content": result}, *pair("", "x")[1:]]


AS_TEXT = called({"content": "", "tool_calls": CALLED}, "r")
THOUGHT = [pair("q", "")[0], {"role": "assistant", "content": "x", "reasoning_content": "hm"}]
UNLEARNED = [pair("q", "")[0], {"role": "assistant", "content": "x", "train": False}, *pair("r", "y")]


@pytest.mark.parametrize(
    ("messages", "twin"),
    [
        # Flags as text, and none at all
        *(
            ([pair("q", "")[0], {"role": "assistant", "content": "x", flag: off}, *pair("r", "y")], UNLEARNED)
            for flag, off in (("weight", "0"), ("weight", "0.0"), ("train", "False"), ("loss", " false "))
        ),
        ([*pair("q", "x")[:1], pair("", "x")[1] | {"weight": 1, "train": False}, *pair("r", "y")], UNLEARNED),
        ([pair("q", "")[0], pair("", "x")[1] | {"weight": float("nan"), "train": ""}], pair("q", "x")),
        ([pair("q", "")[0], pair("", "x")[1] | {"weight": "half"}], "weight of a message must be 0 or 1"),
        ([{"role": "system", "content": " "}, *pair("q", "x")], pair("q", "x")),
        ([{"from": "system", "value": None}, *pair("q", "x")], pair("q", "x")),
        # Parts
        (
            [
                pair("q", "")[0],
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"text": "x"}]},
            ],
            THOUGHT,
        ),
        (
            [pair("q", "")[0], {"role": "assistant", "content": [{"type": "reasoning", "text": "hm"}, {"text": "x"}]}],
            THOUGHT,
        ),
        ([{"role": "user", "content": {"type": "text", "text": "q"}}, *pair("", "x")[1:]], pair("q", "x")),
        ([{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "x"}]}], pair("q", "x")),
        ([pair("q", "")[0] | {"images": ["a.png"]}, *pair("", "x")[1:]], "holds images, and only text"),
        ([pair("q", "")[0] | {"images": []}, *pair("", "x")[1:]], pair("q", "x")),
        ([{"from": "human", "value": "q", "content": "r"}, *pair("", "x")[1:]], "two different texts"),
        # Calls: arguments and results as text and as objects
        (called({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}, "r"), AS_TEXT),
        (called({"content": "", "tool_calls": json.dumps(CALLED)}, [{"type": "text", "text": "r"}]), AS_TEXT),
        (called({"content": "", "function_call": {"name": "f", "arguments": {"a": 1}}}, "r"), AS_TEXT),
        (
            called({"content": "", "tool_calls": CALLED}, {"ä": [1, None]}),
            called({"content": "", "tool_calls": CALLED}, '{"ä": [1, null]}'),
        ),
        (called({"content": "", "tool_calls": CALLED}, None), "content as text"),
        # As Hermes' and Qwen's rows write them
        (
            called(
                {"content": 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'},
                "<tool_response>\nr\n</tool_response>",
            ),
            called({"content": "I look.", "tool_calls": CALLED}, "r"),
        ),
        (called({"content": "<tool_call>{'name': 'f', 'arguments': {'a': 1}}</tool_call>"}, "r"), AS_TEXT),
        (called({"content": "<tool_call>f(1)</tool_call>"}, "r"), "arguments as an object"),
        (called({"content": "no call"}, "r"), "does not follow a call"),
        (called({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]}, "r"), "arguments"),
    ],
)
def test_a_message_in_another_form_is_its_twin_or_a_reason(raw, messages, twin):
    (raw / "rows.jsonl").write_bytes(lines([{"messages": messages}]))
    (found,) = conversations(chat("rows.jsonl"))
    if isinstance(twin, str):
        assert twin in found
    else:
        assert found == twin


def test_line_ends_of_a_csv_file_are_not_the_texts(raw):
    text = 'prompt;completion\r\n"one\r\ntwo";"three\r\n\r\nfour"\r\n'
    (raw / "rows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert conversations(chat("rows.csv")) == [pair("one\ntwo", "three\n\nfour")]


def test_values_that_are_no_text_are_named(raw):
    rows = [{"prompt": "a", "completion": value} for value in (7, float("nan"), ["x"], None)]
    (raw / "rows.jsonl").write_bytes(lines(rows))
    missing, other = "'completion' is missing", "'completion' is not text"
    assert conversations(chat("rows.jsonl")) == [other, missing, other, missing]


def test_rows_of_several_formats_in_one_file_are_each_read_as_what_they_are(raw):
    rows = [
        {"messages": pair("q", "x")},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]},
        {"prompt": "q", "completion": "x"},
        {"instruction": "q", "input": "", "output": "x"},
        {"text": "### Human: q### Assistant: x"},
        {"messages": None, "prompt": None},
    ]
    (raw / "rows.jsonl").write_bytes(lines(rows))
    assert conversations(chat("rows.jsonl")) == [pair("q", "x")] * 5 + ["'messages' is missing"]
    assert "sharegpt (messages from 'conversations')" in str(opened(chat("rows.jsonl")).layout)
    (raw / "rows.jsonl").write_bytes(lines([*rows, {"messages": pair("a", "b"), "prompt": "q", "completion": "x"}]))
    with pytest.raises(Refusal, match="which differ"):
        opened(chat("rows.jsonl"))
