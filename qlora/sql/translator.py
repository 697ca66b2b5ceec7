"""Builds a query for SQLite beside one of PostgreSQL or MySQL, node by node."""

from collections.abc import Callable

from qlora.sql import moments
from qlora.sql.schema import Schema
from qlora.sql.scopes import NUMBERS, Scopes

from sqlglot import exp


class Untranslated(Exception):
    """A query uses something that SQLite cannot be made to do. The message names it."""


_UNSUPPORTED = (
    exp.Lateral, exp.Unnest, exp.Explode, exp.ExplodingGenerateSeries, exp.GenerateSeries, exp.Cube, exp.Rollup,
    exp.GroupingSets, exp.Pivot, exp.TableSample, exp.NumberToStr, exp.Rand, exp.SessionParameter, exp.Parameter,
    exp.JSONObject, exp.JSONArray, exp.JSONArrayAgg, exp.JSONObjectAgg, exp.JSONBObjectAgg, exp.JSONTable,
)  # fmt: skip


def call(name: str, *arguments: object) -> exp.Anonymous:
    """A call of a function of `functions`."""
    return exp.Anonymous(this=name, expressions=[exp.convert(one) for one in arguments])


class Translator:
    """Translates by `rules` (kind of node -> the rule that makes the new node) and `named` (function -> its name here).

    The query that was written stays as it is: the kinds of its expressions decide how they are translated.
    """

    def __init__(self, dialect: str, schema: Schema, rules: dict[type, Callable], named: dict[str, str | Callable]):
        self.dialect, self.scopes, self.rules, self.named = dialect, Scopes(schema, dialect), rules, named
        self.kind = self.scopes.kind
        self.expanded: set[int] = set()  # ids of SELECTs whose functions that give rows have moved to FROM
        self.replaced: dict[int, exp.Expression] = {}  # id of a node -> what it has become already

    def convert(self, node: object) -> object:
        """A copy of a node of the query, translated."""
        if isinstance(node, list):
            return [self.convert(one) for one in node]
        if not isinstance(node, exp.Expression):
            return node
        if id(node) in self.replaced:
            return self.replaced[id(node)].copy()
        rule = self.rules.get(type(node))
        if rule is not None:
            return rule(self, node)
        if isinstance(node, _UNSUPPORTED):
            raise Untranslated(type(node).__name__)
        return self.copy(node)

    def copy(self, node: exp.Expression) -> exp.Expression:
        return type(node)(**{name: self.convert(value) for name, value in node.args.items()})

    def call(self, name: str, *arguments: object) -> exp.Anonymous:
        return call(name, *(self.convert(one) for one in arguments if one is not None))

    def matched(self, node: exp.Expression, other: exp.Expression | None) -> exp.Expression:
        """`node` as a value of the kind that it is compared with."""
        mine, wanted = self.kind(node), self.kind(other)
        if mine == "literal":
            value = node.unnest().this if isinstance(node.unnest(), exp.Literal) else None
            if value is None:
                return self.convert(node)
            try:
                return exp.convert(literal_as(value, wanted))
            except (ValueError, TypeError, OverflowError):
                if self.dialect == "postgres":
                    raise Untranslated(f"{value!r} as {wanted}") from None
                return self.convert(node)
        if wanted == "timestamp" and mine == "date":
            return self.call("x_timestamp", node)
        return self.convert(node)

    def moment(self, node: exp.Expression) -> exp.Expression:
        """A value that a date function takes; sqlglot wraps what it takes for text."""
        return node.this if isinstance(node, (exp.TsOrDsToDate, exp.TsOrDsToTimestamp)) else node


def literal_as(value: str, kind: str) -> object:
    """The text of a literal as a value of the kind that it is compared with. Raises ValueError."""
    if kind == "date":
        return moments.as_date(value)
    if kind == "timestamp":
        return moments.as_timestamp(value)
    if kind == "time":
        return moments.time_of(value)
    if kind == "interval":
        return moments.interval(*moments.parse_interval(value))
    if kind in NUMBERS:
        return float(value) if any(one in value for one in ".eE") else int(value)
    if kind == "boolean" and value.lower() in ("t", "true", "yes", "on", "1", "f", "false", "no", "off", "0"):
        return int(value.lower() in ("t", "true", "yes", "on", "1"))
    return value
