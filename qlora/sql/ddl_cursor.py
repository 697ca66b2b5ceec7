"""What the statements of a schema declare, and how their tokens are walked through."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from qlora.sql.ddl_text import Token

# Statements that say nothing about tables; they are not counted as skipped.
_SILENT = """
    SET,BEGIN,COMMIT,START,PRAGMA,USE,GO,LOCK,UNLOCK,ANALYZE,VACUUM,END,SELECT,DROP,COMMENT,GRANT,REVOKE,CREATE INDEX,
    CREATE SCHEMA,CREATE DATABASE,CREATE EXTENSION,CREATE SEQUENCE,ALTER SEQUENCE,ALTER TYPE,ALTER DOMAIN,
    ALTER FUNCTION,ALTER DEFAULT,ALTER DATABASE,ALTER VIEW,ALTER SCHEMA,DELETE FROM SQLITE_SEQUENCE
"""
SILENT = frozenset(kind.strip() for kind in _SILENT.split(","))


@dataclass
class RawTable:
    """A table as declared. Names are in lower case; `spelled` has the names that were quoted with capitals.

    `kinds`: column -> its type as written. `checks`, `generated`: expressions as text. `references`: (columns, parent,
    its columns or none). `defaults`: column -> the tokens of its default. `rows`: of INSERT and COPY, each as column ->
    the tokens of a value, or a text of COPY.
    """

    name: str
    kinds: dict[str, str] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    primary_key: tuple[str, ...] = ()
    unique: list[tuple[str, ...]] = field(default_factory=list)
    not_null: set[str] = field(default_factory=set)
    checks: list[str] = field(default_factory=list)
    generated: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, list[Token]] = field(default_factory=dict)
    references: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = field(default_factory=list)
    rows: list[dict[str, list[Token] | str | None]] = field(default_factory=list)


@dataclass
class Declarations:
    """What the statements of a schema declare.

    `enums`: type -> values. `domains`: type -> the type it stands for. `views`: name -> (columns, perhaps none, query).
    `qualifiers`: the databases and schemas that are named. `skipped`: kind of statement or clause -> count.
    """

    tables: dict[str, RawTable] = field(default_factory=dict)
    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    views: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    qualifiers: set[str] = field(default_factory=set)
    skipped: Counter = field(default_factory=Counter)


class Cursor:
    """A position in a list of tokens; what they declare is added to `found`. `last`: the last name as it is spelled."""

    def __init__(self, text: str, tokens: list[Token], found: Declarations):
        self.text, self.tokens, self.found, self.at, self.last = text, tokens, found, 0, ""

    def peek(self, ahead: int = 0) -> str:
        """The word or symbol there; "" at the end and for a quoted name or string."""
        token = self.token(ahead)
        return token.value if token and token.kind in ("word", "symbol") else ""

    def token(self, ahead: int = 0) -> Token | None:
        index = self.at + ahead
        return self.tokens[index] if 0 <= index < len(self.tokens) else None

    def take(self, *words: str) -> bool:
        """Skip the words if they come next."""
        if all(self.peek(number) == word for number, word in enumerate(words)):
            self.at += len(words)
            return True
        return False

    def take_any(self, *words: str) -> bool:
        return any(self.take(word) for word in words)

    def until(self, stop: Callable[[], bool]) -> list[Token]:
        """The tokens up to where `stop` is true outside of parentheses."""
        start, depth = self.at, 0
        while self.at < len(self.tokens) and not (depth == 0 and stop()):
            value = self.tokens[self.at].text
            depth += (value in "([") - (value in ")]")
            if depth < 0:
                break
            self.at += 1
        return self.tokens[start : self.at]

    def group(self) -> list[Token]:
        """The tokens in the parentheses that come next; none if none come."""
        if self.peek() != "(":
            return []
        self.at += 1
        inside = self.until(lambda: self.peek() == ")")
        self.at += 1
        return inside

    def source(self, tokens: list[Token]) -> str:
        return self.text[tokens[0].start : tokens[-1].end] if tokens else ""

    def skip(self, kind: str) -> None:
        """Count something that is not understood."""
        if kind not in SILENT:
            self.found.skipped[kind or "other text"] += 1

    def name(self) -> str:
        """A name, perhaps with its database and schema, in lower case."""
        token = self.token()
        if token is None:
            return ""
        self.at += 1
        while self.peek() == "." and self.token(1):
            self.found.qualifiers.add(token.name.lower())
            token = self.token(1)
            self.at += 2
        self.last = token.name
        return token.name.lower()

    def names(self) -> tuple[str, ...]:
        """The columns in parentheses; none if one of them is an expression."""
        inside, names = Cursor(self.text, self.group(), self.found), []
        while inside.token():
            part = inside.until(lambda: inside.peek() == ",")
            inside.at += 1
            if not part or part[0].kind not in ("word", "name") or any(one.text in "+-*/:|" for one in part):
                return ()
            # name(10), name ASC, name text_pattern_ops are the column; lower(name) is not
            if len(part) > 1 and part[1].text == "(" and not (len(part) > 2 and part[2].kind == "number"):
                return ()
            names.append(part[0].name.lower())
        return tuple(names)
