"""The schema of a row: its tables as queries see them, and what their values must be."""

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

from qlora.sql.ddl import read_declarations
from qlora.sql.ddl_cursor import Declarations, RawTable
from qlora.sql.parsing import parse

from sqlglot import exp


class SchemaError(Exception):
    """The context is no schema. The message says why."""


@dataclass(frozen=True)
class Table:
    """A table. All names are in lower case, as SQL compares them.

    `columns`: name -> declared type in capitals, perhaps empty; TEXT for an enum. `declared`: name -> the type as
    written. `kinds`: name -> what the values are: integer, real, boolean, date, timestamp, time, year, interval, array,
    json, text, or "" if no type is declared. `choices`: the columns that an enum or a CHECK limits to listed values.
    `unique`: the keys that no two rows share, the primary first. `checks`: conditions that each row satisfies, unless
    they are NULL. `generated`: column -> the expression that gives its values. `spelled`: name -> as quoted in the
    schema, if that has capitals; other names have none.
    """

    name: str
    columns: dict[str, str]
    primary_key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...]
    not_null: frozenset[str]
    declared: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    choices: dict[str, tuple] = field(default_factory=dict)
    checks: tuple[exp.Expression, ...] = ()
    generated: dict[str, exp.Expression] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignKey:
    """Each value of `table.column` is NULL or occurs in `parent.parent_column`."""

    table: str
    column: str
    parent: str
    parent_column: str


@dataclass(frozen=True)
class Schema:
    """The tables and views of a row. All names are in lower case, as SQL compares them.

    `views`: name -> its query, whose outputs have the view's column names. `rows`: the rows that INSERT and COPY give,
    by table; empty without any. `enums`: type -> its values. `qualifiers`: the databases and schemas that its names may
    start with. `skipped`: kind of statement or clause -> how many were not understood.
    """

    tables: dict[str, Table]
    foreign_keys: tuple[ForeignKey, ...]
    views: dict[str, exp.Query] = field(default_factory=dict)
    rows: dict[str, list[tuple]] = field(default_factory=dict)
    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    qualifiers: frozenset[str] = frozenset()
    skipped: dict[str, int] = field(default_factory=dict)

    def columns(self) -> dict[str, dict[str, str]]:
        """Table -> column -> declared type, as `sandbox.Database` takes it."""
        return {name: table.columns for name, table in self.tables.items()}

    def only(self, names: Collection[str], columns: Collection[str] | None = None) -> "Schema":
        """The schema of some tables alone, with the foreign keys between them.

        Of their columns, it has those with the names `columns`, if given, and those of keys, CHECKs and rows.
        """
        keys = tuple(key for key in self.foreign_keys if {key.table, key.parent} <= set(names))
        tables = {name: table for name, table in self.tables.items() if name in names}
        rows = {name: rows for name, rows in self.rows.items() if name in names}
        if columns is not None:
            linked = {(key.table, key.column) for key in keys} | {(key.parent, key.parent_column) for key in keys}
            for name in tables.keys() - rows.keys():
                tables[name] = _narrow(tables[name], {*columns, *(column for table, column in linked if table == name)})
        return replace(self, tables=tables, foreign_keys=keys, rows=rows)


def _narrow(table: Table, columns: Collection[str]) -> Table:
    """The table with these columns and those that its keys and conditions need; the others are not read."""
    used = {
        column.name.lower() for one in (*table.checks, *table.generated.values()) for column in one.find_all(exp.Column)
    }
    kept = used.union(columns, table.generated, *table.unique)
    names = [name for name in table.columns if name in kept] or list(table.columns)
    parts = (
        {name: part[name] for name in names if name in part} for part in (table.columns, table.declared, table.kinds)
    )
    return replace(table, **dict(zip(("columns", "declared", "kinds"), parts, strict=True)))


@lru_cache(maxsize=512)
def read_schema(context: str, dialect: str = "sqlite") -> Schema:
    """Read the statements that create a schema, written in `dialect` or another: whatever can be read is.

    Raises SchemaError if they create no table.
    """
    found = read_declarations(context, dialect)
    if not found.tables:
        reason = "the schema creates no table"
        if "unfinished CREATE TABLE" in found.skipped:
            reason = "the schema ends within CREATE TABLE"
        raise SchemaError(reason)
    tables = {name: _table(raw, found, dialect) for name, raw in found.tables.items()}
    views = {}
    for name, (columns, text) in found.views.items():
        query = _view(columns, text, dialect)
        if query is None:
            found.skipped["CREATE VIEW"] += 1
        elif name not in tables:
            views[name] = query
    rows = {name: _rows(raw, tables[name], found) for name, raw in found.tables.items() if raw.rows}
    return Schema(
        tables, _foreign_keys(found), views, rows, found.enums, frozenset(found.qualifiers), dict(found.skipped)
    )


