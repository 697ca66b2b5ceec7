"""Run queries on a MySQL or MariaDB server.

Each worker makes a user and, for each set of rows, a database that this user can only read. The user has no global
rights: no FILE, so nothing is read from or written to disk.
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
    import pymysql

# Error class -> the server's error numbers. See "Server Error Message Reference" in MySQL's manual.
_NUMBERS = {
    "unknown_table": (1046, 1049, 1109, 1146),
    "unknown_column": (1054,),
    "unknown_function": (1128, 1305, 1370, 1630),  # 1370: the server looks for a routine of the row's database
    "ambiguous": (1052,),
    "syntax": (1064,),
    "timeout": (1317, 1969, 3024),
    "denied": (1044, 1045, 1142, 1143, 1227, 1290, 1792, 3159),
}
_ERRORS = {number: kind for kind, numbers in _NUMBERS.items() for number in numbers}
_HOSTS = ("localhost", "127.0.0.1", "::1")
_READS = re.compile(r"[\s(]*(select|with|values|table)\b", re.IGNORECASE)
_WRITES = re.compile(r"\binto\s+(out|dump)file\b", re.IGNORECASE)


def connect(**changed: object) -> "pymysql.Connection":
    """A connection of the server's owner, or with `changed` settings. Raises Refusal if there is none to be had."""
    pymysql = servers.driver("mysql")
    place = servers.address("mysql")
    place.pop("database")
    try:
        return pymysql.connect(**{**place, **changed}, charset="utf8mb4", autocommit=True, connect_timeout=5)
    except pymysql.MySQLError as error:
        raise Refusal(
            f"the MySQL server that QLORA_MYSQL names ({place['host']}:{place['port']}) cannot be used "
            f"({error.args[-1]}): start it, or correct the address"
        ) from None


def start_run() -> str:
    """A name for the run, after dropping what ended runs have left. Raises Refusal."""
    pymysql = servers.driver("mysql")
    run = servers.new_run()
    owner = connect()
    with owner.cursor() as cursor:
        try:
            cursor.execute("SELECT user FROM mysql.user WHERE user LIKE 'qlora%'")
            cursor.execute(f"CREATE USER '{run}_'@'127.0.0.1'")
            cursor.execute(f"CREATE DATABASE {run}_")
        except pymysql.MySQLError as error:
            raise Refusal(
                f"the user that QLORA_MYSQL names may not make databases and users ({error.args[-1]}): "
                "GRANT ALL ON *.* TO it WITH GRANT OPTION, or name another"
            ) from None
        for name in _made(cursor, servers.PREFIX):
            if servers.is_abandoned(name):
                end_run(re.match(r"[^_]+_\d+_[0-9a-f]+", name)[0])
    owner.close()
    return run


def end_run(run: str) -> None:
    """Drop the databases and users of a run."""
    owner = connect()
    with owner.cursor() as cursor:
        for name in _made(cursor, run):
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")
            for host in _HOSTS:
                cursor.execute(f"DROP USER IF EXISTS '{name}'@'{host}'")
    owner.close()


def _made(cursor: "pymysql.cursors.Cursor", start: str) -> list[str]:
    query = "SELECT user FROM mysql.user UNION SELECT schema_name FROM information_schema.schemata"
    cursor.execute(query)
    return [name for (name,) in cursor.fetchall() if name.startswith(start)]


class Session:
    """The connections of one worker: of the owner, who fills tables, and of the user that runs queries."""

    def __init__(self, run: str):
        self.name = f"{run}_{os.getpid()}"
        self.password = password = servers.secrets.token_hex(16)
        self.owner = connect()
        pattern = f"{self.name}_%".replace("_", r"\_")  # the databases of the row that is judged
        for host in _HOSTS:
            self._execute(f"CREATE USER IF NOT EXISTS '{self.name}'@'{host}' IDENTIFIED BY '{password}'")
            self._execute(f"GRANT SELECT ON `{pattern}`.* TO '{self.name}'@'{host}'")
        self._execute("SET SESSION sql_log_bin = 0", optional=True)
        self.reader = connect(user=self.name, password=password)
        with self.reader.cursor() as cursor:
            self.modes = cursor.execute("SELECT @@sql_mode") and cursor.fetchone()[0]
            self.is_mariadb = "mariadb" in self.reader.get_server_info().lower()
        self.shells = servers.Shells()
        self.made: list[str] = []
        self.count = 0

    def _execute(self, sql: str, *, optional: bool = False) -> None:
        pymysql = servers.driver("mysql")
        with self.owner.cursor() as cursor, suppress(*([pymysql.MySQLError] if optional else [])):
            cursor.execute(sql)

    def open_reader(self) -> "pymysql.Connection":
        """The connection that runs queries; a new one after a result that was too large to be read to its end."""
        if not self.reader.open:
            self.reader = connect(user=self.name, password=self.password)
        return self.reader

    def acquire(self, schema: Schema) -> str:
        """The name of a database with the tables of `schema`."""
        if name := self.shells.take(schema):
            return name
        self.count += 1
        name = f"{self.name}_{self.count}"
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        self.made.append(name)
        for table in schema.tables.values():
            columns = [
                f"{_name(table, column)} {servers.column_type(table, column, 'mysql', {})}" for column in table.columns
            ]
            if table.primary_key:
                columns.append(f"PRIMARY KEY ({', '.join(_name(table, column) for column in table.primary_key)})")
            self._execute(f"CREATE TABLE `{name}`.{_name(table)} ({', '.join(columns)})")
        return name

    def clear(self) -> None:
        """Drop all databases: the row is done."""
        for name in self.made:
            self._execute(f"DROP DATABASE `{name}`")
        self.made = []
        self.shells.clear()

    def close(self) -> None:
        self.reader.close()
        self.owner.close()


