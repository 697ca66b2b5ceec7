"""Find the SQL in a model's raw answer."""

import re

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
# What chat templates and prompts put after an answer. A model that does not stop writes it, too.
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
# The beginning of a query within a line of prose, where "select" and "with" may also be English words.
_NAME = r"(?:\w+|\"[^\"\n]+\"|`[^`\n]+`|\[[^\]\n]+\])"
_COMMON = rf"\bWITH\s+(?:RECURSIVE\s+)?{_NAME}\s*(?:\([^()]*\)\s*)?AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\("
_INLINE = rf"\bSELECT\b|{_COMMON}"
_QUERY_IN_CAPITALS = re.compile(_INLINE)
_QUERY = re.compile(_INLINE, re.IGNORECASE)
# The end of a query: a semicolon or an empty line, outside of quotes and comments.
_STOP = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|;|\n[ \t\r]*\n", re.DOTALL)
_CLAUSE = re.compile(
    r"(?:select|from|where|and|or|group|order|having|limit|offset|union|intersect|except|join|inner|left|right|full"
    r"|cross|natural|on|using|as|with|when|then|else|end|case|not|in|between|like|is|values)\b|[(),*=<>'\"`|+-]",
    re.IGNORECASE,
)


def extract(answer: str) -> str:
    """Return the SQL in `answer`, without fences, prose, chat markers and the final semicolon.

    Chat markers split the answer, and the first part with SQL counts. In it, the first fenced block with a query wins.
    Otherwise the query starts at the first line that begins a statement or has SELECT in capitals, or else at the first
    "select". It ends at a semicolon that no other statement follows, or at an empty line that no SQL follows. Several
    statements are all kept, and are an error later. An answer without SQL is returned stripped.
    """
    text = _THOUGHT.sub("", answer)
    parts = [part for part in _MARKER.split(text) if part.strip()]
    text = next((part for part in parts if _start(part) is not None), parts[0] if parts else "")
    for block in _FENCE.findall(text):
        if _start(block) is not None:
            text = block
            break
    text = text.replace("```", "\n")
    return _without_ticks(_end(text[_start(text) or 0 :]).strip()).rstrip(";. \t\r\n").lstrip()


def _without_ticks(sql: str) -> str:
    """`sql` without the backquotes of Markdown around it: those of a name come in pairs."""
    if sql.startswith("`") and sql.endswith("`") and sql.count("`") == 2:
        return sql[1:-1].strip()
    odd = sql.count("`") % 2 == 1
    return re.sub(r"`(?=[\s;.]*\Z)", "", sql) if odd else sql


def _start(text: str) -> int | None:
    """The position of the first statement of `text`, or None."""
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
    """`sql` up to the end of its last statement."""
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
