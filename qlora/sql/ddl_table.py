"""Read the columns and constraints of a table."""

from qlora.sql.ddl_cursor import Cursor, Declarations, RawTable
from qlora.sql.ddl_text import Token

# What may follow the type of a column.
_ENDS_TYPE = """
    CONSTRAINT PRIMARY NOT NULL UNIQUE CHECK DEFAULT COLLATE REFERENCES GENERATED AS AUTO_INCREMENT AUTOINCREMENT
    COMMENT CHARSET ON IDENTITY KEY STORED VIRTUAL INVISIBLE VISIBLE STORAGE COMPRESSION DEFERRABLE INITIALLY
    ROWGUIDCOL SPARSE PERSISTED
"""
ENDS_TYPE = frozenset(_ENDS_TYPE.split())
# Words after a column's type that say nothing about its values, or that follow words which are read.
_BARE = """
    NULL AUTO_INCREMENT AUTOINCREMENT STORED VIRTUAL PERSISTED DEFERRABLE ASC DESC NOT INITIALLY DEFERRED IMMEDIATE
    CASCADE RESTRICT CLUSTERED NONCLUSTERED VISIBLE INVISIBLE MATCH SIMPLE FULL ROWGUIDCOL SPARSE STORAGE COMPRESSION
    PLAIN EXTENDED MAIN UPDATE FIRST AFTER
"""
_BARE_WORDS = tuple(_BARE.split())


class Body(Cursor):
    """Reads the columns and constraints of a table, as in the parentheses of CREATE TABLE or after ADD."""

    def __init__(self, text: str, tokens: list[Token], table: RawTable, found: Declarations):
        super().__init__(text, tokens, found)
        self.table = table

    def read(self) -> list[str]:
        """Read them all. Returns the tables that are copied with LIKE."""
        copied = []
        while self.token():
            item = self.until(lambda: self.peek() == ",")
            self.at += 1
            if not item:
                continue
            one = _Item(self.text, item, self.table, self.found)
            if one.peek() == "LIKE" and len(item) > 1 and one.peek(1) != "(":
                one.at += 1
                copied.append(one.name())
            else:
                one.read()
        return copied


class _Item(Cursor):
    """Reads one column or one constraint of a table."""

    def __init__(self, text: str, tokens: list[Token], table: RawTable, found: Declarations):
        super().__init__(text, tokens, found)
        self.table = table

    def read(self) -> None:
        if not self._constraint():
            self._column()

    def _constraint(self) -> bool:
        if self.peek() == "CONSTRAINT" and self.token(1):
            self.at += 1 if self.peek(1) in ("PRIMARY", "UNIQUE", "FOREIGN", "CHECK") and self.peek(2) != "CHECK" else 2
        table = self.table
        if self.take("PRIMARY", "KEY"):
            self._index_words()
            table.primary_key = self.names()
        elif self.peek() == "UNIQUE" and (self.peek(1) in ("(", "KEY", "INDEX", "NULLS", "CLUSTERED", "NONCLUSTERED")
                                          or self.peek(2) == "("):  # fmt: skip
            self.at += 1
            self._index_words()
            if columns := self.names():
                table.unique.append(columns)
        elif self.take("FOREIGN", "KEY"):
            self._index_words()
            columns = self.names()
            if self.take("REFERENCES"):
                table.references.append((columns, self.name(), self.names()))
        elif self.peek() == "CHECK" and self.peek(1) == "(":
            self.at += 1
            table.checks.append(self.source(self.group()))
        elif self._is_index():
            pass
        elif self.peek() in ("EXCLUDE", "PERIOD") and self.peek(1) in ("USING", "(", "FOR"):
            self.skip(f"{self.peek()} constraint")
        else:
            return False
        return True

    def _index_words(self) -> None:
        """Skip what may stand between a kind of key and its columns, such as MySQL's name of the index."""
        self.until(lambda: self.peek() == "(")

    def _is_index(self) -> bool:
        """Whether an index of MySQL's comes next, and no column with the name `key` or `index`."""
        if self.peek() in ("FULLTEXT", "SPATIAL"):
            return self.peek(1) in ("KEY", "INDEX") or self.peek(2) == "("
        if self.peek() not in ("KEY", "INDEX"):
            return False
        place = 1 if self.peek(1) == "(" else 2
        inside = self.token(place + 1)
        return self.peek(place) in ("(", "USING") and inside is not None and inside.kind in ("word", "name")

    def _column(self) -> None:
        token = self.token()
        if token.kind not in ("word", "name", "string"):
            self.skip("item of CREATE TABLE")
            return
        self.at += 1
        spelled = token.name if token.kind != "string" else token.value
        name = spelled.lower()
        if spelled != name:
            self.table.spelled[name] = spelled
        self.table.kinds[name] = self.source(self.until(self._ends_type))
        while self.token():
            self._clause(name)

    def _ends_type(self) -> bool:
        return self.peek() in ENDS_TYPE or (self.peek() == "CHARACTER" and self.peek(1) == "SET")

    def _clause(self, name: str) -> None:
        table = self.table
        if self.take("CONSTRAINT"):
            self.at += self.peek() not in ("PRIMARY", "NOT", "UNIQUE", "CHECK", "REFERENCES")
        elif self.take("PRIMARY", "KEY") or self.take("KEY"):
            table.primary_key = (name,)
        elif self.take("UNIQUE"):
            self.take("KEY")
            table.unique.append((name,))
        elif self.take("NOT", "NULL"):
            table.not_null.add(name)
        elif self.peek() == "CHECK" and self.peek(1) == "(":
            self.at += 1
            table.checks.append(self.source(self.group()))
        elif self.take("DEFAULT"):
            start = self.at
            self.at += self.peek() != "("  # NULL is a default here, not the end of one
            self.until(self._ends_type)
            table.defaults[name] = self.tokens[start : self.at]
        elif self.take("REFERENCES"):
            table.references.append(((name,), self.name(), self.names()))
        elif self.take("GENERATED"):
            self.until(lambda: self.peek() == "AS")
        elif self.take("AS"):
            if not self.take("IDENTITY"):
                table.generated[name] = self.source(self.group())
            self.group()
        elif self.take("IDENTITY"):
            self.group()
        elif self.take("ON"):  # UPDATE CURRENT_TIMESTAMP(6), DELETE SET NULL, CONFLICT REPLACE
            self.at += 1
            self.take("SET", "NULL") or self.take("SET", "DEFAULT") or self.take("NO", "ACTION")
            self.until(self._ends_type)
        elif self.take("COLLATE") or self.take("CHARSET") or self.take("CHARACTER", "SET"):
            self.take("=")
            self.name()
        elif self.take("COMMENT"):
            self.at += 1
        elif self.take_any(*_BARE_WORDS):
            pass
        else:
            self.skip("clause of a column")
            self.at += 1
            self.until(self._ends_type)
