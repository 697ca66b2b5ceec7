"""Turn a row of the source into a conversation, or say why it cannot be used."""

import json
import re
from itertools import pairwise

from qlora.raw_rows import calls
from qlora.raw_rows.layouts import Layout
from qlora.raw_rows.rejected import EXAMPLE, Rejected, valid_text
from qlora.raw_rows.values import is_absent, parsed
from qlora.recipe.schema import Data
from qlora.rows.chat import Messages

CALLS = {"function_call", "tool_call"}  # ShareGPT's roles of an assistant's message that is a call, as JSON
ROLES = {  # in rows, in lower case: in templates
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "model", "chatgpt", "bing", "bard", "claude", *sorted(CALLS)), "assistant"
    ),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
}
TEXTS = ("content", "value", "parts")
REASONING = ("reasoning_content", "reasoning", "thinking")
THOUGHTS = {"thinking", "reasoning"}  # types of parts
FLAGS = ("train", "training", "weight", "loss")  # of an answer: whether it is learned
SET = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
AFTER = {  # which turn may follow which; system messages may stand anywhere
    "start": {"user"},
    "user": {"assistant"},
    "assistant": {"user"},
    "call": {"tool"},
    "tool": {"tool", "assistant"},
}


def conversation(row: dict, layout: Layout, data: Data) -> Messages:
    """The messages of one row, the assistant's answer last.

    Raises:
        Rejected: with the reason, if a value is missing, empty or of the wrong type.
    """
    layout = layout.of_row(row)
    columns = layout.columns
    if layout.format == "text-to-sql":
        texts = {part: _text(row, column) for part, column in columns.items()}
        prompt = data.user_prompt.replace("{context}", texts["context"]).replace("{question}", texts["question"])
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": texts["answer"]}]
    elif layout.format == "documents":
        return [{"role": "assistant", "content": _text(row, columns["text"])}]
    elif "text" in columns:
        messages = split_text(_text(row, columns["text"]))
    elif "prompt" in columns:
        messages = _checked(_pair(row, columns))
    else:
        value = parsed(row.get(columns["messages"]))
        if is_absent(value):
            raise Rejected(f"{columns['messages']!r} is missing")
        if not isinstance(value, list) or not value:
            raise Rejected(f"{columns['messages']!r} is not a list of messages", str(value))
        messages = _checked(_system(row, columns) + value)
    if data.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    if "tools" in columns and (tools := calls.tools(row.get(columns["tools"]))):
        messages = [messages[0] | {"tools": tools}, *messages[1:]]
    return messages


