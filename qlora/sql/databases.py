"""Make up data for a schema, such that queries with different meanings give different results on it.

The idea is that of test suites distilled for a query's neighbours (Zhong, Yu and Klein 2020, "Semantic Evaluation for
Text-to-SQL with Distilled Test Suites"), for schemas without data. Values come from the literals of the queries and
their neighbours. Witness rows satisfy all of a query's conditions across its joined tables, or all but one, as in
query-aware generation (Binnig et al. 2007, "QAGen"; Chandra et al. 2015, "XData").
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from qlora.sql.checks import Checks
from qlora.sql.constraints import Constraints
from qlora.sql.domains import Domains
from qlora.sql.schema import ForeignKey, Schema, Table
from qlora.sql.shapes import Shape
from qlora.sql.solutions import Group
from qlora.sql.values import Values, folded
from qlora.sql.witnesses import Row, Witnesses

_MOST_ROWS = 1_200  # of one table


class Generator:
    """Databases of one schema for one set of constraints.

    `groups`: values for conditions and terms (see `solutions.solve`). `checks`: the conditions that rows keep, if any.
    """

    def __init__(
        self, schema: Schema, constraints: Constraints, groups: Sequence[Group] = (), checks: Checks | None = None
    ):
        self.schema, self.constraints, self.groups, self.checks = schema, constraints, groups, checks
        self.domains = Domains(schema, constraints)

    def database(self, random: Random, shape: Shape, nulls: bool = True) -> dict[str, list[tuple]]:
        """Rows for every table, in random order. Declared keys and foreign keys hold."""
        shape = shape if nulls else replace(shape, nulls=0.0)
        return _Filling(
            Values(self.schema, self.constraints, self.domains, self.groups, self.checks, random, shape)
        ).fill()


class _Filling:
    """The rows of one database in the making."""

    def __init__(self, values: Values):
        self.values, self.schema, self.constraints = values, values.schema, values.constraints
        self.domains, self.random, self.shape, self.checks = values.domains, values.random, values.shape, values.checks

    def fill(self) -> dict[str, list[tuple]]:
        random = self.random
        rows: dict[str, list[Row]] = {name: [] for name in self.schema.tables}
        size = random.randint(*self.shape.rows)
        tiny = self.shape.rows[1] <= 3 and not self.shape.bare
        blocked = not tiny and not self.shape.bare and random.random() < 0.5
        if not tiny:
            size = max([size, *(min(160, 5 * count) for count in self.constraints.counts)])
        if blocked:  # the sizes of the greatest groups, and of the greatest result
            size = max([size, *(min(_MOST_ROWS, 3 * count + 9) for count in self.constraints.counts)])
            size = max([size, *(min(_MOST_ROWS, limit + 9) for limit in self.constraints.limits)])
        self._add_witnesses(rows, 1 if tiny else size if self.shape.bare else max(4, size // 2))
        for name in self.schema.tables:
            self._add_rows(rows, name, size, tiny)
        if blocked or (self.shape.bare and random.random() < 0.5):
            self._block_groups(rows)
        for name in rows:  # repeat whole rows, for DISTINCT; `_hold_keys` drops the repeats of a key
            rows[name] += random.sample(rows[name], min(len(rows[name]), random.randint(0, 2)))
        self._hold_keys(rows)
        result = {}
        for name, table in self.schema.tables.items():
            result[name] = [tuple(row[column] for column in table.columns) for row in rows[name]]
        if self.checks and self.checks.tables:
            result = self._hold_checks(result)
        for made in result.values():
            random.shuffle(made)
        return result

    def _hold_checks(self, rows: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
        """The rows that keep the conditions of their tables, and whose parents do."""
        found: dict[str, list[Row]] = {}
        for name, table in self.schema.tables.items():
            found[name] = [dict(zip(table.columns, row, strict=True)) for row in self.checks.rows(name, rows[name])]
        self._drop_orphans(found)
        return {name: [tuple(row.values()) for row in made] for name, made in found.items()}

    def _add_witnesses(self, rows: dict[str, list[Row]], count: int) -> None:
        """Add `count` witnesses of each scene; in a bare database, of one scene."""
        scenes = self.constraints.scenes
        if self.shape.bare and scenes:
            scenes = [self.random.choice(scenes)]
        dangling = 0.4 if self.shape.bare else 0.2
        for scene in scenes:
            for witness in Witnesses(scene, self.constraints.scenes, self.values, self.random, dangling).make(count):
                for table, row in witness:
                    self._add(rows[table], table, row)

    def _add_rows(self, rows: dict[str, list[Row]], name: str, size: int, tiny: bool) -> None:
        """Fill the table with ordinary rows, about `size`; in a tiny database, keep just that many."""
        target = size if len(rows) == 1 else max(1, round(size * self.random.uniform(0.5, 1.2)))
        if self.shape.bare and rows[name]:
            return
        for column in sorted(self.values.unique[name]):
            if self.domains.is_joined(name, column):
                # About as many rows as there are shared values: most of them join, and some have no partner.
                pool, _ = self.values.pool(name, column)
                target = min(target, max(3, len(pool)) + self.random.randint(0, 4))
        while len(rows[name]) < target:
            if not self._add(rows[name], name, {}):
                break
        if tiny and len(rows[name]) > target:
            rows[name] = self.random.sample(rows[name], target)

    def _add(self, rows: list[Row], table: str, fixed: Row) -> bool:
        """Add a row with the values `fixed` and drawn ones, unless a value of a unique column is taken."""
        for column in self.values.unique[table]:
            if column in fixed and self.values.is_used(table, column, fixed[column]):
                return False
        row = {
            column: fixed[column] if column in fixed else self.values.draw(table, column)
            for column in self.schema.tables[table].columns
        }
        for column, value in row.items():
            self.values.used[table, column].add(folded(value))
        rows.append(row)
        return True

    def _block_groups(self, rows: dict[str, list[Row]]) -> None:
        """Give groups different sizes: around the numbers that a query compares a COUNT with, or else 1, 2, 3, ..."""
        found = self.constraints
        if not (found.counts or found.by_count or found.grouped):
            return
        sizes = [max(1, count + step) for count in found.counts for step in (0, 1, -1)] or range(1, 7)
        for name in rows:
            columns = [column for table, column in sorted(found.grouped) if table == name]
            # The foreign key of a table that is only joined decides how many rows a group has.
            columns = columns or [one for one in self.schema.tables[name].columns if self.domains.is_joined(name, one)]
            columns = [column for column in columns if column not in self.values.unique[name]]
            if not columns:
                continue
            column = self.random.choice(columns)
            values = list(self.values.pool(name, column)[0])
            self.random.shuffle(values)
            pairs = zip(values, dict.fromkeys(sizes), strict=False)
            blocks = itertools.chain.from_iterable([value] * size for value, size in pairs)
            blocked = list(zip(rows[name], blocks, strict=False))
            for row, value in blocked:
                row[column] = value
            rows[name] = [row for row, _ in blocked]

    def _hold_keys(self, rows: dict[str, list[Row]]) -> None:
        """Make the declared keys hold. Missing parents are added, to keep the witnesses; other rows are dropped."""
        for _ in self.schema.foreign_keys:  # a parent may need a parent of its own
            for key in self.schema.foreign_keys:
                self._add_parents(rows, key)
        for name, table in self.schema.tables.items():
            rows[name] = self._without_duplicates(table, rows[name])
        self._drop_orphans(rows)

    def _drop_orphans(self, rows: dict[str, list[Row]]) -> None:
        dropped = True
        while dropped:
            dropped = False
            for key in self.schema.foreign_keys:
                parents = {folded(row[key.parent_column]) for row in rows[key.parent]} | {None}
                kept = [row for row in rows[key.table] if folded(row[key.column]) in parents]
                dropped |= len(kept) < len(rows[key.table])
                rows[key.table] = kept

    def _add_parents(self, rows: dict[str, list[Row]], key: ForeignKey) -> None:
        """Add the rows that a foreign key needs, or give it NULL or a value of its parent's."""
        parents = {folded(row[key.parent_column]): row[key.parent_column] for row in rows[key.parent]}
        nullable = self.shape.nulls and key.column not in self.values.not_null(key.table)
        for row in list(rows[key.table]):  # a table may be its own parent
            value = row[key.column]
            if value is None or folded(value) in parents:
                continue
            if nullable and self.random.random() < 0.5:
                row[key.column] = None
            elif self._add(rows[key.parent], key.parent, {key.parent_column: value}):
                parents[folded(value)] = value
            elif parents:
                row[key.column] = self.random.choice(list(parents.values()))

    def _without_duplicates(self, table: Table, rows: list[Row]) -> list[Row]:
        """The rows whose keys have no NULL and are not those of an earlier row."""
        keys = [*table.unique, *((column,) for column in sorted(self.values.unique[table.name]))]
        seen: dict[tuple[str, ...], set] = {key: set() for key in keys}
        kept = []
        for row in rows:
            values = {key: tuple(folded(row[column]) for column in key) for key in keys}
            if any(None in values[key] for key in keys) or any(values[key] in seen[key] for key in keys):
                continue
            for key in keys:
                seen[key].add(values[key])
            kept.append(row)
        return kept
