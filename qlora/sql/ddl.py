"""Read the statements of a schema: tables, keys, CHECKs, enums, views and rows. What else there is, is counted.

Text for SQLite, PostgreSQL, MySQL and SQL Server is read by the same rules: these differ less in their clauses than in
how names are quoted.
"""

import re

from qlora.sql.ddl_cursor import SILENT, Cursor, Declarations, RawTable
from qlora.sql.ddl_table import ENDS_TYPE, Body
from qlora.sql.ddl_text import Token, statements

_COPY = re.compile(r"^COPY\s+([^\n(]+?)\s*\(([^)]*)\)\s*FROM\s+stdin[^\n]*;\n(.*?)^\\\.\s*$", re.I | re.M | re.S)
_CONDITIONAL = re.compile(r"/\*!\d*(.*?)\*/", re.DOTALL)
_CLIENT = re.compile(r"^(?:\\|DELIMITER\s).*$", re.IGNORECASE | re.MULTILINE)


def read_declarations(text: str, dialect: str) -> Declarations:
    """Read all statements of `text`."""
    found = Declarations()
    copied = _COPY.findall(text)
    text = _CLIENT.sub("", _COPY.sub("", text))
    if dialect == "mysql":
        text = _CONDITIONAL.sub(r" \1 ", text)
    for statement in statements(text, dialect):
        if statement:
            _Statement(text, statement, found).read()
    for name, columns, lines in copied:
        _copy(found, name, columns, lines)
    return found


def _copy(found: Declarations, name: str, columns: str, lines: str) -> None:
    table = found.tables.get(name.split(".")[-1].strip(' "').lower())
    if table is None:
        found.skipped["COPY"] += 1
        return
    names = [column.strip(' "').lower() for column in columns.split(",")]
    unescape = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}
    for line in lines.splitlines():
        fields = [None if one == r"\N" else re.sub(r"\\.", lambda e: unescape.get(e[0], e[0][1]), one)
                  for one in line.split("\t")]  # fmt: skip
        if len(fields) == len(names):
            table.rows.append(dict(zip(names, fields, strict=True)))
        else:
            found.skipped["row of COPY"] += 1


