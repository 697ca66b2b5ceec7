"""Tools and calls of them in people's rows, in the form that chat templates know (OpenAI's, arguments as an object)."""

import json
import re

from qlora.raw_rows.rejected import Rejected, valid_text
from qlora.raw_rows.values import is_absent, parsed

TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


def tools(value: object) -> list[dict]:
    """The tools that a row offers, each as {"type": "function", "function": {...}}; empty if there are none.

    Raises:
        Rejected: if they are no list of named functions.
    """
    value = parsed(value)
    if is_absent(value) or value == []:
        return []
    if not isinstance(value, list):
        raise Rejected("tools are not a list of functions", str(value))
    found = [parsed(tool) for tool in value]
    functions = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in found]
    if not all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        raise Rejected("a tool needs a function with a name", str(value))
    _check_text(functions)
    return [{"type": "function", "function": function} for function in functions]


def tool_calls(message: dict, text: str | None) -> list[dict]:
    """The calls of an assistant's message: its tool_calls or function_call, or `text` that is one; empty if none.

    Raises:
        Rejected: if a call has no name, or its arguments are no object.
    """
    value = parsed(message.get("tool_calls"))
    if is_absent(value):
        value = message.get("function_call")
    if is_absent(value):
        value = text
    value = parsed(value)
    if is_absent(value) or value == []:
        return []
    return [_call(parsed(call)) for call in (value if isinstance(value, list) else [value])]


def of_text(text: str) -> tuple[list[dict], str]:
    """The calls in an answer's text, as Hermes writes them (<tool_call>JSON</tool_call>), and the other text."""
    written = TAGGED.findall(text)
    return [_call(parsed(call)) for call in written], TAGGED.sub("", text).strip()


def of_result(text: str) -> str:
    """A tool's result without the <tool_response> that Hermes' rows have around it, and templates add."""
    inside = RESULT.fullmatch(text)
    return inside[1] if inside and "</tool_response>" not in inside[1] else text


def _call(raw: object) -> dict:
    call = raw.get("function", raw) if isinstance(raw, dict) else {}
    arguments = call.get("arguments", call.get("parameters"))
    arguments = {} if is_absent(arguments) else parsed(arguments)
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        raise Rejected("a tool call needs a name and its arguments as an object", str(raw))
    _check_text(arguments)
    named = {"id": str(raw["id"])} if not is_absent(raw.get("id")) else {}
    return named | {"type": "function", "function": {"name": valid_text(call["name"]), "arguments": arguments}}


def _check_text(value: object) -> None:
    """Raise Rejected if JSON of `value` holds a text that is not valid."""
    valid_text(json.dumps(value, ensure_ascii=False))
    if "\\u0000" in json.dumps(value):
        raise Rejected("a NUL character")
