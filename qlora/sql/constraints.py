"""Read the comparisons, joins and aggregates of a query, which test data must exercise."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from random import Random

from qlora.sql.queries import Place, bare_column_tables, number_tables, outputs, resolve
from qlora.sql.schema import Schema

from sqlglot import exp

Value = int | float | str | None
Column = tuple[str, str]  # (table, column), in lower case

_OPERATORS = {
    exp.EQ: "=",
    exp.Is: "=",
    exp.NEQ: "!=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.Like: "like",
    exp.Glob: "glob",
}
_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
_TRANSPARENT = (exp.Paren, exp.Cast, exp.Lower, exp.Upper, exp.Trim, exp.Abs)
_ARITHMETIC = (exp.Sum, exp.Avg, exp.Add, exp.Sub, exp.Mul, exp.Div)
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})(.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,6})?")


@dataclass(frozen=True)
class Atom:
    """`place operator value`, or its negation. The value of `in` is a tuple."""

    place: Place
    operator: str
    value: Value | tuple[Value, ...]
    negated: bool

    def holds(self, value: Value) -> bool:
        """Whether the comparison, negated or not, is true of `value` in a column that ignores case, as in SQLite."""
        return value is not None and compare(value, self.operator, self.value) != self.negated


@dataclass
class Scene:
    """The conditions on rows, one for each mention of a table, that contribute to a query's result together.

    `tables`: number of the mention -> table. `atoms`: comparisons with literals. `equal`: pairs of places that must be
    equal, by a join, IN or a set operation.
    """

    tables: dict[int, str] = field(default_factory=dict)
    atoms: list[Atom] = field(default_factory=list)
    equal: list[tuple[Place, Place]] = field(default_factory=list)


@dataclass
class Constraints:
    """The constraints of some queries on the data of a schema.

    `scenes`: one for each query. `literals`: column -> (operator, value) of its comparisons. `linked`: pairs of columns
    that are compared. `numeric`: columns used in arithmetic. `extreme`: columns under MIN and MAX. `grouped`,
    `ordered`: columns of GROUP BY and of ORDER BY. `keys`: joined columns that must be unique for a bare output column
    to have one value. `counts`: numbers that a COUNT is compared with. `by_count`: whether a query orders by an
    aggregate.
    """

    scenes: list[Scene] = field(default_factory=list)
    literals: dict[Column, list[tuple[str, Value]]] = field(default_factory=dict)
    linked: list[tuple[Column, Column]] = field(default_factory=list)
    numeric: set[Column] = field(default_factory=set)
    extreme: set[Column] = field(default_factory=set)
    grouped: set[Column] = field(default_factory=set)
    ordered: set[Column] = field(default_factory=set)
    keys: set[Column] = field(default_factory=set)
    counts: list[int] = field(default_factory=list)
    by_count: bool = False


def read_constraints(trees: list[exp.Expression], schema: Schema) -> Constraints:
    """Collect the constraints of queries, given as syntax trees."""
    found = Constraints()
    for tree in trees:
        try:
            _Reader(tree, schema, found).read()
        except RecursionError:
            continue  # a recursive CTE or very deep nesting: only the other queries count
    return found


class _Reader:
    """Adds the constraints of one query to `found`."""

    def __init__(self, tree: exp.Expression, schema: Schema, found: Constraints):
        self.tree, self.schema, self.found = tree, schema, found
        self.numbers = number_tables(tree)
        self.scene = Scene()

    def read(self) -> None:
        for table in self.tree.find_all(exp.Table):
            if table.name.lower() in self.schema.tables:
                self.scene.tables[self.numbers[id(table)]] = table.name.lower()
        for node in self.tree.walk():
            if type(node) in _OPERATORS:
                self._comparison(node, _OPERATORS[type(node)])
            elif isinstance(node, exp.Between):
                self._literal(node.this, ">=", _literal_value(node.args["low"]), _is_negated(node))
                self._literal(node.this, "<=", _literal_value(node.args["high"]), _is_negated(node))
            elif isinstance(node, exp.In):
                self._membership(node)
            elif isinstance(node, exp.SetOperation):
                for left, right in zip(outputs(node.this), outputs(node.expression), strict=False):
                    self._equal(left.unalias(), right.unalias())
            elif isinstance(node, exp.Join):
                self._named_join(node)
            elif isinstance(node, _ARITHMETIC):
                self.found.numeric.update(self._columns(node))
            elif isinstance(node, (exp.Min, exp.Max)):
                self.found.extreme.update(self._columns(node))
            elif isinstance(node, exp.Group):
                for key in node.expressions:
                    self.found.grouped.update(self._columns(key))
            elif isinstance(node, exp.Ordered):
                self.found.by_count |= node.find(exp.AggFunc) is not None or self._columns(node) == []
                self.found.ordered.update(self._columns(node))
        bare = bare_column_tables(self.tree)
        for table in self.tree.find_all(exp.Table):
            if {table.alias_or_name.lower(), ""} & bare:
                number = self.numbers[id(table)]
                joined = {place for pair in self.scene.equal for place in pair if place.source == number}
                self.found.keys.update((place.table, place.column) for place in joined)
        self.found.scenes.append(self.scene)

    def _place(self, node: exp.Expression | None) -> Place | None:
        while isinstance(node, _TRANSPARENT):
            node = node.this
        return resolve(node, self.schema, self.numbers) if isinstance(node, exp.Column) else None

    def _columns(self, node: exp.Expression) -> list[Column]:
        places = [self._place(column) for column in node.find_all(exp.Column)]
        return [(place.table, place.column) for place in places if place]

    def _comparison(self, node: exp.Expression, operator: str) -> None:
        left, right = node.this, node.expression
        if isinstance(left, (exp.Literal, exp.Neg, exp.Subquery)):
            left, right, operator = right, left, _MIRRORED.get(operator, operator)
        value = _literal_value(right)
        if value is not None:
            # A group of one row has that row's value for its SUM or AVG.
            inner = left.this if isinstance(left, (exp.Sum, exp.Avg, exp.Min, exp.Max)) else left
            if self._place(inner):
                self._literal(inner, operator, value, _is_negated(node))
            else:
                self._computed(left, value)
            return
        query = right.unnest() if isinstance(right, (exp.Subquery, exp.Paren)) else right
        output = outputs(query)[:1] if isinstance(query, (exp.Query, exp.Subquery)) else [right]
        if operator == "=" and output and not isinstance(output[0].unalias(), exp.AggFunc):
            self._equal(left, output[0].unalias())
        else:
            for column in self._columns(left):
                self.found.linked += [(column, other) for one in output for other in self._columns(one)]

    def _membership(self, node: exp.In) -> None:
        values = tuple(value for one in node.expressions if (value := _literal_value(one)) is not None)
        place = self._place(node.this)
        if values and place:
            self.scene.atoms.append(Atom(place, "in", values, _is_negated(node)))
            self.found.literals.setdefault((place.table, place.column), []).extend(("=", value) for value in values)
        query = node.args.get("query")
        if query is not None and outputs(query):
            self._equal(node.this, outputs(query)[0].unalias())

    def _named_join(self, join: exp.Join) -> None:
        """JOIN ... USING (column) and NATURAL JOIN: columns with the same name are equal."""
        tables = [table for table in (join.parent_select or self.tree).find_all(exp.Table) if id(table) in self.numbers]
        names = {name.name.lower() for name in join.args.get("using") or ()}
        right = join.this
        for left in tables:
            one, other = (self.schema.tables.get(table.name.lower()) for table in (left, right))
            if left is right or not one or not other:
                continue
            shared = one.columns.keys() & other.columns.keys()
            for name in sorted(shared if join.args.get("method") == "NATURAL" else shared & names):
                self._link(
                    Place(self.numbers[id(left)], one.name, name), Place(self.numbers[id(right)], other.name, name)
                )

    def _equal(self, left: exp.Expression, right: exp.Expression) -> None:
        one, other = self._place(left), self._place(right)
        if one and other:
            self._link(one, other)
        else:  # a side is computed: its first column shares values all the same
            self.found.linked += [(a, b) for a in self._columns(left)[:1] for b in self._columns(right)[:1]]

    def _link(self, one: Place, other: Place) -> None:
        self.scene.equal.append((one, other))
        self.found.linked.append(((one.table, one.column), (other.table, other.column)))

    def _literal(self, node: exp.Expression, operator: str, value: Value, negated: bool) -> None:
        place = self._place(node)
        if place and value is not None:
            self.scene.atoms.append(Atom(place, operator, value, negated))
            self.found.literals.setdefault((place.table, place.column), []).append((operator, value))

    def _computed(self, node: exp.Expression, value: Value) -> None:
        """A literal compared with an expression: COUNT(*) > 3, SUM(x) > 100, strftime('%Y', d) = '2008'."""
        if node.find(exp.Count):
            if is_number(value) and 0 <= float(value) <= 40:
                self.found.counts.append(int(float(value)))
            return
        for column in self._columns(node):
            seeds = [value]
            if re.fullmatch(r"(19|20)\d\d", str(value)):
                seeds += [f"{value}-03-14", f"{int(value) + 1}-01-01", f"{int(value) - 1}-12-31"]
            elif is_number(value):
                seeds += [float(value) / 2, float(value) / 3]
            self.found.literals.setdefault(column, []).extend(("computed", seed) for seed in seeds)


def _is_negated(node: exp.Expression) -> bool:
    negated = False
    while isinstance(node.parent, (exp.Not, exp.Paren)):
        node = node.parent
        negated ^= isinstance(node, exp.Not)
    return negated


def _literal_value(node: exp.Expression | None) -> Value:
    while isinstance(node, (exp.Paren, exp.Cast)):
        node = node.this
    sign = -1 if isinstance(node, exp.Neg) else 1
    node = node.this if isinstance(node, exp.Neg) else node
    if not isinstance(node, exp.Literal) or len(node.this) > 200:
        return None
    if node.is_string:
        return node.this
    try:
        number = float(node.this)
    except ValueError:
        return None
    if abs(number) > 2**53:  # a float does not hold such an integer exactly
        return None
    return sign * (int(number) if number.is_integer() else number)


def is_number(value: Value) -> bool:
    """Whether SQLite would store `value` as a number in a numeric column."""
    return isinstance(value, (int, float)) or (value is not None and _NUMBER.fullmatch(value) is not None)


def compare(value: Value, operator: str, other: Value | tuple[Value, ...]) -> bool:
    """Whether `value operator other` holds: text without case; numbers, even if written as text, as numbers."""
    if operator == "in":
        return any(compare(value, "=", one) for one in other)
    if operator == "like":
        return _like(str(other).lower(), str(value).lower())
    if is_number(value) and is_number(other):
        left, right = float(value), float(other)
    else:
        left, right = str(value).lower(), str(other).lower()
    if operator in ("=", "glob"):
        return left == right
    if operator == "!=":
        return left != right
    if operator in ("<", "<="):
        return left < right or (operator == "<=" and left == right)
    return left > right or (operator == ">=" and left == right)


def _like(pattern: str, text: str) -> bool:
    """SQL's LIKE. It backtracks to the last % only; a regular expression could take exponential time."""
    at, position, back = 0, 0, None
    while position < len(text):
        if at < len(pattern) and pattern[at] == "%":
            back, at = (at, position), at + 1
        elif at < len(pattern) and pattern[at] in ("_", text[position]):
            at, position = at + 1, position + 1
        elif back:
            back = (back[0], back[1] + 1)
            at, position = back[0] + 1, back[1]
        else:
            return False
    return not pattern[at:].strip("%")


