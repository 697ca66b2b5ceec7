"""What is learned of rows with flags, reasoning and tools, by the chat templates of real models."""

import json
from pathlib import Path

from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.layouts import Layout
from qlora.raw_rows.rejected import Rejected
from qlora.recipe.schema import Data
from qlora.rows.chat import Unusable
from qlora.rows.loss_mask import encode, last_answer_only

import pytest
import trl
from byte_tokenizer import chat, learned

TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # copies of the models' own
DATA = Data(source="data/raw/rows.jsonl", dialect="sqlite", task="chat")
TOOL = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"city": "Ulm", "days": 2}}
CALL_IN_JSON = '{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}'
DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"


def read(row: dict) -> list[dict]:
    columns = {part: part for part in ("messages", "tools") if part in row}
    return conversation(row, Layout("messages", columns), DATA)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more) -> dict:
    return {"role": "assistant", "content": text} | more


TURNS = [user("q1"), assistant("a1"), user("y"), assistant("a2")]
REASONED = [user("q1"), assistant("a1", reasoning_content="r1, long"), user("y"), assistant("a2", thinking="r2")]
ASKED = [user("q1"), assistant(None, tool_calls=[{"id": "abcdefghi", "type": "function", "function": CALL}])]
RESULT = {"role": "tool", "content": "Sun", "name": "weather", "tool_call_id": "abcdefghi"}
WITH_TOOLS = [*ASKED, RESULT, assistant("It is sunny.")]
MODELS = {
    "qwen2_5": ["<|im_end|>"],
    "qwen3": ["<|im_end|>"],
    "qwen3_8": ["<|im_end|>"],
    "lfm2_2_5": ["<|im_end|>"],
    "nemotron_3_nano": ["<|im_end|>"],
    "llama3": ["<|eot_id|>"],
    "llama3_1": ["<|eot_id|>"],
    "phi3": ["<|end|>"],
    "gemma3": ["<end_of_turn>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "deepseek_r1_distill": [DEEPSEEK_END],
}
CHATS = {
    name: chat((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), *stops) for name, stops in MODELS.items()
}


# Flags


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "lfm2_2_5", "llama3", "llama3_1", "phi3", "gemma3"])
@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ({}, ["a1", "a2"]),
        ({"train": True}, ["a1", "a2"]),
        ({"weight": 1}, ["a1", "a2"]),
        ({"train": False}, ["a2"]),
        ({"weight": 0}, ["a2"]),
        ({"weight": 0.0}, ["a2"]),
        ({"loss": False}, ["a2"]),
        ({"train": None}, ["a1", "a2"]),
    ],
)
def test_an_answer_with_a_flag_is_context_only(name, flags, answers):
    messages = read({"messages": [TURNS[0], TURNS[1] | flags, *TURNS[2:]]})
    assert learned(CHATS[name], messages) == [answer + MODELS[name][0] for answer in answers]
    assert learned(CHATS[name], last_answer_only(messages)) == [f"a2{MODELS[name][0]}"]


def test_turns_behind_the_last_learned_answer_are_left_out():
    assert read({"messages": [*TURNS[:3], TURNS[3] | {"weight": 0}]}) == TURNS[:2]
    with pytest.raises(Rejected, match="no answer is learned"):
        read({"messages": [TURNS[0], TURNS[1] | {"weight": 0}]})
    with pytest.raises(Rejected, match="weight of a message must be 0 or 1"):
        read({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]})


def test_flags_do_not_change_what_the_template_renders():
    messages = read({"messages": [TURNS[0], TURNS[1] | {"train": False}, *TURNS[2:]]})
    for loaded in CHATS.values():
        assert encode(loaded, messages).input_ids == encode(loaded, TURNS).input_ids


# Reasoning


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("qwen3", ["<think>\nr2\n</think>\n\na2<|im_end|>"]),  # its prompts hold no earlier reasoning
        ("qwen3_8", ["r1, long\n</think>\n\na1<|im_end|>", "r2\n</think>\n\na2<|im_end|>"]),
        ("lfm2_2_5", ["<think>r2</think>a2<|im_end|>"]),
        ("nemotron_3_nano", ["r2\n</think>\na2<|im_end|>"]),
        ("deepseek_r1_distill", [f"r2\n</think>\n\na2{DEEPSEEK_END}"]),
        (
            "gptoss",
            [
                "<|channel|>analysis<|message|>r2<|end|><|start|>assistant<|channel|>final<|message|>a2<|return|>",
            ],
        ),
    ],
)
def test_reasoning_is_learned_where_the_template_puts_it(name, answers):
    assert learned(CHATS[name], read({"messages": REASONED})) == answers


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "llama3_1", "phi3", "gemma3"])
def test_a_template_without_reasoning_is_a_reason(name):
    with pytest.raises(Unusable, match="knows no reasoning"):
        learned(CHATS[name], read({"messages": REASONED}))


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("qwen3", ["a1<|im_end|>", "a2<|im_end|>"]),
        ("nemotron_3_nano", ["</think>a2<|im_end|>"]),  # its prompts open the block
        ("deepseek_r1_distill", [f"</think>\n\na2{DEEPSEEK_END}"]),
    ],
)
def test_an_empty_block_of_reasoning_is_not_learned(name, answers):
    assert learned(CHATS[name], read({"messages": TURNS})) == answers


