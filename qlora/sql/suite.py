"""The databases on which predictions are compared with one gold query."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random

from qlora.sql.checks import Checks
from qlora.sql.comparison import same_results
from qlora.sql.constraints import read_constraints
from qlora.sql.databases import Generator
from qlora.sql.engine import Engine
from qlora.sql.queries import is_fragile, is_ordered, needs_shuffling, probes, shows_case, without_distinct
from qlora.sql.sandbox import Database, QueryError, Result, clock
from qlora.sql.schema import Schema
from qlora.sql.shapes import SHAPES
from qlora.sql.solutions import solve

from sqlglot import exp


def tables_read(trees: list[exp.Expression | None], schema: Schema) -> set[str]:
    """The tables that the queries read: all of them where a query has no syntax tree."""
    if None in trees:
        return set(schema.tables)
    named = {table.name.lower() for tree in trees for table in tree.find_all(exp.Table)}
    return named & schema.tables.keys()


def columns_named(trees: list[exp.Expression | None]) -> set[str] | None:
    """The names that the queries mention, among them all columns that they read; None if they may read any."""
    if None in trees:
        return None
    names = set()
    for tree in trees:
        for node in tree.walk():
            is_star = isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count)
            if is_star or (isinstance(node, exp.Join) and node.args.get("method")):
                return None
            if isinstance(node, exp.Identifier):
                names.add(node.name.lower())
    return names


class Suite:
    """Databases on which the result of the gold query is determined, with that result.

    `engine`: runs the queries. `schema`: the tables to fill, all that the queries read. `sql`, `tree`: the gold query.
    `others`: queries that help to make the databases. `size`: the number of databases. `key`: the seed. `lenient`:
    without NULLs, and without DISTINCT in the gold query.
    """

    def __init__(
        self,
        engine: Engine,
        schema: Schema,
        sql: str,
        tree: exp.Expression | None,
        others: list[exp.Expression],
        size: int,
        key: str,
        *,
        lenient: bool,
    ):
        self.engine, self.schema, self.size, self.key, self.lenient = engine, schema, size, key, lenient
        if lenient and tree is not None and tree.find(exp.Distinct):
            tree = without_distinct(tree)
            sql = engine.write(tree, schema)
        self.sql = sql
        self.ordered = is_ordered(tree)
        self.shows_case = shows_case(tree)
        fragile = is_fragile(tree)
        self.shuffles = 0 if not fragile else 6 if needs_shuffling(tree) else 1
        trees = [one for one in (tree, *others) if one is not None]
        with clock():
            constraints = read_constraints(trees, schema)
        groups = solve(constraints, schema, engine, Random(key))
        self.generator = Generator(schema, constraints, groups, Checks(schema, engine))
        self.probes: list[str] = []
        for probe in probes(tree, schema) if fragile and tree is not None else ():
            with suppress(QueryError):
                self.probes.append(engine.write(probe, schema))
        self.found: list[tuple[Database, Result]] = []
        self.tried = 0
        self.failed: str | None = None  # why the gold query could not be run on a database

    def covers(self, tree: exp.Expression | None, whole: Schema) -> bool:
        """Whether the databases have all tables and columns of the row's `whole` schema that the query reads."""
        columns = columns_named([tree])
        return all(
            name in self.schema.tables
            and all(
                column in self.schema.tables[name].columns
                for column in whole.tables[name].columns
                if columns is None or column in columns
            )
            for name in tables_read([tree], whole)
        )

    def varies(self) -> bool:
        """Whether the gold query has different results: makes as many databases as that takes, if it can."""
        if self._differ():
            return True
        return any(self._differ() for _ in self.instances())

    def _differ(self) -> bool:
        return any(not same_results(self.found[0][1], result, self.ordered) for _, result in self.found[1:])

    def instances(self) -> Iterator[tuple[Database, Result]]:
        """Yield `size` pairs of a database and the gold result, or fewer if `3 * size` tries do not give as many."""
        yield from self.found
        while len(self.found) < self.size and self.tried < 3 * self.size and not self.failed:
            instance = self._make(self.tried)
            self.tried += 1
            if instance:
                self.found.append(instance)
                yield instance

    def agrees(self, sql: str, ordered: bool, case: bool = False) -> bool:
        """Whether `sql` gives the gold result on every database. Raises QueryError if it fails on one.

        `ordered`: whether `sql` has ORDER BY. If the gold query has it and `sql` does not, the rows of `sql` must not
        agree by luck, so they are also compared in reverse. `case`: whether it changes the case of texts that it shows.
        """
        case = case or self.shows_case
        for database, gold in self.instances():
            result = database.run(sql)
            if case:
                gold, result = replace(gold, case_matters=True), replace(result, case_matters=True)
            if not same_results(gold, result, self.ordered):
                return False
            backwards = replace(result, rows=result.rows[::-1])
            if self.ordered and not ordered and not same_results(gold, backwards, ordered=True):
                return False
        return True

    def _make(self, number: int) -> tuple[Database, Result] | None:
        """Database `number` with the gold result, or None if the result is not determined on it."""
        random = Random(f"{self.key}|{self.lenient}|{number}")
        shape = SHAPES[number % len(SHAPES)]
        if number == 0 and self.schema.rows and not self.lenient:
            rows = {name: list(rows) for name, rows in self.schema.rows.items()}
        else:
            rows = self.generator.database(random, shape, nulls=not self.lenient)
        database = self.engine.database(self.schema)
        database.fill(rows)
        try:
            gold = database.run(self.sql)
            for _ in range(self.shuffles):
                for table in rows.values():
                    random.shuffle(table)
                database.fill(rows)
                if not same_results(gold, database.run(self.sql), self.ordered, any_column_order=False):
                    return None
        except QueryError as error:
            if error.kind in ("timeout", "too_large", "too_many_rows"):  # it would be so on other databases, too
                self.failed = error.kind
            return None
        for probe in self.probes:
            with suppress(QueryError):  # SQLite does not run the rewrites of all queries
                if not same_results(gold, database.run(probe), self.ordered, any_column_order=False):
                    return None
        return database, gold