def _table(raw: RawTable, found: Declarations, dialect: str) -> Table:
    columns, types, kinds, choices = {}, {}, {}, {}
    for column, declared in raw.kinds.items():
        declared = re.sub(r"\[(\w+)\]", r"\1", declared) if declared.startswith("[") else declared  # SQL Server's
        declared = found.domains.get(_type_name(declared), declared)
        types[column] = " ".join(declared.split())
        columns[column] = types[column].upper()
        kinds[column] = kind_of(declared)
        listed = found.enums.get(_type_name(declared)) or _mysql_enum(declared)
        if listed:
            kinds[column], choices[column] = "text", listed
            columns[column] = "TEXT"
    checks = [tree for text in raw.checks if (tree := _expression(text, dialect)) is not None]
    found.skipped.update({"CHECK": len(raw.checks) - len(checks)} if len(checks) < len(raw.checks) else {})
    for check in checks:
        column, values = _listed(check)
        if column in columns and values and column not in choices:
            choices[column] = values
    generated = {}
    for column, text in raw.generated.items():
        tree = _expression(text, dialect)
        if tree is not None:
            generated[column] = tree
    unique = [key for key in (raw.primary_key, *raw.unique) if key and set(key) <= set(columns)]
    primary_key = raw.primary_key if set(raw.primary_key) <= set(columns) else ()
    not_null = frozenset(raw.not_null & set(columns))
    return Table(raw.name, columns, primary_key, tuple(dict.fromkeys(unique)), not_null, types, kinds, choices,
                 tuple(checks), generated, raw.spelled)  # fmt: skip


def _type_name(declared: str) -> str:
    return declared.split(".")[-1].strip(' "').lower()


_KINDS = (
    # What a type's name contains -> the kind of its values. The first that fits decides.
    (r"\[|\barray\b", "array"),
    (r"\binterval\b", "interval"),
    (r"^jsonb?\b", "json"),
    (r"bool|^bit\b(?!\s*varying)|^bit\s*\(1\)|tinyint\s*\(1\)", "boolean"),
    (r"timestamp|datetime", "timestamp"),
    (r"date", "date"),
    (r"time", "time"),
    (r"^year", "year"),
    (r"serial|\bint|int\b|int\d|integer|bigint|^oid$|rowversion", "integer"),
    (r"real|floa|doub|num|dec|money|^fixed", "real"),
)


def kind_of(declared: str) -> str:
    """The kind of a column's values (see Table) by its declared type."""
    text = declared.strip().lower()
    if not text:
        return ""
    if "point" in text or text.startswith(("enum", "set(", "set (")):
        return "text"
    return next((kind for pattern, kind in _KINDS if re.search(pattern, text)), "text")


def _mysql_enum(declared: str) -> tuple[str, ...]:
    if not declared.strip().lower().startswith("enum"):
        return ()
    return tuple(found.replace("''", "'") for found in re.findall(r"'((?:[^'\\]|''|\\.)*)'", declared))


def _expression(text: str, dialect: str) -> exp.Expression | None:
    tree = parse(f"SELECT {text}", dialect) if text else None
    return tree.selects[0] if isinstance(tree, exp.Select) and len(tree.selects) == 1 else None


def _view(columns: tuple[str, ...], text: str, dialect: str) -> exp.Query | None:
    """The query of a view, with the view's names for its outputs."""
    tree = parse(text, dialect)
    if not isinstance(tree, exp.Query):
        return None
    if columns:
        outputs = tree.selects
        if len(outputs) != len(columns) or any(output.is_star for output in outputs):
            return None
        for output, column in zip(outputs, columns, strict=True):
            output.replace(exp.alias_(output.unalias().copy(), column, quoted=True))
    return tree