def _pair(row: dict, columns: dict[str, str]) -> list[dict]:
    """The messages of a prompt and its completion; each may itself be a list of messages."""
    messages = _system(row, columns)
    for turn in _history(row, columns):
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)]
    prompt = _text_or_messages(row, columns["prompt"])
    if isinstance(prompt, str):
        between = columns.get("input")
        if between and not is_absent(row.get(between)):
            prompt = f"{prompt}\n{_text(row, between)}"
        prompt = [{"role": "user", "content": prompt}]
    completion = _text_or_messages(row, columns["completion"])
    return (
        messages
        + prompt
        + ([{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion)
    )


def _system(row: dict, columns: dict[str, str]) -> list[dict]:
    column = columns.get("system")
    return [] if not column or is_absent(row.get(column)) else [{"role": "system", "content": _text(row, column)}]


def _history(row: dict, columns: dict[str, str]) -> list:
    """Alpaca's earlier turns: pairs of a question and its answer."""
    value = parsed(row.get(columns["history"])) if "history" in columns else None
    if is_absent(value):
        return []
    if not isinstance(value, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        raise Rejected(f"{columns['history']!r} is not a list of question and answer pairs", str(value))
    return value


def _text_or_messages(row: dict, column: str) -> str | list[dict]:
    value = parsed(row.get(column))
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        return value
    return _text(row, column)


def split_text(text: str) -> Messages:
    """Split a conversation that was flattened into one text.

    Knows guanaco's `### Human:` / `### Assistant:` and Llama-2's `<s>[INST] ... [/INST] ... </s>`, whose system prompt
    is in `<<SYS>>`.

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
            if answer.strip():  # some conversations end with an unanswered question
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
    return _checked(messages)


def _text(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None or value != value:  # NaN
        raise Rejected(f"{column!r} is missing")
    if not isinstance(value, str):
        raise Rejected(f"{column!r} is not text", str(value))
    if not value.strip():
        raise Rejected(f"{column!r} is empty")
    return valid_text(value.strip())


def _checked(value: list) -> Messages:
    """The messages in the names and order that templates know, up to the last answer that is learned."""
    messages = [_message(message) for message in value if not _is_empty_system(message)]
    for before, after in pairwise(messages):
        if after["role"] == "tool" and before["role"] == "assistant" and "tool_calls" not in before:
            called, text = calls.of_text(before["content"])
            before |= {"content": text, "tool_calls": called} if called else {}
    if all(message["role"] != "assistant" for message in messages):
        raise Rejected("no assistant message")
    while messages and (messages[-1]["role"] != "assistant" or not messages[-1].get("train", True)):
        messages.pop()  # an unanswered question at the end teaches nothing, nor does an answer that is not learned
    if not messages:
        raise Rejected("no answer is learned (train, weight or loss is off)")
    before = "start"
    for message in messages:
        role = message["role"]
        if role == "system":
            continue
        if role not in AFTER[before]:
            turns = " ".join(message["role"] for message in messages)
            if role == "tool":
                raise Rejected("a tool's result does not follow a call", turns)
            if before == "call":
                raise Rejected("a tool's result is missing behind its call", turns)
            raise Rejected("the turns of user and assistant do not alternate", turns)
        before = "call" if "tool_calls" in message else role
    return messages


def _is_empty_system(raw: object) -> bool:
    values = raw if isinstance(raw, dict) else {}
    name = str(_first(values, "role", "from")).strip().lower()
    return ROLES.get(name) == "system" and all(is_absent(values.get(key)) for key in TEXTS)


def _message(raw: object) -> dict:
    """A message in the names that templates know: role, content; of an answer also reasoning_content, tool_calls, and
    `train` if it is false."""
    values = raw if isinstance(raw, dict) else {}
    name = str(_first(values, "role", "from")).strip().lower()
    role, value = ROLES.get(name), _first(values, *TEXTS)
    if any(values[key] not in (None, value) for key in TEXTS if key in values):
        raise Rejected("a message has two different texts", str(raw))
    thoughts, value = _thoughts(value) if role == "assistant" else ("", value)
    content, extra = _content(value, is_result=role == "tool"), {}
    if held := [key for key in MEDIA if not is_absent(values.get(key)) and values[key] != []]:
        raise Rejected(f"a message holds {held[0]}, and only text is learned", str(values[held[0]]))
    if role == "assistant":
        if called := calls.tool_calls(values, content if name in CALLS else None):
            extra["tool_calls"], content = called, "" if name in CALLS else content or ""
        if not is_absent(reasoning := thoughts or _first(values, *REASONING)):
            if not isinstance(reasoning, str):
                raise Rejected("reasoning that is not text", str(reasoning))
            extra["reasoning_content"] = valid_text(reasoning.strip())
        if not _is_learned(values):
            extra["train"] = False
    if role is None or content is None:
        raise Rejected(f"a message needs role ({', '.join(sorted(set(ROLES.values())))}) and content as text", str(raw))
    if not content.strip() and role != "tool" and "tool_calls" not in extra:
        raise Rejected(f"an empty {role} message")
    if role == "tool":
        content = calls.of_result(content)
    if role == "tool" and not is_absent(values.get("name")):
        extra["name"] = valid_text(str(values["name"]))
    if role == "tool" and not is_absent(values.get("tool_call_id")):
        extra["tool_call_id"] = valid_text(str(values["tool_call_id"]))
    return {"role": role, "content": valid_text(content.strip())} | extra


def _is_learned(values: dict) -> bool:
    """Whether an answer is learned: no flag that it has is off."""
    flags = {key: str(values[key]).strip().lower() for key in FLAGS if not is_absent(values.get(key))}
    for key, flag in flags.items():
        if flag not in SET:
            raise Rejected(f"{key} of a message must be 0 or 1, true or false", flag)
    return all(SET[flag] for flag in flags.values())


def _first(values: dict, *keys: str) -> object:
    """The value of the first key that has one: a Parquet file gives each message the keys of all."""
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _thoughts(value: object) -> tuple[str, object]:
    """The reasoning among the parts of an answer, and the other parts."""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        return "", value
    texts = [_first(part, *REASONING, "text") for part in value if part.get("type") in THOUGHTS]
    return "\n".join(map(str, texts)), [part for part in value if part.get("type") not in THOUGHTS]


def _content(value: object, is_result: bool) -> str | None:
    """The text of a message; its parts are joined by line breaks, as llama.cpp's and vLLM's servers join them.

    A tool's result may be any JSON.
    """
    is_parts = isinstance(value, list) and all(isinstance(part, str) or _is_part(part) for part in value)
    if is_result and value is not None and not isinstance(value, str) and not (value and (is_parts or _is_part(value))):
        return json.dumps(value, ensure_ascii=False)
    if _is_part(value):
        value = [value]
    if isinstance(value, list) and value:
        texts = [part if isinstance(part, str) else _part(part) for part in value]
        return None if None in texts else "\n".join(texts)
    return value if isinstance(value, str) else None


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and ("type" in value or value.keys() == {"text"})


def _part(part: object) -> str | None:
    if not isinstance(part, dict):
        return None
    if (kind := part.get("type", "text")) not in ("text", "input_text", "output_text"):
        raise Rejected(f"a message holds {str(kind)[:EXAMPLE]}, and only text is learned")
    return part["text"] if isinstance(part.get("text"), str) else None
