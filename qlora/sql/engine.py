"""The engine that runs the queries of a row, and the dialect in which these are written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from qlora.sql import duckdb_engine, mysql, postgres, refusals, servers
from qlora.sql.parsing import parse
from qlora.sql.queries import plain_strings
from qlora.sql.sandbox import Database, QueryError
from qlora.sql.schema import Schema
from qlora.sql.translate import DIALECTS, to_sqlite
from qlora.sql.translated import TranslatedDatabase
from qlora.sql.translator import Untranslated

from sqlglot import exp
from sqlglot.errors import SqlglotError

Name = Literal["sqlite", "duckdb", "postgres", "mysql"]
AnyDatabase = Database | duckdb_engine.DuckdbDatabase | postgres.PostgresDatabase | mysql.MysqlDatabase
# What sqlglot raises on odd queries.
_ODD = (SqlglotError, RecursionError, AttributeError, TypeError, ValueError, IndexError, KeyError)
_SERVERS = {"postgres": postgres, "mysql": mysql}


@dataclass(frozen=True)
class Engine:
    """Reads queries of `dialect` and runs them on the engine `name`. `run`: the name that `running` gives.

    Syntax trees are those of the dialect: the rest of the package reads and rewrites them as they were written, and
    `write` makes of them what the engine runs.
    """

    dialect: str = "sqlite"
    name: Name = "sqlite"
    run: str = ""

    @property
    def case_matters(self) -> bool:
        """Whether texts that differ in case are different to the engine."""
        return self.name in ("duckdb", "postgres") or self.dialect == "postgres"

    def read(self, sql: str, schema: Schema) -> tuple[str, exp.Expression | None]:
        """The query to run and its syntax tree, which is None if only the engine itself can read it.

        Raises QueryError if the query is not one of the dialect, or calls a function that no query may call.
        """
        if self.dialect == "sqlite":
            sql = plain_strings(sql, schema)
        tree = parse(sql, self.dialect)
        changed = tree is not None and _expand(tree, schema)
        if self.name == self.dialect == "sqlite":
            return self.write(tree, schema) if changed else sql, tree
        if tree is None and self.name == self.dialect:
            return sql, None
        if tree is None:
            raise QueryError("syntax", f"sqlglot reads no single statement of {self.dialect}")
        if name := servers.forbidden(tree):
            raise QueryError("denied", f"no query may call {name}")
        if self.name != self.dialect and self.dialect in DIALECTS:
            self._refuse(sql, tree, schema)
        if self.name == self.dialect and not changed and not servers.reads_clock(tree):
            return sql, tree  # as it was written: sqlglot's own text may differ in what the server makes of it
        return self.write(tree, schema), tree

    def _refuse(self, sql: str, tree: exp.Expression, schema: Schema) -> None:
        """Raise QueryError for what a server of the dialect would refuse, and SQLite cannot do."""
        try:
            refusals.check(sql, tree, self.dialect, schema)
        except QueryError as error:
            if self.name == "sqlite" or error.kind != "untranslated":
                raise
        except _ODD as error:
            raise QueryError("untranslated", str(error)) from None

    def write(self, tree: exp.Expression, schema: Schema) -> str:
        """The text of `tree` that the engine runs. Raises QueryError if there is none."""
        if self.name == "sqlite":
            if self.dialect not in DIALECTS:
                return tree.sql("sqlite")
            try:
                return to_sqlite(tree, self.dialect, schema)
            except Untranslated as error:
                raise QueryError("untranslated", f"no translation of {error}") from None
            except _ODD as error:
                raise QueryError("untranslated", f"no translation: {error}") from None
        return servers.stop_clock(tree, self.dialect).sql(self.name)

    def database(self, schema: Schema) -> AnyDatabase:
        """A new, empty database of the schema."""
        if self.name == "sqlite":
            return TranslatedDatabase(schema, self.dialect) if self.dialect in DIALECTS else Database(schema.columns())
        if self.name == "duckdb":
            return duckdb_engine.DuckdbDatabase(schema)
        session = _session(self.name, self.run)
        kind = postgres.PostgresDatabase if self.name == "postgres" else mysql.MysqlDatabase
        return kind(session, schema)

    def end_row(self) -> None:
        """Drop what the databases of a row left on a server."""
        if self.name in _SERVERS:
            _session(self.name, self.run).clear()


@lru_cache(maxsize=1)
def _session(name: str, run: str) -> postgres.Session | mysql.Session:
    return _SERVERS[name].Session(run)


def check(name: Name) -> None:
    """Raise Refusal, with what to do, if the engine's driver is not installed or its server cannot be used."""
    if name != "sqlite":
        servers.driver(name)
    if name in _SERVERS:
        _SERVERS[name].connect().close()


@contextmanager
def running(name: Name) -> Iterator[str]:
    """Prepare the engine for a run, and clean up after it. Yields the name of the run.

    Raises Refusal, with what to do, if the driver is not installed or the server cannot be used.
    """
    check(name)
    if name not in _SERVERS:
        yield ""
        return
    run = _SERVERS[name].start_run()
    try:
        yield run
    finally:
        _SERVERS[name].end_run(run)


def _expand(tree: exp.Expression, schema: Schema) -> bool:
    """Put the queries of views in their place, and drop the qualifiers of tables. Returns whether there were any.

    Raises QueryError for a database or schema that the row's schema does not name.
    """
    changed = False
    for _ in range(len(schema.views) + 1):  # a view may read another
        common = {one.alias.lower() for one in tree.find_all(exp.CTE)}
        for table in list(tree.find_all(exp.Table)):
            name, qualifier = table.name.lower(), table.db.lower()
            if qualifier and (name in schema.tables or name in schema.views):
                if qualifier not in schema.qualifiers | {"main", "public", "dbo"}:
                    raise QueryError("unknown_table", f"there is no {qualifier}.{name}")
                table.set("db", None)
                table.set("catalog", None)
                changed = True
            if name in schema.views and name not in common:
                alias = exp.TableAlias(this=exp.to_identifier(table.alias_or_name, quoted=True))
                view = exp.Subquery(this=schema.views[name].copy(), alias=alias)
                view.set("joins", table.args.get("joins"))
                table.replace(view)
                changed = True
    for column in tree.find_all(exp.Column) if changed else ():
        column.set("db", None)
        column.set("catalog", None)
    return changed
