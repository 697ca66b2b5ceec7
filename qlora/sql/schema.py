"""Read the declarations of CREATE TABLE statements with SQLite itself."""

import sqlite3
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import transpile
from sqlglot.errors import SqlglotError

# The actions for which SQLite asks its authorizer while it creates tables and their indexes.
_CREATING = frozenset(
    (
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_REINDEX,
        sqlite3.SQLITE_TRANSACTION,
    )
)


class SchemaError(Exception):
    """The context is no schema. The message is SQLite's."""


@dataclass(frozen=True)
class Table:
    """`columns`: name -> declared type, perhaps empty. `unique`: the keys that no two rows share, the primary first."""

    name: str
    columns: dict[str, str]
    primary_key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...]
    not_null: frozenset[str]


@dataclass(frozen=True)
class ForeignKey:
    """Each value of `table.column` is NULL or occurs in `parent.parent_column`."""

    table: str
    column: str
    parent: str
    parent_column: str


@dataclass(frozen=True)
class Schema:
    """All names are in lower case, as SQL compares them."""

    tables: dict[str, Table]
    foreign_keys: tuple[ForeignKey, ...]

    def columns(self) -> dict[str, dict[str, str]]:
        """Table -> column -> declared type, as `sandbox.Database` takes it."""
        return {name: table.columns for name, table in self.tables.items()}


@lru_cache(maxsize=512)
def read_schema(context: str, dialect: str = "sqlite") -> Schema:
    """Read CREATE TABLE statements, written in `dialect`.

    Raises SchemaError if they are not valid, do anything but create tables, or create none.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _CREATING else sqlite3.SQLITE_DENY)
    try:
        if dialect != "sqlite":
            context = ";\n".join(transpile(context, read=dialect, write="sqlite"))
        connection.executescript(context)
    except (sqlite3.Error, SqlglotError, RecursionError, ValueError) as error:
        raise SchemaError(str(error)) from None
    connection.set_authorizer(None)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = {name.lower(): _read_table(connection, name) for name in names if not name.startswith("sqlite_")}
    foreign_keys = _read_foreign_keys(connection, tables)
    connection.close()
    if not tables:
        raise SchemaError("the context creates no table")
    return Schema(tables, foreign_keys)


def _read_table(connection: sqlite3.Connection, name: str) -> Table:
    columns, key, not_null = {}, {}, set()
    for _, column, kind, required, _, position in connection.execute("SELECT * FROM pragma_table_info(?)", (name,)):
        columns[column.lower()] = kind.upper()
        if required:
            not_null.add(column.lower())
        if position:
            key[position] = column.lower()
    primary_key = tuple(key[position] for position in sorted(key))
    unique = [primary_key] if primary_key else []
    indexes = "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND origin = 'u' ORDER BY name"
    for (index,) in connection.execute(indexes, (name,)).fetchall():
        parts = connection.execute("SELECT name FROM pragma_index_info(?)", (index,)).fetchall()
        unique.append(tuple(part.lower() for (part,) in parts))
    return Table(name.lower(), columns, primary_key, tuple(unique), frozenset(not_null))


def _read_foreign_keys(connection: sqlite3.Connection, tables: dict[str, Table]) -> tuple[ForeignKey, ...]:
    found = []
    for table in tables:
        query = 'SELECT "table", "from", "to", seq FROM pragma_foreign_key_list(?) ORDER BY id, seq'
        for parent, column, parent_column, position in connection.execute(query, (table,)):
            parent, column = parent.lower(), column.lower()
            if parent in tables and parent_column is None:  # REFERENCES parent: its primary key
                key = tables[parent].primary_key
                parent_column = key[position] if position < len(key) else None
            if parent in tables and parent_column and parent_column.lower() in tables[parent].columns:
                found.append(ForeignKey(table, column, parent, parent_column.lower()))
    return tuple(dict.fromkeys(found))