class MysqlDatabase:
    """A database on the server, with the methods of `sandbox.Database`."""

    def __init__(self, session: Session, schema: Schema):
        self.session, self.schema = session, schema
        self.name = session.acquire(schema)

    def __del__(self):
        self.session.shells.give(self.schema, self.name)

    def fill(self, rows: Mapping[str, Sequence[tuple]]) -> None:
        """Replace the rows of every table. Rows that the column types do not take are left out."""
        pymysql = servers.driver("mysql")
        with self.session.owner.cursor() as cursor:
            for table in self.schema.tables.values():
                target = f"`{self.name}`.{_name(table)}"
                cursor.execute(f"DELETE FROM {target}")
                types = (list(table.kinds.values()), list(table.declared.values()))
                given = [tuple(map(servers.stored, row, *types)) for row in rows.get(table.name, ())]
                insert = f"INSERT INTO {target} VALUES ({','.join(['%s'] * len(table.columns))})"
                self.session.owner.begin()
                try:
                    cursor.executemany(insert, given)
                except pymysql.MySQLError:
                    self.session.owner.rollback()
                    for row in given:
                        with suppress(pymysql.MySQLError):
                            cursor.execute(insert, row)
                self.session.owner.commit()
                for column, tree in table.generated.items():
                    with suppress(pymysql.MySQLError):
                        cursor.execute(f"UPDATE {target} SET {_name(table, column)} = {tree.sql('mysql')}")

    def run(self, sql: str) -> Result:
        """Run one SELECT. Raises QueryError as `sandbox.Database.run` does."""
        pymysql = servers.driver("mysql")
        if not _READS.match(re.sub(r"/\*.*?\*/|--[^\n]*\n|#[^\n]*\n", " ", sql, flags=re.DOTALL)):
            raise QueryError("not_a_query", "only SELECT, WITH, VALUES and TABLE are run")
        if _WRITES.search(sql):
            raise QueryError("denied", "INTO OUTFILE writes a file")
        limit = STATEMENT_SECONDS
        reader = self.session.open_reader()
        try:
            reader.select_db(self.name)
            with reader.cursor(pymysql.cursors.SSCursor) as cursor:
                timeout = (
                    f"max_statement_time = {limit}" if self.session.is_mariadb
                    else f"max_execution_time = {int(1000 * limit)}"
                )  # fmt: skip
                stamp = int(servers.NOW.timestamp())
                cursor.execute(
                    f"SET SESSION {timeout}, sql_mode = '{self.session.modes}', time_zone = '+00:00', "
                    f"timestamp = {stamp}, group_concat_max_len = 100000"
                )
                cursor.execute("START TRANSACTION READ ONLY")
                cursor.execute(sql)
                if cursor.description is None:
                    raise QueryError("not_a_query", "the statement returns nothing")
                width, rows, size = len(cursor.description), [], 0
                for row in cursor:
                    rows.append(tuple(map(servers.plain, row)))
                    size += sum(len(value) for value in rows[-1] if isinstance(value, (str, bytes)))
                    if len(rows) * width > MAX_CELLS or size > MAX_RESULT_BYTES:
                        reader.close()  # rather than to read the rest
                        raise QueryError("too_many_rows", f"more than {MAX_CELLS} values")
            return Result(width, rows)
        except pymysql.MySQLError as error:
            number = error.args[0] if error.args else 0
            raise QueryError(_ERRORS.get(number, "invalid"), str(error.args[-1])) from None
        except (UnicodeError, ValueError) as error:
            raise QueryError("syntax", str(error)) from None
        finally:
            if reader.open:
                with suppress(pymysql.MySQLError):
                    reader.rollback()


def _name(table: Table, column: str | None = None) -> str:
    """The quoted name of a table or column, as the schema spells it."""
    name = column or table.name
    return "`" + table.spelled.get(name, name).replace("`", "``") + "`"
