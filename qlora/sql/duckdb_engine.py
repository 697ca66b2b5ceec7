"""Run queries on DuckDB, embedded in the worker: it may reach no file, no network and no setting."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Timer
from typing import TYPE_CHECKING

from qlora.sql import servers
from qlora.sql.sandbox import MAX_CELLS, MAX_RESULT_BYTES, STATEMENT_SECONDS, QueryError, Result
from qlora.sql.schema import Schema, Table

if TYPE_CHECKING:
    import duckdb

# The name of DuckDB's error, and what its message contains -> error class.
_ERRORS = (
    ("Parser", "", "syntax"),
    ("Catalog", "Table with name", "unknown_table"),
    ("Catalog", "Function with name", "unknown_function"),
    ("Binder", "Ambiguous", "ambiguous"),
    ("Binder", "column", "unknown_column"),
    ("Permission", "", "denied"),
    ("InvalidInput", "disabled", "denied"),
    ("Interrupt", "", "timeout"),
    ("OutOfMemory", "", "too_large"),
)


# Databases that are no longer in use, with their schemas: to make one takes longer than to fill it again.
_FREE: list[tuple[Schema, "duckdb.DuckDBPyConnection"]] = []
_MOST_FREE = 64


class DuckdbDatabase:
    """A database in memory, with the methods of `sandbox.Database`."""

    def __init__(self, schema: Schema):
        self.schema = schema
        free = next((index for index, (other, _) in enumerate(_FREE) if other is schema), None)
        self.connection = self._make() if free is None else _FREE.pop(free)[1]

    def __del__(self):
        _FREE.append((self.schema, self.connection))
        del _FREE[:-_MOST_FREE]

    def _make(self) -> "duckdb.DuckDBPyConnection":
        duckdb = servers.driver("duckdb")
        connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "256MB"})
        for enum, values in self.schema.enums.items():
            listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
            connection.execute(f'CREATE TYPE "{enum}" AS ENUM ({listed})')
        for table in self.schema.tables.values():
            columns = ", ".join(f"{_name(table, one)} {_type(table, one, self.schema)}" for one in table.columns)
            connection.execute(f"CREATE TABLE {_name(table)} ({columns})")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET max_temp_directory_size = '0KB'")
        connection.execute("SET lock_configuration = true")
        return connection

    def fill(self, rows: Mapping[str, Sequence[tuple]]) -> None:
        """Replace the rows of every table. Rows that the column types do not take are left out."""
        duckdb = servers.driver("duckdb")
        for table in self.schema.tables.values():
            self.connection.execute(f"DELETE FROM {_name(table)}")
            types = (list(table.kinds.values()), list(table.declared.values()))
            given = [tuple(map(servers.stored, row, *types)) for row in rows.get(table.name, ())]
            marks = f"({','.join('?' * len(table.columns))})"
            insert = f"INSERT INTO {_name(table)} VALUES "
            try:
                if given:
                    self.connection.execute(
                        insert + ",".join([marks] * len(given)), [one for row in given for one in row]
                    )
            except duckdb.Error:
                for row in given:
                    with suppress(duckdb.Error):
                        self.connection.execute(insert + marks, row)
            for column, tree in table.generated.items():
                with suppress(duckdb.Error):
                    self.connection.execute(f"UPDATE {_name(table)} SET {_name(table, column)} = {tree.sql('duckdb')}")

    def run(self, sql: str) -> Result:
        """Run one SELECT. Raises QueryError as `sandbox.Database.run` does."""
        duckdb = servers.driver("duckdb")
        timer = Timer(STATEMENT_SECONDS, self.connection.interrupt)
        timer.start()
        try:
            found = duckdb.extract_statements(sql)
            if len(found) != 1:
                raise QueryError("several_statements" if found else "empty", f"{len(found)} statements")
            if found[0].type != duckdb.StatementType.SELECT:
                raise QueryError("not_a_query", f"{found[0].type} is not a query")
            self.connection.execute("BEGIN TRANSACTION READ ONLY")  # WITH may hold a DELETE
            cursor = self.connection.execute(found[0])
            width, rows, size = len(cursor.description), [], 0
            while batch := cursor.fetchmany(1000):
                rows += [tuple(map(servers.plain, row)) for row in batch]
                size += sum(len(value) for row in batch for value in row if isinstance(value, (str, bytes)))
                if len(rows) * width > MAX_CELLS or size > MAX_RESULT_BYTES:
                    raise QueryError("too_many_rows", f"more than {MAX_CELLS} values")
            return Result(width, rows, case_matters=True)
        except (duckdb.Error, RuntimeError, UnicodeError, ValueError) as error:
            name, message = type(error).__name__, str(error)
            kinds = (kind for start, part, kind in _ERRORS if name.startswith(start) and part in message)
            raise QueryError(next(kinds, "invalid"), message.split("\n")[0]) from None
        finally:
            timer.cancel()
            with suppress(duckdb.Error):
                self.connection.execute("ROLLBACK")


def _type(table: Table, column: str, schema: Schema) -> str:
    return servers.column_type(table, column, "duckdb", schema.enums)


def _name(table: Table, column: str | None = None) -> str:
    """The quoted name of a table or column, as the schema spells it."""
    name = column or table.name
    return '"' + table.spelled.get(name, name).replace('"', '""') + '"'
