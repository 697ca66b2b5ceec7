"""Find the SQL in a model's raw answer. The same for every artifact; the raw answer is kept by whoever asked for it."""

import re

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
# What chat templates and prompts put after (or, by a model that runs on, within) an answer.
_MARKER = re.compile(
    r"<\|[\w-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^[ \t]*###|^[ \t]*(?:Human|User|Assistant)[ \t]*:",
    re.MULTILINE,
)
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:sqlite|sql|query|sql query|answer|output)\s*:\s*", re.IGNORECASE)
_STATEMENT = re.compile(
    r"(?:select|with|values|insert|update|delete|replace|create|drop|alter|attach|detach|pragma|vacuum|explain)\b"
    r"|\(\s*select\b",
    re.IGNORECASE,
)
# Where a query begins inside a line of prose, which may also say "select" and "with" in English.
_INLINE = r"\bSELECT\b|\bWITH\s+(?:RECURSIVE\s+)?[\w\"`]+\s*(?:\([^()]*\)\s*)?AS\s*\("
_QUERY_IN_CAPITALS = re.compile(_INLINE)
_QUERY = re.compile(_INLINE, re.IGNORECASE)
# Where a query may end: a semicolon or an empty line, outside of quotes and comments.
_STOP = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|;|\n[ \t\r]*\n", re.DOTALL)
_CLAUSE = re.compile(
    r"(?:select|from|where|and|or|group|order|having|limit|offset|union|intersect|except|join|inner|left|right|full"
    r"|cross|natural|on|using|as|with|when|then|else|end|case|not|in|between|like|is|values)\b|[(),*=<>'\"`|+-]",
    re.IGNORECASE,
)


def extract(answer: str) -> str:
    """Return the SQL in `answer`, without fences, prose, chat markers and the final semicolon.

    Only the text up to a chat marker counts (after it, if there is no SQL before). In it, a fenced block that holds a
    query wins; otherwise the query starts at the first line that begins a statement or has SELECT in capitals, or else
    at the first "select" of all. It ends at a semicolon that no further statement follows, or at an empty line that no
    SQL follows. Several statements stay several (and are an error later). An answer with no SQL in it is returned as it
    is, stripped.
    """
    text = _THOUGHT.sub("", answer)
    parts = [part for part in _MARKER.split(text) if part.strip()]
    text = next((part for part in parts if _start(part) is not None), parts[0] if parts else "")
    for block in _FENCE.findall(text):
        if _start(block) is not None:
            text = block
            break
    text = text.replace("```", "\n")
    return _end(text[_start(text) or 0 :]).strip().strip("`").rstrip(";. \t\r\n").lstrip()


def _start(text: str) -> int | None:
    """Where the first statement of `text` begins."""
    position = 0
    for line in text.splitlines(keepends=True):
        label = _LABEL.match(line)
        begin = label.end() if label else len(line) - len(line.lstrip(" \t`>"))
        word = _STATEMENT.match(line, begin)
        # "With this query ..." is prose.
        if word and (not word[0].lower().startswith("with") or _QUERY.match(text, position + begin)):
            return position + begin
        query = _QUERY_IN_CAPITALS.search(line)
        if query:
            return position + query.start()
        position += len(line)
    query = _QUERY.search(text)
    return query.start() if query else None


def _end(sql: str) -> str:
    """`sql` without what follows its last statement."""
    for found in _STOP.finditer(sql):
        if found[0] == ";":
            ends = not _STATEMENT.match(sql[found.end() :].lstrip("; \t\r\n"))
        elif found[0].startswith("\n"):
            rest = sql[found.end() :].lstrip()
            ends = not _CLAUSE.match(rest) and not _STATEMENT.match(rest)
        else:
            ends = False
        if ends:
            return sql[: found.start()]
    return sql
