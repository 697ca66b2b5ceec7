"""Run SQL that a model wrote: read-only, in memory, bounded in steps, time and memory.

A statement is confined by SQLite's authorizer (only SELECT, only the schema's own tables, only functions of an
allow-list), by its limits and by a step budget. One C function can run for seconds within all of these; a timer then
ends the process. `confine_process` turns on this timer and the kernel's limits, in worker processes only. See "Defense
Against The Dark Arts", https://www.sqlite.org/security.html.
"""

import re
import resource
import signal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from qlora.sql.functions import AGGREGATES, FUNCTIONS, register

STATEMENT_SECONDS = 1.0
MEMORY_BYTES = 128 * 2**20
MAX_SQL_LENGTH = 20_000
MAX_CELLS = 100_000
MAX_RESULT_BYTES = 8 * 2**20
MAX_STEPS = 3_000_000
_STEPS_A_CHECK = 2_000

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_SQL_LENGTH,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 30,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 20,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

# An allow-list, because `printf('%.*c', 900000000, 'x')` alone runs for seconds without one step of SQLite's machine.
_FUNCTION_NAMES = """
    -> ->> json json_array json_array_length json_each json_extract json_group_array json_group_object json_object
    json_quote json_tree json_type json_valid
    abs avg cast ceil ceiling char coalesce concat concat_ws count cume_dist current_date current_time
    current_timestamp date datetime dense_rank first_value floor format glob group_concat hex ifnull iif instr julianday
    lag last_value lead length like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank
    pow power printf quote rank replace round row_number rtrim sign sqrt strftime string_agg substr substring sum time
    total trim trunc typeof unicode unixepoch upper
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ROW_FUNCTIONS = ("json_each", "json_tree")  # which give rows of a JSON value

# For the functions that read the clock, it always shows this time: a verdict must not depend on the day.
NOW = "2024-07-01 12:00:00"
_CLOCK_WORDS = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
_CLOCK_FUNCTIONS = ("date", "time", "datetime", "julianday", "unixepoch", "strftime")

_ERRORS = (
    # What SQLite's message contains -> error class. The first that fits decides.
    (("no such column", "no tables specified"), "unknown_column"),
    (("no such table",), "unknown_table"),
    (("no such function",), "unknown_function"),
    (("ambiguous",), "ambiguous"),
    (("interrupted",), "timeout"),
    (("malformed JSON", "JSON path error", "bad JSON path"), "data"),
    (("user-defined function raised",), "data"),  # one of `functions`: a division by zero and the like
    (("not authorized", "prohibited", "readonly"), "denied"),
    (("one statement at a time",), "several_statements"),
    (("syntax error", "unrecognized token", "incomplete input", "null character"), "syntax"),
    (("too big", "too large", "too long", "too many", "too complex", "stack overflow", "memory"), "too_large"),
)
_EXPLAIN = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*explain\b", re.IGNORECASE | re.DOTALL)
_STATEMENT = re.compile(
    r"\W*(select|with|values|explain|insert|update|delete|replace|create|drop|alter|attach|detach|pragma|vacuum|begin"
    r"|commit|end|rollback|savepoint|release|reindex|analyze)\b",
    re.IGNORECASE,
)


class QueryError(Exception):
    """A statement gave no result. `kind` is the error class (see `verdict`); the message is SQLite's."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Result:
    """The result of a query: its number of columns, `width`, and its rows in order.

    `case_matters`: whether texts that differ in case are different to the engine.
    """

    width: int
    rows: list[tuple]
    case_matters: bool = False


