"""Find the SQL in a model's raw answer. The same for every artifact; the raw answer is kept by whoever asked for it."""

import re

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
# What chat templates and prompts put after (or, by a model that runs on, within) an answer.
_MARKER = re.compile(
    r"<\|[\w-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|^\s*###|^\s*(?:Human|User|Assistant)\s*:",
    re.MULTILINE,
)
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:sqlite|sql|query|sql query|answer|output)\s*:\s*", re.IGNORECASE)
_STATEMENT = re.compile(
    r"(?:select|with|values|insert|update|delete|replace|create|drop|alter|attach|detach|pragma|vacuum|explain)\b"
    r"|\(\s*select\b",
    re.IGNORECASE,
)
# Where a query begins inside prose. WITH and the like are also English, so there only what SQL puts after them counts.
_QUERY = re.compile(
    r"\bselect\b(?=\s*[\s\w*(\"'`\[-])|\bwith\s+(?:recursive\s+)?[\w\"`]+\s*(?:\([^()]*\)\s*)?as\s*\(", re.IGNORECASE
)
_CLAUSE = re.compile(
    r"(?:select|from|where|and|or|group|order|having|limit|offset|union|intersect|except|join|inner|left|right|full"
    r"|cross|natural|on|using|as|with|when|then|else|end|case|not|in|between|like|is|values)\b|[(),*=<>'\"`|+-]",
    re.IGNORECASE,
)


def extract(answer: str) -> str:
    """Return the SQL in `answer`, without fences, prose, chat markers and the final semicolon.

    A fenced block that holds a query wins; otherwise the text from the first line that begins a statement, or else from
    the first query inside a line. It ends at a chat marker, at a semicolon that no further statement follows, or at an
    empty line that no SQL follows. Several statements stay several (and are an error later). An answer with no SQL in
    it is returned as it is, stripped.
    """
    text = _THOUGHT.sub("", answer)
    marker = next((found for found in _MARKER.finditer(text) if text[: found.start()].strip()), None)
    text = _MARKER.sub("\n", text[: marker.start()] if marker else text)
    for block in _FENCE.findall(text):
        if _start(block) is not None:
            text = block
            break
    text = text.replace("```", "\n")
    start = _start(text)
    if start is None:
        return text.strip().strip("`").strip()
    return _end(text[start:]).strip().strip("`").strip().rstrip(";").strip()


def _start(text: str) -> int | None:
    """Where the first statement of `text` begins."""
    position = 0
    for line in text.splitlines(keepends=True):
        label = _LABEL.match(line)
        begin = label.end() if label else len(line) - len(line.lstrip(" \t`>"))
        # "With this query ..." is prose: a line's first word decides only where SQL could go on.
        word = _STATEMENT.match(line, begin)
        if word and (not word[0].lower().startswith("with") or _QUERY.match(text, position + begin)):
            return position + begin
        query = _QUERY.search(line)
        if query:
            return position + query.start()
        position += len(line)
    return None


def _end(sql: str) -> str:
    """`sql` without what follows its last statement."""
    quote = None
    for position, character in enumerate(sql):
        if quote:
            quote = None if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character == ";":
            rest = sql[position + 1 :].lstrip("; \t\r\n")
            if not _STATEMENT.match(rest):
                return sql[:position]
        elif character == "\n" and sql[position + 1 :].lstrip(" \t\r").startswith("\n"):
            rest = sql[position:].lstrip()
            if not _CLAUSE.match(rest) and not _STATEMENT.match(rest):
                return sql[:position]
    return sql