# Tools

QWEN_CALL = f"<tool_call>\n{CALL_IN_JSON}\n</tool_call>"


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("qwen2_5", [f"{QWEN_CALL}<|im_end|>", "It is sunny.<|im_end|>"]),
        ("qwen3", [f"{QWEN_CALL}<|im_end|>", "It is sunny.<|im_end|>"]),
        (
            "llama3_1",
            ['{"name": "weather", "parameters": {"city": "Ulm", "days": 2}}<|eot_id|>', "It is sunny.<|eot_id|>"],
        ),
        (
            "lfm2_2_5",
            [
                "<|tool_call_start|>[weather(city='Ulm', days=2)]<|tool_call_end|><|im_end|>",
                "It is sunny.<|im_end|>",
            ],
        ),
        (
            "gptoss",
            [
                ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Ulm", "days": 2}<|call|>',
                "<|channel|>final<|message|>It is sunny.<|return|>",
            ],
        ),
    ],
)
def test_calls_are_learned_and_their_results_are_not(name, answers):
    messages = read({"messages": WITH_TOOLS, "tools": [{"type": "function", "function": TOOL}]})
    assert learned(CHATS[name], messages) == answers
    assert learned(CHATS[name], messages[:2]) == answers[:1]


def test_tools_are_read_as_people_write_them():
    tools = [{"type": "function", "function": TOOL}]
    expected = [WITH_TOOLS[0] | {"tools": tools}, *read({"messages": WITH_TOOLS})[1:]]
    written = [
        user("q1"),
        {"from": "function_call", "value": CALL_IN_JSON},
        {"from": "observation", "value": "Sun"},
        {"from": "gpt", "value": "It is sunny."},
    ]
    call = ASKED[1]["tool_calls"][0]
    as_text = call | {"function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
    legacy = {"role": "assistant", "content": None, "function_call": as_text["function"]}
    for messages in (
        written,
        [WITH_TOOLS[0], assistant("", tool_calls=[as_text]), *WITH_TOOLS[2:]],
        [WITH_TOOLS[0], legacy, *WITH_TOOLS[2:]],
    ):
        for given in (tools, [TOOL], json.dumps(tools), [json.dumps(TOOL)]):
            found = read({"messages": messages, "tools": given})
            without = [{k: v for k, v in m.items() if k not in ("tool_calls", "name", "tool_call_id")} for m in found]
            assert without == [
                {k: v for k, v in m.items() if k not in ("tool_calls", "name", "tool_call_id")} for m in expected
            ]
            assert found[1]["tool_calls"][0]["function"] == CALL


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("q"), assistant("a"), RESULT, assistant("b")], "a tool's result does not follow a call"),
        ([*ASKED, user("q"), assistant("b")], "a tool's result is missing"),
        ([user("q"), assistant("", tool_calls=[{"function": {"arguments": {}}}])], "a tool call needs a name"),
        (
            [user("q"), assistant("", tool_calls=[{"function": CALL | {"arguments": "Ulm"}}])],
            "a tool call needs a name",
        ),
        ([user("q"), assistant("")], "an empty assistant message"),
    ],
)
def test_calls_that_cannot_be_used_are_a_reason(messages, reason):
    with pytest.raises(Rejected, match=reason):
        read({"messages": messages})


@pytest.mark.parametrize(
    ("name", "beside", "reason"),
    [
        ("llama3", "", "leaves out the tools"),
        ("phi3", "", "leaves out the tools"),
        ("deepseek_r1_distill", "", "leaves out the tools"),
        ("gemma3", "", "chat template"),
        ("llama3_1", "I look.", "leaves out the text beside a tool call"),
    ],
)
def test_what_a_template_leaves_out_is_a_reason(name, beside, reason):
    asked = ASKED[1] | {"content": beside}
    with pytest.raises(Unusable, match=reason):
        learned(CHATS[name], read({"messages": [WITH_TOOLS[0], asked, *WITH_TOOLS[2:]], "tools": [TOOL]}))
