"""What the engines other than SQLite share: the servers' addresses, their results as values of SQLite's, the clock.

A server runs on this machine; an environment variable names it. A run makes one database on it, with a role for each
worker that can only read the tables of the row that the worker judges, and drops both at its end.
"""

import importlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from qlora.runtime.console import Refusal
from qlora.sql.parsing import parse
from qlora.sql.schema import Schema, Table

from sqlglot import exp

VARIABLES = {"postgres": "QLORA_POSTGRES", "mysql": "QLORA_MYSQL"}
_EXAMPLES = {
    "postgres": "postgresql://admin:password@127.0.0.1:5432/postgres",
    "mysql": "mysql://root:password@127.0.0.1:3306",
}
DRIVERS = {"postgres": "psycopg", "mysql": "pymysql", "duckdb": "duckdb"}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
PREFIX = "qlora"

NOW = datetime(2024, 7, 1, 12)
_CLOCK = {
    exp.CurrentDate: "CAST('2024-07-01' AS DATE)",
    exp.CurrentTimestamp: "CAST('2024-07-01 12:00:00' AS TIMESTAMP)",
    exp.CurrentDatetime: "CAST('2024-07-01 12:00:00' AS TIMESTAMP)",
    exp.CurrentTime: "CAST('12:00:00' AS TIME)",
}

# Functions of servers that read or change something else than the tables. A role without rights could not call most of
# them; this is one more line of defence, and stops those that sleep, lock or change the session.
_FORBIDDEN = re.compile(
    r"pg_(?!typeof|input).*|lo_.*|loread|lowrite|dblink.*|set_config|current_setting|setseed|query_to_xml.*"
    r"|database_to_xml.*|table_to_xml.*|schema_to_xml.*|cursor_to_xml.*|currval|nextval|setval|lastval|inet_(client|server).*"
    r"|load_file|sleep|benchmark|get_lock|release_lock.*|is_free_lock|is_used_lock|master_.*|sys_.*|uuid_short"
    r"|read_.*|parquet_.*|sniff_csv|glob|getenv|.*_scan|duckdb_.*|pragma_.*|version|user|database|random|rand|uuid"
    r"|gen_random_uuid|clock_timestamp|statement_timestamp|timeofday|txid_.*|xmlparse|ts_stat",
    re.IGNORECASE,
)


def driver(engine: str) -> ModuleType:
    """The Python package that talks to the engine. Raises Refusal if it is not installed."""
    try:
        return importlib.import_module(DRIVERS[engine])
    except ImportError:
        raise Refusal(
            f"evaluate.engine {engine} needs the package {DRIVERS[engine]}, which is not installed: "
            "run `make sql-engines`, or choose evaluate.engine: sqlite"
        ) from None


def address(engine: str) -> dict:
    """Host, port, user, password and database of the server, from the environment. Raises Refusal."""
    variable = VARIABLES[engine]
    given = os.environ.get(variable, "")
    if not given:
        raise Refusal(
            f"evaluate.engine {engine} needs a server on this machine: set {variable} to its address, such as "
            f"{_EXAMPLES[engine]}"
        )
    parts = urlsplit(given)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("postgres", "postgresql", "mysql", "mariadb") or not parts.hostname:
        raise Refusal(f"{variable} is no address of a server: write it as {_EXAMPLES[engine]}")
    if parts.hostname not in _LOOPBACK:
        raise Refusal(
            f"{variable} names {parts.hostname}, and queries of a model run only on a server of this machine "
            "(127.0.0.1): start one, or forward a port to it"
        )
    return {
        "host": parts.hostname,
        "port": port or (5432 if engine == "postgres" else 3306),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.strip("/"),
    }


class Shells:
    """Places with empty tables that are not in use, by schema: to fill one takes less time than to make one."""

    def __init__(self):
        self.free: dict[
            int, tuple[Schema, list]
        ] = {}  # id of a schema -> it, so that no other takes its id; its places

    def take(self, schema: Schema) -> object | None:
        """A free place with the tables of `schema`, or None."""
        _, places = self.free.setdefault(id(schema), (schema, []))
        return places.pop() if places else None

    def give(self, schema: Schema, place: object) -> None:
        """Keep a place for the next of the schema, unless `clear` was called since it was made."""
        if self.free.get(id(schema), (None,))[0] is schema:
            self.free[id(schema)][1].append(place)

    def clear(self) -> None:
        self.free = {}


def new_run() -> str:
    """A name for what a run makes on a server, with the process that owns it."""
    return f"{PREFIX}_{os.getpid()}_{secrets.token_hex(3)}"