class Database:
    """An in-memory SQLite database of a schema, filled by this package and queried by a model.

    The tables have the schema's names and types. They have no constraints, so that no index changes the order of rows;
    the rows of `databases.Generator` satisfy these. All columns compare text without case, except in PostgreSQL's
    dialect. Queries of a `dialect` other than SQLite's are translated (`translate`), and call `functions`.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, str]], dialect: str = "sqlite"):
        """Create the tables: name -> column name -> declared type. Names must be in lower case."""
        self._tables, self._dialect = tables, dialect
        self._case_matters = dialect == "postgres"
        self._connection = connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {MEMORY_BYTES // 2}")
        for name in _CLOCK_FUNCTIONS:
            connection.create_function(name, -1, partial(_at_fixed_time, name))
        for name in ("printf", "format"):
            connection.create_function(name, -1, _format, deterministic=True)
        for name, function in _CLOCK_WORDS.items():
            connection.create_function(name, 0, partial(_at_fixed_time, function))
        collation = {"sqlite": "NOCASE", "postgres": "BINARY"}.get(dialect, "dialect")
        if dialect != "sqlite":
            register(connection, dialect)
        if self._case_matters:
            connection.execute("PRAGMA case_sensitive_like = ON")
        for table, columns in tables.items():
            declared = ", ".join(
                f"{_quoted(name)} {_quoted(kind) if kind else ''} COLLATE {collation}" for name, kind in columns.items()
            )
            connection.execute(f"CREATE TABLE {_quoted(table)} ({declared})")
        for name in _ROW_FUNCTIONS:  # the first use writes to SQLite's schema, which no query may
            connection.execute(f"SELECT value FROM {name}('[]')").fetchall()
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        self._denied = False
        self._steps = 0

    def fill(self, rows: Mapping[str, Sequence[tuple]]) -> None:
        """Replace the rows of every table, and keep their order."""
        for table, columns in self._tables.items():
            self._connection.execute(f"DELETE FROM {_quoted(table)}")
            marks = ",".join("?" * len(columns))
            self._connection.executemany(f"INSERT INTO {_quoted(table)} VALUES ({marks})", rows.get(table, ()))

    def run(self, sql: str) -> Result:
        """Run one SELECT.

        Raises QueryError for anything else, and for a query that fails or exceeds the limits above. In a confined
        process, a statement that takes more than STATEMENT_SECONDS of processor time ends the process.
        """
        self._denied, self._steps = False, 0
        if _EXPLAIN.match(sql):
            raise QueryError("not_a_query", "EXPLAIN is not a query")
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._count_steps, _STEPS_A_CHECK)
        try:
            with clock():
                return self._fetch(sql)
        # Python raises sqlite3.Warning (not an Error) for several statements, and its own errors for odd text.
        except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, UnicodeError, ValueError) as error:
            raise QueryError(self._error_class(sql, error), str(error)) from None
        finally:
            self._connection.set_authorizer(None)
            self._connection.set_progress_handler(None, 0)

    def _fetch(self, sql: str) -> Result:
        cursor = self._connection.execute(sql)
        if cursor.description is None:
            kind = "not_a_query" if _STATEMENT.match(sql) else "empty"
            raise QueryError(kind, "the statement returns nothing")
        width = len(cursor.description)
        rows, size = [], 0
        for row in cursor:
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if len(rows) * width > MAX_CELLS or size > MAX_RESULT_BYTES:
                raise QueryError("too_many_rows", f"more than {MAX_CELLS} values or {MAX_RESULT_BYTES} bytes of text")
        return Result(width, rows, self._case_matters)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        # A CTE of which no column is read appears here by its name, with an empty column.
        if action == sqlite3.SQLITE_READ and (first.lower() in (*self._tables, *_ROW_FUNCTIONS) or second == ""):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second.lower() in _FUNCTIONS or self._is_translation(second)):
            return sqlite3.SQLITE_OK
        self._denied = True
        return sqlite3.SQLITE_DENY

    def _is_translation(self, function: str) -> bool:
        return self._dialect != "sqlite" and (function in FUNCTIONS or function in AGGREGATES)

    def _count_steps(self) -> bool:
        self._steps += _STEPS_A_CHECK
        return self._steps > MAX_STEPS

    def _error_class(self, sql: str, error: Exception) -> str:
        if self._denied:
            return "denied"
        if isinstance(error, MemoryError):
            return "too_large"
        message = str(error)
        for parts, kind in _ERRORS:
            if any(part in message for part in parts):
                if self._dialect != "sqlite" and kind in ("syntax", "unknown_function"):
                    return "untranslated"  # the query is one of the dialect: what SQLite lacks is not its fault
                return "not_a_query" if kind == "syntax" and not _STATEMENT.match(sql) else kind
        return "syntax" if isinstance(error, (UnicodeError, ValueError)) else "invalid"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _at_fixed_time(name: str, *arguments: object) -> object:
    """SQLite's date function `name` with its clock stopped at `NOW`."""
    position = 1 if name == "strftime" else 0
    values = list(arguments) if len(arguments) > position else [*arguments, NOW]
    if str(values[position]).lower() == "now":
        values[position] = NOW
    if any(str(value).lower() in ("localtime", "utc") for value in values):
        raise ValueError("time zones are not available")
    return _clock_connection().execute(f"SELECT {name}({','.join('?' * len(values))})", values).fetchone()[0]


_DIRECTIVE = re.compile(r"%([-+ 0,#]*)(\d*)(?:\.(\d+))?(?:ll|l)?([diufeEgGsxXoc%])|%")


def _format(pattern: str | None, *values: object) -> str | None:
    """SQLite's printf, without the widths that make it run for seconds, and those given as arguments."""
    if pattern is None:
        return None
    rest = iter(values)

    def written(found: re.Match) -> str:
        flags, width, precision, kind = found.groups()
        if kind is None or int(width or 0) > 100 or int(precision or 0) > 30:
            raise ValueError("printf with this directive is not available")
        if kind == "%":
            return "%"
        value = next(rest, None)
        plain = flags.replace(",", "").replace("#", "")
        directive = f"%{plain}{width}" + (f".{precision}" if precision else "")
        if kind in "sc":
            text = "" if value is None else str(value)
            return (directive + "s") % (text[:1] if kind == "c" else text)
        number = float(value) if isinstance(value, (int, float)) else _leading_number(value)
        if kind not in "diuxXo":
            return (directive + kind) % number
        text = (directive + ("d" if kind in "iu" else kind)) % int(number)
        return f"{int(number):,d}".rjust(int(width or 0)) if "," in flags else text

    return _DIRECTIVE.sub(written, str(pattern))


def _leading_number(value: object) -> float:
    found = re.match(r"\s*[-+]?\d+(\.\d+)?", str(value))
    return float(found[0]) if found else 0.0


@lru_cache(maxsize=1)
def _clock_connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


_confined = False


def confine_process(memory: int = MEMORY_BYTES) -> None:
    """Set the kernel's limits for this process, for good: no file is written, at most `memory` bytes are added.

    For worker processes only: a limit may end the process, that of `clock` by SIGPROF.
    """
    global _confined
    _confined = True
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    size = Path("/proc/self/statm")  # Linux; elsewhere there is SQLite's own limit alone
    if size.exists():
        limit = int(size.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def clock() -> Iterator[None]:
    """In a confined process, end the process if the code inside takes more than STATEMENT_SECONDS of processor time."""
    if not _confined:
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, STATEMENT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