class _Statement(Cursor):
    """Reads one statement into `found`."""

    def read(self) -> None:
        if self.take("CREATE"):
            self._create()
        elif self.take("ALTER", "TABLE"):
            self._alter()
        elif self.take("INSERT") or self.take("REPLACE"):
            self._insert()
        elif self.take("DROP", "TABLE"):
            self.take("IF", "EXISTS")
            self.found.tables.pop(self.name(), None)
        elif self.peek() not in SILENT:
            words = [token.value.upper() for token in self.tokens[:3]]
            self.skip(" ".join(words[:2] if words[0] == "ALTER" else words if words[0] == "DELETE" else words[:1]))
        if self.tokens[0].value == "USE" and len(self.tokens) > 1:
            self.found.qualifiers.add(self.tokens[1].name.lower())

    # CREATE

    def _create(self) -> None:
        while self.take_any("OR", "REPLACE", "TEMP", "TEMPORARY", "UNLOGGED", "GLOBAL", "LOCAL", "FOREIGN", "VIRTUAL",
                            "RECURSIVE", "MATERIALIZED", "FORCE", "NO"):  # fmt: skip
            pass
        while self.peek() in ("ALGORITHM", "DEFINER", "SQL"):  # of a MySQL view
            self.at += 1
            self.until(lambda: self.peek() in ("ALGORITHM", "DEFINER", "SQL", "VIEW", "TRIGGER", "PROCEDURE", "EVENT"))
        if self.take("TABLE"):
            self._table()
        elif self.take("VIEW"):
            self._view()
        elif self.take("TYPE"):
            name = self.name()
            if self.take("AS", "ENUM"):
                self.found.enums[name] = tuple(token.value for token in self.group() if token.kind == "string")
            else:
                self.skip("CREATE TYPE")
        elif self.take("DOMAIN"):
            name = self.name()
            self.take("AS")
            self.found.domains[name] = self.source(self.until(lambda: self.peek() in ENDS_TYPE))
        elif self.take("UNIQUE"):
            self.until(lambda: self.peek() == "ON")
            self.take("ON")
            self.take("ONLY")
            table = self.found.tables.get(self.name())
            if self.take("USING"):
                self.at += 1
            columns = self.names()
            if table and columns and not any(token.value == "WHERE" for token in self.tokens[self.at :]):
                table.unique.append(columns)
        else:
            if self.peek() in ("SCHEMA", "DATABASE"):
                self.at += 1
                self.take("IF", "NOT", "EXISTS")
                self.name()
                self.found.qualifiers.add(self.last.lower())
                return
            self.skip(f"CREATE {self.peek()}")

    def _view(self) -> None:
        self.take("IF", "NOT", "EXISTS")
        name = self.name()
        columns = tuple(token.name.lower() for token in self.group() if token.kind in ("word", "name"))
        self.until(lambda: self.peek() == "AS")
        self.take("AS")
        query = self.source(self.until(lambda: self.peek() == "WITH" and self.peek(1) in ("CHECK", "NO", "DATA")))
        if query:
            self.found.views[name] = (columns, query)

    def _table(self) -> None:
        self.take("IF", "NOT", "EXISTS")
        name = self.name()
        table = RawTable(name)
        if self.last != name:
            table.spelled[name] = self.last
        if self.take("PARTITION", "OF") or (self.peek() == "LIKE" and self.take("LIKE")):
            self._copy_columns(table, self.name())
        elif self.peek() == "(":
            body = self.group()
            if self.at > len(self.tokens):
                self.skip("unfinished CREATE TABLE")
                return
            for column in Body(self.text, body, table, self.found).read():
                self._copy_columns(table, column)
            if self.take("INHERITS"):
                for token in self.group():
                    if token.kind in ("word", "name"):
                        self._copy_columns(table, token.name.lower())
        else:
            self.skip("CREATE TABLE without columns")
            return
        if not table.kinds or name.startswith("sqlite_"):
            return
        if name in self.found.tables:
            self.skip("second table of a name")
            return
        self.found.tables[name] = table

    def _copy_columns(self, table: RawTable, other: str) -> None:
        parent = self.found.tables.get(other)
        if parent is None:
            self.skip("copy of an unknown table")
            return
        table.kinds = parent.kinds | table.kinds
        table.spelled = {k: v for k, v in parent.spelled.items() if k in parent.kinds} | table.spelled
        table.not_null |= parent.not_null
        table.checks += parent.checks
        table.primary_key = table.primary_key or parent.primary_key

    # ALTER TABLE and rows

    def _alter(self) -> None:
        self.take("IF", "EXISTS")
        self.take("ONLY")
        table = self.found.tables.get(self.name())
        if table is None:  # pg_dump names sequences and views so
            if self.peek() != "OWNER":
                self.skip("ALTER TABLE of an unknown table")
            return
        self.take("WITH")
        self.take_any("CHECK", "NOCHECK")
        while self.token():
            part = self.until(lambda: self.peek() == ",")
            self.at += 1
            self._change(table, part)

    def _change(self, table: RawTable, part: list[Token]) -> None:
        """One action of ALTER TABLE."""
        body = Body(self.text, part, table, self.found)
        if body.take("ADD"):
            body.take("COLUMN")
            body.take("IF", "NOT", "EXISTS")
            if body.peek() == "(":
                body = Body(self.text, body.group(), table, self.found)
            list(body.read())
        elif body.take("MODIFY"):
            body.take("COLUMN")
            list(body.read())
        elif body.take("CHANGE"):
            body.take("COLUMN")
            self._rename(table, body.token().name.lower(), body.token(1))
            body.at += 1
            list(body.read())
        elif body.take("ALTER"):
            body.take("COLUMN")
            name = body.token().name.lower() if body.token() else ""
            body.at += 1
            if body.take("SET", "NOT", "NULL"):
                table.not_null.add(name)
            elif (body.take("TYPE") or body.take("SET", "DATA", "TYPE")) and name in table.kinds:
                table.kinds[name] = body.source(body.until(lambda: body.peek() == "USING"))
        elif body.take("RENAME"):
            if body.take("TO"):
                self.found.tables.pop(table.name)
                table.name = body.token().name.lower()
                self.found.tables[table.name] = table
            elif body.take("COLUMN") or body.peek(1) == "TO":
                self._rename(table, body.token().name.lower(), body.token(2))
        elif body.take("DROP"):
            if body.take("COLUMN"):
                body.take("IF", "EXISTS")
                table.kinds.pop(body.token().name.lower(), None)
        elif body.peek() not in ("OWNER", "ENABLE", "DISABLE", "ATTACH", "CLUSTER", "REPLICA", "AUTO_INCREMENT",
                                 "ENGINE", "CHECK", "VALIDATE", "SET"):  # fmt: skip
            self.skip(f"ALTER TABLE {body.peek()}".strip())

    def _rename(self, table: RawTable, old: str, new: Token | None) -> None:
        if new is None or old not in table.kinds:
            return
        table.kinds = {new.name.lower() if name == old else name: kind for name, kind in table.kinds.items()}

    def _insert(self) -> None:
        while self.take_any("OR", "REPLACE", "IGNORE", "INTO", "LOW_PRIORITY", "DELAYED"):
            pass
        name = self.name()
        if name.startswith("sqlite_"):
            return
        table = self.found.tables.get(name)
        columns = self.names()
        given = tuple(one for one in (table.kinds if table else ()) if one not in table.generated)
        if self.take("OVERRIDING"):
            self.at += 2
        if table is None or not self.take_any("VALUES", "VALUE"):
            self.skip("INSERT that is not of values")
            return
        while self.peek() == "(":
            inside = Cursor(self.text, self.group(), self.found)
            values = []
            while inside.token():
                values.append(inside.until(lambda inside=inside: inside.peek() == ","))
                inside.at += 1
            names = columns or (given if len(values) == len(given) else tuple(table.kinds))
            if len(values) == len(names) and set(names) <= set(table.kinds):
                table.rows.append(dict(zip(names, values, strict=True)))
            else:
                self.skip("row of INSERT")
            self.take(",")
