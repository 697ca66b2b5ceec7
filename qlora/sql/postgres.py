"""Run queries on a PostgreSQL server.

The run's owner makes a database, and each worker makes a role and, for each set of rows, a schema in it. The worker
runs queries as its role, over a connection of that role, in a read-only transaction, through a cursor: PostgreSQL opens
cursors for SELECT and VALUES only.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from qlora.runtime.console import Refusal
from qlora.sql import servers
from qlora.sql.sandbox import MAX_CELLS, MAX_RESULT_BYTES, STATEMENT_SECONDS, QueryError, Result
from qlora.sql.schema import Schema, Table

if TYPE_CHECKING:
    import psycopg

_ERRORS = (
    # The start of an SQLSTATE -> error class. See "PostgreSQL Error Codes" in its manual.
    ("42P01", "unknown_table"),
    ("3F000", "unknown_table"),
    ("42703", "unknown_column"),
    ("42883", "unknown_function"),
    ("42702", "ambiguous"),
    ("42725", "ambiguous"),
    ("42601", "syntax"),
    ("42501", "denied"),
    ("25006", "denied"),
    ("0A000", "invalid"),
    ("57014", "timeout"),
    ("22012", "data"),  # division by zero
    ("2201", "data"),  # the logarithm of a negative number and the like
    ("22003", "data"),  # out of range
    ("21000", "data"),  # several rows of a subquery for one value
    ("53", "too_large"),
    ("54", "too_large"),
)
_AS_TEXT = ("date", "timestamp", "time", "timetz", "interval", "json", "jsonb", "uuid", "inet", "bpchar")


def connect(database: str | None = None, **changed: object) -> "psycopg.Connection":
    """A connection of the server's owner, or with `changed` settings. Raises Refusal if there is none to be had."""
    psycopg = servers.driver("postgres")
    place = servers.address("postgres")
    place["dbname"] = database or place.pop("database") or "postgres"
    place.pop("database", None)
    try:
        return psycopg.connect(**{**place, **changed}, autocommit=True, connect_timeout=5, options="-c TimeZone=UTC")
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())[:120]
        raise Refusal(
            f"the PostgreSQL server that QLORA_POSTGRES names ({place['host']}:{place['port']}) cannot be used "
            f"({reason}): start it, or correct the address"
        ) from None


