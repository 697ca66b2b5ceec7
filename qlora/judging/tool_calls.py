"""Tool calls: whether the answer calls the gold answer's tools, with the same arguments."""

import ast
import json
import re
from collections.abc import Iterator, Sequence

from qlora.judging.texts import without_reasoning

# What stands before the arguments: gpt-oss's `to=functions.name ... {...}`, Mistral's `[TOOL_CALLS]name[ARGS]{...}`.
FUNCTIONS = re.compile(r".*to=functions\.([\w.-]+)", re.DOTALL)
NAMED = re.compile(r"(?:\[TOOL_CALLS\]|^|\n)\s*([\w.-]+)\s*(?:\[ARGS\])?\s*$")
XML = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)  # Qwen3-Coder's
XML_ARGUMENT = re.compile(r"<parameter=([\w.-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENTS = ("arguments", "parameters", "args")
Call = tuple[str, str]  # the name, and the arguments as JSON with sorted keys


def tool_call(rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """One record a row: tool_name, whether the same tools are called, and tool_call, whether with equal arguments.

    Several calls have no order. An answer to a row whose gold answer calls no tool is right if it calls none.
    """
    records = []
    for row, answer in zip(rows, answers, strict=True):
        message = row["messages"][-1]
        called = [call["function"] for call in message.get("tool_calls", [])]
        right = sorted(_call(one["name"], one["arguments"]) for one in called) or sorted(calls(message["content"]))
        found = sorted(calls(without_reasoning(answer)))
        names = [name for name, _ in found] == [name for name, _ in right]
        if found == right:
            outcome = "right"
        elif not found:
            outcome = "no call"
        elif not right:
            outcome = "a needless call"
        else:
            outcome = "other arguments" if names else "another tool"
        records.append({"tool_call": int(found == right), "tool_name": int(names), "outcome": outcome})
    return records


def calls(text: str) -> list[Call]:
    """The calls in a text: JSON with a name and arguments, a name before them, Python's syntax, or Qwen's XML."""
    try:
        if found := XML.findall(text):
            return [_call(name, {key: _value(v) for key, v in XML_ARGUMENT.findall(body)}) for name, body in found]
        return list(_json_calls(text)) or _python_calls(text)
    except RecursionError:  # nested too deep for any tool
        return []


def _json_calls(text: str) -> Iterator[Call]:
    decoder, at, begin = json.JSONDecoder(), 0, 0
    while (found := re.compile(r"[{\[]").search(text, at)) is not None:
        at = found.start()
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        inside = list(_calls_of(value))
        named = FUNCTIONS.match(text[begin:at]) or NAMED.search(text[begin:at])
        if not inside and isinstance(value, dict) and named:
            inside = [_call(named[1], value)]
        yield from inside
        begin = at = end


def _calls_of(value: object) -> Iterator[Call]:
    """The calls in a JSON value: an object with a name and arguments, alone, in a list, or under "function"."""
    if isinstance(value, list):
        for part in value:
            yield from _calls_of(part)
    elif isinstance(value, dict):
        for key in ("function", "tool_calls", "function_call"):
            if isinstance(value.get(key), dict | list):
                yield from _calls_of(value[key])
                return
        arguments = next((value[key] for key in ARGUMENTS if key in value), None)
        if isinstance(value.get("name"), str) and arguments is not None:
            yield _call(value["name"], _value(arguments) if isinstance(arguments, str) else arguments)


def _python_calls(text: str) -> list[Call]:
    """The calls of a text that is Python: name(argument=value), several in a list or one a line."""
    try:
        body = ast.parse(re.sub(r"^```\w*\n|```$", "", text.strip()).strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for statement in body:
        value = getattr(statement, "value", None)
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(node, ast.Call) or node.args:
                return []
            try:
                arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
                found.append(_call(ast.unparse(node.func), arguments))
            except (ValueError, TypeError):
                return []
    return found


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _call(name: str, arguments: object) -> Call:
    return name, json.dumps(_plain(arguments), sort_keys=True, ensure_ascii=False, default=str)


def _plain(value: object) -> object:
    """`value` with 1.0 as 1, so that equal numbers have one form."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