def neighbours(operator: str, value: Value, random: Random) -> Iterator[Value]:
    """Yield `value` and values near it, which distinguish `column operator value` from similar comparisons."""
    if is_number(value):
        yield value  # as written: '19.30' is not '19.3' in a text column
        number = float(value)
        steps = (1, -1, 2, -3, 10, -10) if number.is_integer() else (0.1, -0.1, 1, -1, 10, -10)
        for step in steps:
            near = int(number) + step if number.is_integer() else round(number + step, 6)
            yield near if isinstance(value, (int, float)) else str(near)
        return
    found = _DATE.fullmatch(value)
    if operator == "like":
        core = value.replace("%", "").replace("_", "z")
        before, after = word(random), word(random)
        filled = value.replace("_", "q")
        yield from (filled.replace("%", after), core, before + core, core + after, before + core + after, core[:-1], "")
        return
    yield value
    if found:
        try:
            day = date(int(found[1]), int(found[2]), int(found[3]))
            for step in (1, -1, 40, -40, 366, -366):
                yield (day + timedelta(days=step)).isoformat() + found[4]
            return
        except (ValueError, OverflowError):
            pass
    # Just above and just below in text order, then texts that LIKE '%...%' would also find.
    yield from (value + "x", value[:-1] or "!", f"{word(random)} {value}", f"{value} {word(random)}", "zz" + value)


_SYLLABLES = ("ka", "vo", "ri", "mel", "tan", "su", "bo", "ler", "qui", "nat", "dor", "fi", "zen", "gru", "wex", "ost")


def word(random: Random) -> str:
    """A made-up word."""
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randint(2, 3)))