def _listed(check: exp.Expression) -> tuple[str, tuple]:
    """(column, values) of a condition that a column is one of some literals; ("", ()) of any other."""
    check = check.unnest()
    if isinstance(check, exp.Or):
        parts = [_listed(part) for part in check.flatten()]
        same = {column for column, _ in parts}
        return (*same, sum((values for _, values in parts), ())) if len(same) == 1 else ("", ())
    if isinstance(check, exp.In):
        listed = check.expressions
    elif isinstance(check, exp.EQ):
        right = _bare(check.expression)
        if isinstance(right, exp.Any):
            array = _bare(right.this)
            listed = array.expressions if isinstance(array, exp.Array) else []
        else:
            listed = [right]
    else:
        return "", ()
    column = _bare(check.this)
    values = tuple(value for one in listed if (value := _literal(_bare(one))) is not None)
    if not isinstance(column, exp.Column) or len(values) < len(listed) or not values:
        return "", ()
    return column.name.lower(), values


def _bare(node: exp.Expression) -> exp.Expression:
    while isinstance(node, (exp.Paren, exp.Cast)):
        node = node.this
    return node


def _literal(node: exp.Expression) -> str | int | float | None:
    """The value of a literal as SQLite stores it, or None."""
    sign = -1 if isinstance(node, exp.Neg) else 1
    node = node.this if isinstance(node, exp.Neg) else node
    if isinstance(node, exp.Boolean):
        return int(node.this)
    if not isinstance(node, exp.Literal):
        return None
    if node.is_string:
        return node.this
    number = float(node.this)
    return sign * (int(number) if number.is_integer() and "e" not in node.this.lower() else number)


_CONSTANTS = {"NULL": None, "TRUE": 1, "FALSE": 0, "CURRENT_TIMESTAMP": "2024-07-01 12:00:00",
              "CURRENT_DATE": "2024-07-01", "NOW": "2024-07-01 12:00:00"}  # fmt: skip


def _rows(raw: RawTable, table: Table, found: Declarations) -> list[tuple]:
    """The rows of INSERT and COPY. A row with a value that is not a literal is skipped."""
    defaults = {}
    for column, tokens in raw.defaults.items():
        with suppress(ValueError):
            defaults[column] = _value(tokens, table.kinds.get(column, ""))
    counted = table.primary_key[0] if len(table.primary_key) == 1 else ""
    rows = []
    for number, row in enumerate(raw.rows, start=1):
        values = defaults | ({counted: number} if table.kinds.get(counted) == "integer" else {})
        try:
            for column, given in row.items():
                if not (isinstance(given, list) and len(given) == 1 and given[0].value == "DEFAULT"):
                    values[column] = _value(given, table.kinds[column])
        except ValueError:
            found.skipped["row of INSERT"] += 1
            continue
        rows.append(tuple(values.get(column) for column in table.columns))
    return rows


def _value(given: list | str | None, kind: str) -> str | int | float | None:
    if given is None or isinstance(given, str):
        value = given
    else:
        cut = next((index for index, token in enumerate(given) if token.text == "::"), len(given))
        tokens = [token for token in given[:cut] if token.text not in "()"]
        negative = bool(tokens) and tokens[0].text == "-"
        tokens = tokens[1:] if negative or (tokens and tokens[0].text == "+") else tokens
        if len(tokens) == 2 and tokens[0].value in ("DATE", "TIMESTAMP", "TIME"):
            tokens = tokens[1:]
        if len(tokens) != 1:
            raise ValueError("not a literal")
        token = tokens[0]
        if token.kind == "number":
            value = float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
            value = -value if negative else value
        elif token.kind == "word":
            if token.value not in _CONSTANTS:
                raise ValueError("not a literal")
            value = _CONSTANTS[token.value]
        else:
            value = token.value
    if isinstance(value, str):
        if kind == "boolean" and value.lower() in ("t", "true", "yes", "on", "1", "f", "false", "no", "off", "0"):
            return int(value.lower() in ("t", "true", "yes", "on", "1"))
        if kind == "timestamp":
            return re.sub(r"(?<=:\d\d)(\.\d+)?([+-]\d\d(:?\d\d)?|Z)?$", "", value).replace("T", " ")
        if kind in ("integer", "real", "year") and re.fullmatch(r"-?\d+(\.\d+)?", value):
            return int(value) if value.lstrip("-").isdigit() else float(value)
    return value


def _foreign_keys(found: Declarations) -> tuple[ForeignKey, ...]:
    keys = []
    for table in found.tables.values():
        for columns, parent, named in table.references:
            other = found.tables.get(parent)
            if other is None:
                continue
            for column, parent_column in zip(columns, named or other.primary_key, strict=False):
                if column in table.kinds and parent_column in other.kinds:
                    keys.append(ForeignKey(table.name, column, parent, parent_column))
    return tuple(dict.fromkeys(keys))