def start_run() -> str:
    """Make the run's database, and drop what ended runs have left. Returns its name. Raises Refusal."""
    psycopg = servers.driver("postgres")
    run = servers.new_run()
    with connect() as owner:
        for (name,) in owner.execute("SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles").fetchall():
            if servers.is_abandoned(name):
                with suppress(psycopg.Error):
                    end_run(re.match(r"[^_]+_\d+_[0-9a-f]+", name)[0])
        try:
            if not owner.execute(
                "SELECT 1 FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolcreaterole AND rolcreatedb)"
            ).fetchone():
                raise Refusal(
                    "the role that QLORA_POSTGRES names may not make databases and roles: "
                    "ALTER ROLE its_name CREATEDB CREATEROLE"
                )
            # Text sorts by code points, as in SQLite: another locale's order would decide MIN and ORDER BY.
            owner.execute(f"CREATE DATABASE {run} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'")
        except psycopg.Error as error:
            raise Refusal(f"PostgreSQL makes no database for this run ({str(error).splitlines()[0]})") from None
    with connect(run) as owner:
        owner.execute(f"REVOKE TEMPORARY ON DATABASE {run} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    return run


def end_run(run: str) -> None:
    """Drop the database and the roles of a run."""
    with connect() as owner:
        owner.execute(f"DROP DATABASE IF EXISTS {run} WITH (FORCE)")
        for (role,) in owner.execute("SELECT rolname FROM pg_roles WHERE rolname ~ %s", (f"^{run}_",)).fetchall():
            owner.execute(f"DROP ROLE IF EXISTS {role}")


class Session:
    """The connections of one worker: of the owner, who fills tables, and of the role that runs queries."""

    def __init__(self, run: str):
        psycopg = servers.driver("postgres")
        self.role = f"{run}_{os.getpid()}"
        password = servers.secrets.token_hex(16)
        self.owner = connect(run)
        self.owner.execute("SET synchronous_commit = off")
        self.owner.execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{password}' NOINHERIT")
        self.reader = connect(run, user=self.role, password=password)
        self.reader.autocommit = False

        class Utc(psycopg.types.string.TextLoader):
            def load(self, data: bytes) -> str:
                return super().load(data).removesuffix("+00")  # the session's time zone

        self.reader.adapters.register_loader("timestamptz", Utc)
        for name in _AS_TEXT:
            self.reader.adapters.register_loader(name, psycopg.types.string.TextLoader)
        self.shells = servers.Shells()
        self.schemas: list[str] = []
        self.count = 0

    def acquire(self, schema: Schema) -> str:
        """The name of a schema on the server with the tables of `schema`."""
        if name := self.shells.take(schema):
            return name
        self.count += 1
        name = f"row_{os.getpid()}_{self.count}"
        self.owner.execute(f"CREATE SCHEMA {name}; GRANT USAGE ON SCHEMA {name} TO {self.role}")
        self.schemas.append(name)
        self.owner.execute(f"SET search_path = {name}")
        for enum, values in schema.enums.items():
            listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
            self.owner.execute(f'CREATE TYPE "{enum}" AS ENUM ({listed})')
        for table in schema.tables.values():
            columns = [
                f"{_name(table, column)} {servers.column_type(table, column, 'postgres', schema.enums)}"
                for column in table.columns
            ]
            if table.primary_key:  # a query that groups by it may show the other columns
                columns.append(f"PRIMARY KEY ({', '.join(_name(table, column) for column in table.primary_key)})")
            self.owner.execute(
                f"CREATE UNLOGGED TABLE {_name(table)} ({', '.join(columns)});"
                f"GRANT SELECT ON {_name(table)} TO {self.role}"
            )
        return name

    def close(self) -> None:
        self.reader.close()
        self.owner.close()

    def clear(self) -> None:
        """Drop all schemas: the row is done."""
        for name in self.schemas:
            self.owner.execute(f"DROP SCHEMA {name} CASCADE")
        self.schemas = []
        self.shells.clear()


class PostgresDatabase:
    """A schema on the server, with the methods of `sandbox.Database`."""

    def __init__(self, session: Session, schema: Schema):
        self.session, self.schema = session, schema
        self.name = session.acquire(schema)

    def __del__(self):
        self.session.shells.give(self.schema, self.name)

    def fill(self, rows: Mapping[str, Sequence[tuple]]) -> None:
        """Replace the rows of every table. Rows that the column types do not take are left out."""
        psycopg = servers.driver("postgres")
        owner = self.session.owner
        owner.execute(f"SET search_path = {self.name}")
        for table in self.schema.tables.values():
            target = _name(table)
            owner.execute(f"DELETE FROM {target}")
            types = (list(table.kinds.values()), list(table.declared.values()))
            given = [tuple(map(servers.stored, row, *types)) for row in rows.get(table.name, ())]
            if not given:
                continue
            marks = ",".join(["%s"] * len(table.columns))
            try:
                with owner.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
                    for row in given:
                        copy.write_row(row)
            except psycopg.Error:
                for row in given:
                    with suppress(psycopg.Error):
                        owner.execute(f"INSERT INTO {target} VALUES ({marks})", row)
            for column, tree in table.generated.items():
                with suppress(psycopg.Error):
                    owner.execute(f"UPDATE {target} SET {_name(table, column)} = {tree.sql('postgres')}")

    def run(self, sql: str) -> Result:
        """Run one SELECT. Raises QueryError as `sandbox.Database.run` does."""
        psycopg = servers.driver("postgres")
        reader = self.session.reader
        try:
            reader.execute("ROLLBACK")
            reader.execute("BEGIN READ ONLY")
            reader.execute(
                f"SET LOCAL search_path = {self.name}; SET LOCAL statement_timeout = {int(1000 * STATEMENT_SECONDS)};"
                "SET LOCAL work_mem = '16MB'; SET LOCAL max_parallel_workers_per_gather = 0"
            )
            # A statement with a prepared form is one statement: what follows a semicolon is a syntax error.
            reader.execute(
                b"DECLARE answer NO SCROLL CURSOR FOR " + sql.encode().strip().rstrip(b"; \n\t"), prepare=True
            )
            cursor = reader.execute("FETCH 1000 FROM answer")
            width, rows, size = len(cursor.description), [], 0
            while batch := cursor.fetchall():
                rows += [tuple(map(servers.plain, row)) for row in batch]
                size += sum(len(value) for row in batch for value in row if isinstance(value, (str, bytes)))
                if len(rows) * width > MAX_CELLS or size > MAX_RESULT_BYTES:
                    raise QueryError("too_many_rows", f"more than {MAX_CELLS} values")
                cursor = reader.execute("FETCH 1000 FROM answer")
            return Result(width, rows, case_matters=True)
        except psycopg.Error as error:
            state = error.sqlstate or ""
            kind = next((kind for start, kind in _ERRORS if state.startswith(start)), "invalid")
            message = str(error).splitlines()[0]
            if kind == "unknown_function" and "operator" in message:
                kind = "invalid"
            if "multiple commands" in message:
                kind = "several_statements"
            raise QueryError(kind, message) from None
        except UnicodeError as error:
            raise QueryError("syntax", str(error)) from None
        finally:
            with suppress(psycopg.Error):
                reader.execute("ROLLBACK")


def _name(table: Table, column: str | None = None) -> str:
    """The quoted name of a table or column, as the schema spells it."""
    name = column or table.name
    return '"' + table.spelled.get(name, name).replace('"', '""') + '"'
