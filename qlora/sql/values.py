"""The values that the columns of one database take."""

import itertools
from collections import defaultdict
from random import Random

from qlora.sql.constraints import Column, Constraints, Value, is_number, neighbours, word
from qlora.sql.domains import Domains
from qlora.sql.schema import Schema
from qlora.sql.shapes import Shape


class Values:
    """Draws the values of one database, and remembers which ones its columns have.

    `seeds`: domain -> the literals that queries compare it with, and their neighbours. `fresh`: domain -> other values.
    `unique`: table -> the columns whose values differ in this database. `used`: column -> its values so far, `folded`.
    """

    def __init__(self, schema: Schema, constraints: Constraints, domains: Domains, random: Random, shape: Shape):
        self.schema, self.constraints, self.domains = schema, constraints, domains
        self.random, self.shape = random, shape
        self.counter = itertools.count(random.randint(100, 900))
        self.numeric: dict[Column, bool] = {}
        self.seeds: dict[Column, list[Value]] = {}
        self.fresh: dict[Column, list[Value]] = {}
        self.pools: dict[Column, tuple[list[Value], list[float]]] = {}
        for domain, columns in domains.members.items():
            self._plan_domain(domain, columns)
        self.unique = {name: set(columns) for name, columns in domains.unique.items()}
        for table in schema.tables.values():
            for column in table.columns:
                # A column named like an identifier mostly is one; at times it refers to another table's.
                if domains.looks_like_key(table.name, column) and random.random() < 0.6:
                    self.unique[table.name].add(column)
        # Columns whose values differ as long as there are unused ones, so that few rows tie in an order.
        self.spread = {
            column
            for column in domains.of
            if (shape.distinct and column not in constraints.grouped and not domains.is_joined(*column))
            or (column in constraints.ordered and random.random() < 0.7)
        }
        self.used: dict[Column, set[Value]] = defaultdict(set)

    def _plan_domain(self, domain: Column, columns: list[Column]) -> None:
        """Choose the type, the seeds and the fresh values of a domain."""
        random = self.random
        literals = [literal for column in columns for literal in self.constraints.literals.get(column, ())]
        types = self._types(columns)
        numeric = self._is_numeric(columns, types, [value for _, value in literals])
        seeds = [near for operator, value in literals for near in neighbours(operator, value, random)]
        if numeric and types == {"text"}:  # numbers in a text column stay text, as a loader would store them
            seeds = [str(seed) for seed in seeds]
        count = random.randint(*self.shape.values)
        numbers = [float(value) for _, value in literals if is_number(value)]
        fractions = "real" in types and random.random() < 0.6
        low, high = 1, 400 if count > 20 else 12
        if numbers:
            margin = 20 + 0.4 * max(map(abs, numbers))
            low, high = min(numbers) - margin, max(numbers) + margin
        elif len(columns) > 1:  # joined
            low, high = 1, max(8, count)
        fresh: list[Value] = []
        for _ in range(count):
            if numeric:
                value = round(random.uniform(low, high), 2) if fractions else random.randint(int(low), int(high))
                fresh.append(str(value) if types == {"text"} else value)
            elif types == {"date"} or (types == {"text"} and "date" in columns[0][1]):
                fresh.append(f"{random.randint(1990, 2024)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}")
            else:
                fresh.append(word(random).capitalize())
        self.numeric[domain] = numeric
        self.seeds[domain] = list(dict.fromkeys(seeds))
        self.fresh[domain] = list(dict.fromkeys(fresh))

    def _types(self, columns: list[Column]) -> set[str]:
        return {_rough_type(self.schema.tables[table].columns[column]) for table, column in columns}

    def _is_numeric(self, columns: list[Column], types: set[str], literals: list[Value]) -> bool:
        if types <= {"integer", "real"} or not self.constraints.numeric.isdisjoint(columns):
            return True
        if any(not is_number(value) for value in literals):
            return False
        chance = 0.8 if literals else 0.5 if not self.constraints.extreme.isdisjoint(columns) else 0.0
        return self.random.random() < chance

    def pool(self, table: str, column: str) -> tuple[list[Value], list[float]]:
        """The ordinary values of the column, and the weights by which they are drawn: few values are frequent."""
        key = (table, column)
        if key not in self.pools:
            domain = self.domains.of[key]
            seeds, fresh = self.seeds[domain], self.fresh[domain]
            pool = self.random.sample(seeds, min(len(seeds), self.random.randint(2, 8))) + fresh
            if self.domains.is_joined(table, column):  # the same few values on both sides of a join
                pool = (seeds[:6] + fresh)[: max(4, len(fresh))]
            pool = list(dict.fromkeys(pool))
            self.random.shuffle(pool)
            skew = self.random.choice((0.2, 0.7, 1.1))
            self.pools[key] = pool, [1 / (rank + 1) ** skew for rank in range(len(pool))]
        return self.pools[key]

    def new(self, domain: Column) -> Value:
        """A value that no column of this database has."""
        number = next(self.counter)
        if not self.numeric[domain]:
            return f"{word(self.random).capitalize()} {number}"
        return str(number) if self._types(self.domains.members[domain]) == {"text"} else number

    def draw(self, table: str, column: str) -> Value:
        """A value for the next row: unused where values must or should differ, NULL by chance where it may be."""
        pool, weights = self.pool(table, column)
        if column in self.unique[table] or (table, column) in self.spread:
            unused = [value for value in pool if not self.is_used(table, column, value)]
            if unused:
                return self.random.choice(unused)
            # The pool is exhausted. A key's new value will join with nothing; any other column just needs a value.
            return self.new(self.domains.of[table, column])
        if self.shape.nulls and self.random.random() < self.shape.nulls and column not in self.not_null(table):
            return None
        return self.random.choices(pool, weights)[0]

    def not_null(self, table: str) -> set[str]:
        """The columns of the table that hold no NULL."""
        return self.unique[table].union(self.schema.tables[table].not_null, *self.schema.tables[table].unique)

    def is_used(self, table: str, column: str, value: Value) -> bool:
        """Whether a row of the table has the value."""
        return folded(value) in self.used[table, column]


def _rough_type(declared: str) -> str:
    """The rough type of a column: integer, real, date or text."""
    if any(part in declared for part in ("INT", "BOOL", "YEAR")):
        return "integer"
    if any(part in declared for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC", "MONEY")):
        return "real"
    if any(part in declared for part in ("DATE", "TIME")):
        return "date"
    return "text"


def folded(value: Value) -> Value:
    """The text of a value, without case: unique values differ in it."""
    return str(value).lower() if value is not None else None
