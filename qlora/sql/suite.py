"""The databases on which predictions are compared with one gold query."""

from collections.abc import Iterator
from contextlib import suppress
from random import Random

from qlora.sql.comparison import same_results
from qlora.sql.constraints import read_constraints
from qlora.sql.databases import Generator
from qlora.sql.queries import is_fragile, is_ordered, needs_shuffling, parse, probes, without_distinct
from qlora.sql.sandbox import Database, QueryError, Result
from qlora.sql.schema import Schema
from qlora.sql.shapes import SHAPES

from sqlglot import exp


class Suite:
    """Databases on which the result of the gold query is determined, with that result.

    `sql`, `tree`: the gold query. `others`: queries that help to make the databases. `size`: the number of databases.
    `key`: the seed. `lenient`: without NULLs, and without DISTINCT in the gold query.
    """

    def __init__(
        self,
        schema: Schema,
        sql: str,
        tree: exp.Expression | None,
        others: list[exp.Expression],
        size: int,
        key: str,
        *,
        lenient: bool,
    ):
        self.schema, self.size, self.key, self.lenient = schema, size, key, lenient
        if lenient:
            sql = without_distinct(sql, tree)
            tree = parse(sql)
        self.sql = sql
        self.ordered = is_ordered(tree)
        fragile = is_fragile(tree)
        self.shuffles = 0 if not fragile else 6 if needs_shuffling(tree) else 1
        trees = [one for one in (tree, *others) if one is not None]
        self.generator = Generator(schema, read_constraints(trees, schema))
        self.probes = probes(tree, schema) if fragile and tree is not None else []
        self.found: list[tuple[Database, Result]] = []
        self.tried = 0

    def instances(self) -> Iterator[tuple[Database, Result]]:
        """Yield `size` pairs of a database and the gold result, or fewer if `3 * size` tries do not give as many."""
        yield from self.found
        while len(self.found) < self.size and self.tried < 3 * self.size:
            instance = self._make(self.tried)
            self.tried += 1
            if instance:
                self.found.append(instance)
                yield instance

    def agrees(self, sql: str, ordered: bool) -> bool:
        """Whether `sql` gives the gold result on every database. Raises QueryError if it fails on one.

        `ordered`: whether `sql` has ORDER BY. If the gold query has it and `sql` does not, the rows of `sql` must not
        agree by luck, so they are also compared in reverse.
        """
        for database, gold in self.instances():
            result = database.run(sql)
            if not same_results(gold, result, self.ordered):
                return False
            backwards = Result(result.width, result.rows[::-1])
            if self.ordered and not ordered and not same_results(gold, backwards, ordered=True):
                return False
        return True

    def _make(self, number: int) -> tuple[Database, Result] | None:
        """Database `number` with the gold result, or None if the result is not determined on it."""
        random = Random(f"{self.key}|{self.lenient}|{number}")
        shape = SHAPES[number % len(SHAPES)]
        rows = self.generator.database(random, shape, nulls=not self.lenient)
        database = Database(self.schema.columns())
        database.fill(rows)
        try:
            gold = database.run(self.sql)
            for _ in range(self.shuffles):
                for table in rows.values():
                    random.shuffle(table)
                database.fill(rows)
                if not same_results(gold, database.run(self.sql), self.ordered, any_column_order=False):
                    return None
        except QueryError:  # the gold query exceeds a limit; it would do so on other databases, too
            self.tried = 3 * self.size
            return None
        for probe in self.probes:
            with suppress(QueryError):  # SQLite does not run the rewrites of all queries
                if not same_results(gold, database.run(probe), self.ordered, any_column_order=False):
                    return None
        return database, gold
