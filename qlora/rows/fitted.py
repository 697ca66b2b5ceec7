"""Rows in the form that a model's chat template reads: nothing of them is left out in silence."""

import json

from qlora.rows.chat import MARKS, Chat, Messages, Unusable


def fitted(chat: Chat, messages: Messages) -> Messages:
    """The messages with their reasoning where the template reads it: as a key of its own, or as <think> in the content.

    Raises:
        Unusable: if the template leaves out reasoning, tools, calls or their results.
    """
    if any("reasoning_content" in message for message in messages):
        key = chat.reasoning_key
        if key is None and "</think>" not in chat.tokenizer.chat_template:
            raise Unusable("chat template: knows no reasoning")
        messages = [_with_reasoning(message, key) for message in messages]
    if any(message.keys() & {"tool_calls", "tools"} for message in messages):
        _check_calls(chat, messages)
    return messages


def _with_reasoning(message: dict, key: str | None) -> dict:
    if "reasoning_content" not in message:
        return message
    reasoning = message["reasoning_content"]
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    if key is not None:
        return rest | {key: reasoning}
    return rest | {"content": f"<think>\n{reasoning}\n</think>\n\n{message['content']}"}


def _check_calls(chat: Chat, messages: Messages) -> None:
    """Raise Unusable if a tool's name, a call or a text beside it is missing in the rendered conversation."""
    text = chat.render(messages)
    for tool in messages[0].get("tools", ()):
        if tool["function"]["name"] not in text:
            raise Unusable("chat template: leaves out the tools")
    calls = sum(len(message.get("tool_calls", ())) for message in messages)
    if calls and chat.render(list(map(_renamed, messages))).count(MARKS[0]) < calls:
        raise Unusable("chat template: leaves out the tool calls")
    for message in messages:
        content = message["content"]
        if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            if message["role"] == "tool":
                raise Unusable("chat template: leaves out a tool's result")
            if "tool_calls" in message:
                raise Unusable("chat template: leaves out the text beside a tool call")


def _renamed(message: dict) -> dict:
    """The message with another name of each function that it calls: its own may be in the text for other reasons."""
    if "tool_calls" not in message:
        return message
    calls = [call | {"function": call["function"] | {"name": MARKS[0]}} for call in message["tool_calls"]]
    return message | {"tool_calls": calls}
