"""The values that the columns of one database take."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from random import Random

from qlora.sql import documents
from qlora.sql.candidates import Literals
from qlora.sql.checks import Checks
from qlora.sql.constraints import Column, Constraints
from qlora.sql.domains import Domains
from qlora.sql.kinds import MOMENTS, NUMBERS, holds, moment, moments, numbers, texts, word
from qlora.sql.literals import Value, is_number
from qlora.sql.neighbours import neighbours
from qlora.sql.schema import Schema
from qlora.sql.shapes import Shape
from qlora.sql.solutions import Group


class Values:
    """Draws the values of one database, and remembers which ones its columns have.

    `seeds`: domain -> the literals that queries compare it with, and their neighbours. `fresh`: domain -> other values.
    `unique`: table -> the columns whose values differ in this database. `used`: column -> its values so far, `folded`.
    """

    def __init__(
        self,
        schema: Schema,
        constraints: Constraints,
        domains: Domains,
        groups: Sequence[Group],
        checks: Checks | None,
        random: Random,
        shape: Shape,
    ):
        self.schema, self.constraints, self.domains, self.groups = schema, constraints, domains, groups
        self.checks, self.case_matters = checks, checks is not None and checks.engine.case_matters
        self.random, self.shape = random, shape
        self.counter = itertools.count(random.randint(100, 900))
        # Column -> values of all classes of its groups, such that conditions and terms on it have different results.
        self.solved: dict[Column, list[Value]] = defaultdict(list)
        for group in groups:
            for rows in group.classes.values():
                for variable, value in zip(group.variables, random.choice(rows), strict=True):
                    if value is not None:
                        self.solved[variable.table, variable.column].append(value)
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
        kind = self._kind(columns)
        numeric = self._is_numeric(columns, kind, [value for _, value in literals])
        seeds = [near for operator, value in literals for near in neighbours(operator, value, random)]
        seeds += [value for column in columns for value in self.solved.get(column, ())]
        if self.case_matters:
            seeds += [seed.swapcase() for seed in seeds if isinstance(seed, str)]
        as_text = numeric and kind in ("", "text")  # numbers in a text column stay text, as a loader would store them
        if as_text:
            seeds = [str(seed) for seed in seeds]
        elif kind not in ("", "text"):
            seeds = [seed for seed in seeds if holds(kind, seed)] or [
                seed for seed in seeds if kind in ("integer", "real")
            ]
        count = random.randint(*self.shape.values)
        if self.shape.distinct:  # so many groups or different rows that a LIMIT leaves some out
            count = max([count, *(limit + 9 for limit in self.constraints.limits)])
        if numeric:
            fractions = kind == "real" and random.random() < 0.6
            fresh = numbers(kind, *self._range(columns, literals, count), fractions, count, random)
            fresh = [str(value) for value in fresh] if as_text else fresh
        elif kind in ("json", "array"):
            made = documents.documents if kind == "json" else documents.arrays
            fresh = list(itertools.islice(made(Literals(), random), count))
        elif kind in MOMENTS or (kind in ("", "text") and "date" in columns[0][1]):
            fresh = moments(kind if kind in MOMENTS else "date", count, random)
        else:
            fresh = texts(count, random)
        allowed = [
            self.schema.tables[table].choices[column] for table, column in columns if self._has_choices(table, column)
        ]
        if allowed:
            fresh = [value for value in allowed[0] if all(value in other for other in allowed)] or list(allowed[0])
            seeds = [value for value in fresh if value in seeds]
        if self.checks:
            seeds, fresh = self._allowed(columns, seeds), self._allowed(columns, fresh)
            if numeric and not fresh:  # the range of the conditions is not around the first numbers tried
                wide = numbers(kind, 0, 9999, kind == "real", 200, random)
                fresh = self._allowed(columns, [*wide, *range(-20, 200)])[: count + 2]
            fresh = fresh or seeds or [None]
        self.numeric[domain] = numeric
        self.seeds[domain] = _distinct(seeds, self.case_matters)
        self.fresh[domain] = _distinct(fresh, self.case_matters)

    def _has_choices(self, table: str, column: str) -> bool:
        return column in self.schema.tables[table].choices

    def _allowed(self, columns: list[Column], values: list[Value]) -> list[Value]:
        """The values that the conditions on each of the columns allow."""
        for table, column in columns:
            values = self.checks.allowed(table, column, values)
        return values

    def _is_limited(self, table: str, column: str) -> bool:
        """Whether the column holds no values but those of its pool."""
        return self._has_choices(table, column) or self.constraints.kinds[table, column] == "boolean"

    def _range(self, columns: list[Column], literals: list[tuple[str, Value]], count: int) -> tuple[float, float]:
        """The least and the greatest number of a domain, around its literals if there are any."""
        known = [float(value) for _, value in literals if is_number(value)]
        known += [float(value) for column in columns for value in self.solved.get(column, ()) if is_number(value)]
        checked = [number for column in columns for number in self.checks.numbers(*column)] if self.checks else []
        if checked and not known:
            return min(checked) - 2, max(checked) + (2 if len(checked) > 1 else 20)
        if known:
            margin = 20 + 0.4 * max(map(abs, known))
            return max(min(known) - margin, -(2.0**53)), min(max(known) + margin, 2.0**53)
        if len(columns) > 1:  # joined
            return 1, max(8, count)
        high = 400 if count > 20 else 12
        unsigned = any("UNSIGNED" in self.schema.tables[table].columns[column] for table, column in columns)
        return (-high if self.random.random() < 0.3 and not unsigned else 1), high

    def _kind(self, columns: list[Column]) -> str:
        """The kind of a domain's values: of text if its columns differ in more than whole or real numbers."""
        kinds = {self.constraints.kinds[column] for column in columns}
        if len(kinds) > 1 and kinds <= {"integer", "real", "year"}:
            return "integer" if "integer" in kinds else "real"
        return next(iter(kinds)) if len(kinds) == 1 else "date" if kinds == {"date", "timestamp"} else ""

    def _is_numeric(self, columns: list[Column], kind: str, literals: list[Value]) -> bool:
        if kind in NUMBERS:
            return True
        if kind in MOMENTS:
            return False
        if not self.constraints.numeric.isdisjoint(columns):
            return True
        if any(not is_number(value) for value in literals):
            return False
        chance = 0.8 if literals else 0.5 if not self.constraints.extreme.isdisjoint(columns) else 0.0
        if any(not is_number(value) for column in columns for value in self.solved.get(column, ())):
            return False
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

    def is_possible(self, table: str, column: str, value: Value) -> bool:
        """Whether the column may hold the value, by its kind, its listed values and the conditions on it."""
        kind = self.constraints.kinds[table, column]
        if not (holds(kind, value) or kind in ("integer", "real")):
            return False
        if self._has_choices(table, column) and value not in self.schema.tables[table].choices[column]:
            return False
        return not self.checks or bool(self.checks.allowed(table, column, [value]))

    def new(self, domain: Column) -> Value:
        """A value that no column of this database has."""
        number = next(self.counter)
        kind = self._kind(self.domains.members[domain])
        if kind in MOMENTS:
            day = date(2000, 1, 1) + timedelta(days=number)
            return f"{number // 60 % 24:02}:{number % 60:02}:00" if kind == "time" else moment(kind, day, self.random)
        if not self.numeric[domain]:
            return f"{word(self.random).capitalize()} {number}"
        return str(number) if kind in ("", "text") else number

    def draw(self, table: str, column: str) -> Value:
        """A value for the next row: unused where values must or should differ, NULL by chance where it may be."""
        pool, weights = self.pool(table, column)
        nullable = bool(self.shape.nulls) and column not in self.not_null(table)
        missing = nullable and (table, column) in self.spread and not self.is_used(table, column, None)
        if missing and self.random.random() < self.shape.nulls:  # once only: several NULLs would tie in an order
            return None
        if column in self.unique[table] or (table, column) in self.spread:
            unused = [value for value in pool if not self.is_used(table, column, value)]
            if unused:
                return self.random.choice(unused)
            # The pool is exhausted. A key's new value will join with nothing; any other column just needs a value.
            if not self._is_limited(table, column):
                return self.new(self.domains.of[table, column])
        if nullable and self.random.random() < self.shape.nulls:
            return None
        return self.random.choices(pool, weights)[0]

    def not_null(self, table: str) -> set[str]:
        """The columns of the table that hold no NULL."""
        return self.unique[table].union(self.schema.tables[table].not_null, *self.schema.tables[table].unique)

    def is_used(self, table: str, column: str, value: Value) -> bool:
        """Whether a row of the table has the value."""
        return folded(value) in self.used[table, column]


def _distinct(values: list[Value], case_matters: bool) -> list[Value]:
    """The values without repeats. If an engine takes texts that differ in case for the same, none of these do."""
    if case_matters:
        return list(dict.fromkeys(values))
    return list({folded(value): value for value in reversed(values)}.values())[::-1]


def folded(value: Value) -> Value:
    """The text of a value, without case: unique values differ in it."""
    return str(value).lower() if value is not None else None
