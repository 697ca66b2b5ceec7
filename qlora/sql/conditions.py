"""The conditions and terms of a query that no plain comparison of a column with a literal expresses.

Which values satisfy `strftime('%Y', born) = '1970'` or `a.n * b.price > 100` is found by trial (`solutions`).
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from qlora.sql.places import Place, origin
from qlora.sql.schema import Schema

from sqlglot import exp

_MOST = 40  # conditions, and terms, of a query
_DATES = re.compile(r"Time|Date|Day|Month|Year|Quarter|Week|Extract|Hour|Minute|Second|Epoch")
_DATE_NAMES = re.compile(r"(?i)strftime|julianday|unixepoch|date|time|age|year|month|day|hour|minute|to_char|extract")
_CLOCK = re.compile(r"(?i)%[HMSfTsI]|hour|minute|second|datetime|julianday|unixepoch|epoch|^time$")
_DATE_TYPES = (exp.DataType.Type.DATE, exp.DataType.Type.TIMESTAMP, exp.DataType.Type.DATETIME)
_UNWRAPPED = (exp.Sum, exp.Avg, exp.Min, exp.Max)  # a group of one row has that row's value


class Variable(NamedTuple):
    """A column of the table's mention number `ordinal` in a query: the same for the queries that are compared."""

    table: str
    ordinal: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.table}/{self.ordinal}/{self.column}"


@dataclass(frozen=True)
class Condition:
    """`tree`: a predicate whose columns are variables, by name. `wanted`: the truth that its query asks for."""

    variables: tuple[Variable, ...]
    tree: exp.Expression
    wanted: bool


@dataclass(frozen=True)
class Term:
    """`tree`: an expression whose columns are variables, by name."""

    variables: tuple[Variable, ...]
    tree: exp.Expression


@dataclass
class Mentions:
    """The mentions of tables in one query, of which `numbers` (see `places`) are the numbers."""

    schema: Schema
    numbers: dict[int, int]
    ordinals: dict[int, int] = field(default_factory=dict)  # number of the mention -> its ordinal
    sources: dict[tuple[str, int], int] = field(default_factory=dict)  # (table, ordinal) -> number of the mention

    @classmethod
    def of(cls, tree: exp.Expression, schema: Schema, numbers: dict[int, int]) -> "Mentions":
        found = cls(schema, numbers)
        seen: dict[str, int] = {}
        for table in tree.find_all(exp.Table):
            name = table.name.lower()
            if name in schema.tables:
                ordinal = seen[name] = seen.get(name, -1) + 1
                found.ordinals[numbers[id(table)]] = ordinal
                found.sources[name, ordinal] = numbers[id(table)]
        return found

    def variable(self, place: Place) -> Variable:
        return Variable(place.table, self.ordinals[place.source], place.column)

    def condition(self, node: exp.Expression, wanted: bool) -> Condition | None:
        """The condition that `node` is; None if it is none of single rows, such as one with a subquery or a COUNT."""
        found = self._over_variables(node)
        return Condition(*found, wanted) if found else None

    def term(self, node: exp.Expression) -> Term | None:
        """The term that `node` is, as for `condition`; None for a plain column, too."""
        found = self._over_variables(node)
        return Term(*found) if found and not isinstance(found[1], exp.Column) else None

    def _over_variables(self, node: exp.Expression) -> tuple[tuple[Variable, ...], exp.Expression] | None:
        tree = self.inlined(node)
        if tree is None:
            return None
        tree = _without_tuples(tree) if isinstance(tree, (exp.In, exp.EQ)) else tree
        for aggregate in list(tree.find_all(*_UNWRAPPED)):
            inner = aggregate.this
            inner = inner.expressions[0] if isinstance(inner, exp.Distinct) else inner
            if aggregate is tree:
                tree = inner
            aggregate.replace(inner)
        if tree.find(exp.Query, exp.Subquery, exp.AggFunc, exp.Window, exp.Star) is not None:
            return None
        names = {column.name for column in tree.find_all(exp.Column)}
        variables = tuple(sorted(Variable(*_split(name)) for name in names))
        return (variables, tree) if variables else None

    def inlined(self, node: exp.Expression, depth: int = 0) -> exp.Expression | None:
        """A copy of `node` whose columns are variables: computed columns of subqueries are replaced by what they are.

        None if a column is unknown.
        """
        if depth > 8:
            return None
        if isinstance(node, exp.Column):
            return self._inlined_column(node, depth)
        copy = node.copy()
        pairs = list(zip(node.find_all(exp.Column), copy.find_all(exp.Column), strict=True))
        for column, twin in pairs:
            new = self._inlined_column(column, depth)
            if new is None:
                return None
            twin.replace(new)
        return copy

    def _inlined_column(self, column: exp.Column, depth: int) -> exp.Expression | None:
        found = origin(column, self.schema, self.numbers)
        if found is None and not column.table:  # perhaps an output of its own query: HAVING total > 3
            select = column.parent_select
            names = {one.alias.lower(): one for one in select.selects if one.alias} if select else {}
            found = names.get(column.name.lower())
            if found is None or column.find_ancestor(exp.Alias) is found:
                return None
            found = found.unalias()
        if isinstance(found, Place):
            return exp.column(exp.to_identifier(self.variable(found).name, quoted=True))
        inner = self.inlined(found, depth + 1) if found is not None else None
        return exp.paren(inner, copy=False) if inner is not None else None


def _without_tuples(node: exp.Expression) -> exp.Expression:
    """`(a, b) IN ((1, 2), ...)` and `(a, b) = (1, 2)` as comparisons of single columns."""
    if not isinstance(node.this, exp.Tuple):
        return node
    if isinstance(node, exp.In):
        listed = [
            row for one in node.expressions for row in (one.expressions if isinstance(one, exp.Values) else [one])
        ]
    else:
        listed = [node.expression]
    columns = node.this.expressions
    if not listed or not all(isinstance(row, exp.Tuple) and len(row.expressions) == len(columns) for row in listed):
        return node
    rows = [
        exp.and_(*(exp.EQ(this=a.copy(), expression=b.copy()) for a, b in zip(columns, row.expressions, strict=True)))
        for row in listed
    ]
    return exp.or_(*rows)


def _split(name: str) -> tuple[str, int, str]:
    table, ordinal, column = name.rsplit("/", 2)
    return table, int(ordinal), column


def moment_kind(node: exp.Expression) -> str | None:
    """The kind of the values of a column that `node`, a function, reads a date or a time of; None if it reads none."""
    if isinstance(node, exp.Cast):
        return "date" if node.to.this in _DATE_TYPES else None
    if not isinstance(node, exp.Func):
        return None
    name = node.name if isinstance(node, exp.Anonymous) else type(node).__name__
    pattern = _DATE_NAMES if isinstance(node, exp.Anonymous) else _DATES
    if not pattern.search(name):
        return None
    words = [name, *(one.name for one in node.find_all(exp.Literal, exp.Var))]
    return "timestamp" if any(_CLOCK.search(one) for one in words) else "date"


def limited(found: list) -> list:
    """The first of the conditions or terms of a query, which are few but for odd texts."""
    return list(dict.fromkeys(found))[:_MOST]