def is_abandoned(name: str) -> bool:
    """Whether `name` is that of an earlier run whose process has ended."""
    found = re.fullmatch(rf"{PREFIX}_(\d+)_[0-9a-f]{{6}}(_\w+)?", name)
    if not found:
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(int(found[1]), 0)
        return False
    return not Path(f"/proc/{found[1]}").exists()


def forbidden(tree: exp.Expression | None) -> str | None:
    """The name of a function in the query that no query may call, or None."""
    for node in tree.find_all(exp.Func) if tree is not None else ():
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        if isinstance(node, exp.Anonymous) and _FORBIDDEN.fullmatch(name):
            return name
    return None


def reads_clock(tree: exp.Expression) -> bool:
    """Whether the result of the query depends on the time at which it runs."""
    return tree.find(*_CLOCK) is not None


def stop_clock(tree: exp.Expression, dialect: str) -> exp.Expression:
    """The query with constants for the current date and time: a verdict must not depend on the day."""
    if not reads_clock(tree):
        return tree
    constants = {kind: parse(f"SELECT {text}", dialect).selects[0] for kind, text in _CLOCK.items()}
    return tree.transform(lambda node: constants[type(node)].copy() if type(node) in constants else node)


def plain(value: object) -> object:
    """A value of a server's result as SQLite would have it: number, text, bytes or None."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, datetime):
        value = value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(None).replace(tzinfo=None)
        return value.isoformat(" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())  # a TIME of MySQL's
        return f"{'-' * (seconds < 0)}{abs(seconds) // 3600:02}:{abs(seconds) // 60 % 60:02}:{abs(seconds) % 60:02}"
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(str(plain(one)) for one in value) + "}"
    if isinstance(value, (memoryview, bytearray)):
        return bytes(value)
    if value is None or isinstance(value, (int, float, str, bytes)):
        return value
    return str(value)


# Kind of a column -> its type on the engine; "" where the declared type matters.
_TYPES = {
    "postgres": {"integer": "integer", "year": "bigint", "boolean": "boolean", "date": "date", "time": "time",
                 "interval": "interval", "text": "text", "": "text", "array": "text[]", "timestamp": "timestamp",
                 "real": "double precision", "json": "jsonb"},
    "mysql": {"integer": "bigint", "year": "int", "boolean": "tinyint(1)", "date": "date", "time": "time",
              "interval": "varchar(255)", "text": "varchar(255)", "": "varchar(255)", "array": "varchar(255)",
              "timestamp": "datetime", "real": "double", "json": "json"},
    "duckdb": {"integer": "bigint", "year": "bigint", "boolean": "boolean", "date": "date", "time": "time",
               "interval": "interval", "text": "text", "": "text", "array": "text[]", "timestamp": "timestamp",
               "real": "double", "json": "json"},
}  # fmt: skip
# Declared types whose rules differ from those of the plain type of their kind: rounding, time zones, comparisons.
_KEPT = re.compile(
    r"(numeric|decimal|real|float4?)\b[\s\d(,)]*|timestamp.* with time zone|timestamptz|uuid|jsonb?|citext"
    r"|.*\[\]|enum\b.*",
    re.IGNORECASE,
)


def column_type(table: Table, column: str, engine: str, enums: Mapping[str, object]) -> str:
    """The type of a column on the engine. Lengths are left out: a made-up text may be longer."""
    declared = table.declared.get(column, "")
    name = declared.split(".")[-1].strip('"').lower()
    if engine == "postgres" and name in ("bigint", "int8", "bigserial", "serial8"):
        return "bigint"  # whose SUM is numeric
    if name in enums or _KEPT.fullmatch(declared):
        return name if name in enums else declared
    unsigned = " unsigned" if engine == "mysql" and "unsigned" in name and table.kinds[column] == "integer" else ""
    return _TYPES[engine][table.kinds.get(column, "")] + unsigned


def stored(value: object, kind: str, declared: str) -> object:
    """`value` as a server takes it in a column of that kind and type; None if there is no such value."""
    name = declared.lower()
    if value is None:
        return None
    if kind == "boolean":
        return bool(value) if isinstance(value, (int, float)) else str(value).lower() in ("t", "true", "1", "yes")
    if kind in ("integer", "year", "real"):
        with suppress(ValueError):
            return float(value) if kind == "real" else int(float(value))
        return None
    if kind in ("date", "timestamp"):
        with suppress(ValueError):
            moment = datetime.fromisoformat(str(value))
            return str(moment.date() if kind == "date" else moment)
        return None
    if kind == "array":
        return value if str(value).startswith("{") else "{" + str(value) + "}"
    if name == "uuid":
        with suppress(ValueError):
            return str(UUID(str(value)))
        return str(uuid5(NAMESPACE_URL, str(value)))
    if name.startswith("json"):
        with suppress(ValueError):
            json.loads(str(value))
            return str(value)
        return json.dumps(str(value))
    return str(value)
