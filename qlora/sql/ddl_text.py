"""Cut the text of a schema, as people and dump programs write it, into statements and tokens."""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Token(NamedTuple):
    """`kind`: word, name (quoted), string, number or symbol. `value`: a word in capitals, else the text unquoted."""

    kind: str
    value: str
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The identifier as it is stored: as quoted, or in lower case."""
        return self.value if self.kind == "name" else self.text.lower()


_BACKSLASH = r"'(?:[^'\\]|''|\\.)*'"
_STANDARD = r"'(?:[^']|'')*'"
_TOKENS = r"""
    (?P<space>\s+|--[^\n]*|/\*.*?\*/{hash})
    |(?P<string>[eE]{backslash}|[nNbBxX]?{string})
    |(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[(?=[^\]\[]*[^\W\d])[^\]\[]*\])
    |(?P<dollar>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\w))
    |(?P<word>[\w@\#][\w$\#]*)
    |(?P<symbol>::|.)
"""
_DIALECTS = {
    dialect: re.compile(
        _TOKENS.format(hash=hashes, backslash=_BACKSLASH, string=string), re.DOTALL | re.VERBOSE | re.IGNORECASE
    )
    for dialect, string, hashes in (("mysql", _BACKSLASH, r"|\#[^\n]*"), ("other", _STANDARD, ""))
}
_QUOTES = {'"': '""', "`": "``", "'": "''"}
_TABLE_WORDS = {"TABLE", "TEMP", "TEMPORARY", "UNLOGGED", "GLOBAL", "LOCAL"}
_OBJECTS = {"INDEX", "UNIQUE", "VIEW", "TYPE", "SEQUENCE", "TRIGGER", "DOMAIN", "SCHEMA", "OR", "EXTENSION", "FUNCTION"}
# Pairs of words that begin a statement, also where the semicolon before it is missing.
_STARTS = {
    ("INSERT", "INTO"), ("ALTER", "TABLE"), ("ALTER", "SEQUENCE"), ("COMMENT", "ON"), ("DROP", "TABLE"),
    ("DROP", "INDEX"), ("COPY", "PUBLIC"), ("LOCK", "TABLES"), ("UNLOCK", "TABLES"),
}  # fmt: skip
_WITH_BODY = {"TRIGGER", "FUNCTION", "PROCEDURE", "EVENT"}


def tokens(text: str, dialect: str) -> list[Token]:
    """The tokens of `text`, without space and comments."""
    found = []
    for match in _DIALECTS.get(dialect, _DIALECTS["other"]).finditer(text):
        kind, piece = match.lastgroup, match[0]
        if match["space"]:
            continue
        if match["dollar"]:
            kind, value = "string", piece
        elif match["name"]:
            kind, quote = "name", piece[0]
            # text[n], ARRAY[...]: no name in brackets
            value = piece[1:-1].replace(_QUOTES.get(quote, "]"), quote if quote != "[" else "]")
        elif match["string"]:
            kind, value = "string", _unquoted(piece, dialect)
        else:
            kind = next(name for name in ("number", "word", "symbol") if match[name])
            value = piece.upper()
        if kind == "name" and piece[0] == "[" and found and found[-1].value == "ARRAY":
            inner = tokens(piece[1:-1], dialect)
            begin = match.start()
            found.append(Token("symbol", "[", "[", begin, begin + 1))
            found += [one._replace(start=one.start + begin + 1, end=one.end + begin + 1) for one in inner]
            found.append(Token("symbol", "]", "]", match.end() - 1, match.end()))
            continue
        found.append(Token(kind, value, piece, match.start(), match.end()))
    return found


def _unquoted(piece: str, dialect: str) -> str:
    prefix, text = piece[: piece.index("'")], piece[piece.index("'") + 1 : -1].replace("''", "'")
    if dialect == "mysql" or prefix in ("e", "E"):
        escapes = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
        text = re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), text, flags=re.DOTALL)
    return text


def statements(text: str, dialect: str) -> Iterator[list[Token]]:
    """Yield the tokens of each statement. Semicolons between statements may be missing."""
    current: list[Token] = []
    depth = body = 0
    found = tokens(text, dialect)
    for index, token in enumerate(found):
        following = found[index + 1].value if index + 1 < len(found) else ""
        if token.kind == "word" and current and not body and _begins(token.value, following, depth, current):
            yield current
            current, depth = [], 0
        if token.text == ";" and depth <= 0 and not body:
            yield current
            current, depth = [], 0
            continue
        if token.kind == "word" and _has_body(current):
            if token.value in ("BEGIN", "CASE"):
                body += 1
            elif token.value == "END" and following not in ("IF", "LOOP", "WHILE", "REPEAT"):
                body = max(0, body - 1)
        elif token.kind == "symbol":
            depth += (token.text == "(") - (token.text == ")")
        current.append(token)
    yield current


def _begins(word: str, following: str, depth: int, current: list[Token]) -> bool:
    if word == "CREATE" and following in _TABLE_WORDS and not _has_body(current):
        return True  # even within parentheses: the statement before was cut off
    if depth > 0 or _has_body(current):
        return False
    return (word == "CREATE" and following in _OBJECTS) or (word, following) in _STARTS or (word == "GO")


def _has_body(current: list[Token]) -> bool:
    words = [token.value for token in current[:12] if token.kind == "word"]
    if not words or words[0] != "CREATE":
        return False
    kind = next((word for word in words[1:] if word in _WITH_BODY or word in ("TABLE", "VIEW", "INDEX", "TYPE")), "")
    return kind in _WITH_BODY
