"""Read the comparisons, joins and aggregates of a query, which test data must exercise."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from qlora.sql.conditions import Condition, Mentions, Term, Variable, limited, moment_kind
from qlora.sql.documents import JSON_READERS
from qlora.sql.kinds import MOMENTS, NUMBERS, is_believable
from qlora.sql.literals import Value, compare, is_number, literal_value
from qlora.sql.places import Place, number_tables, outputs, resolve
from qlora.sql.queries import bare_column_tables
from qlora.sql.schema import Schema

from sqlglot import exp

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
    exp.ILike: "like",
    exp.Glob: "glob",
}
_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
_TRANSPARENT = (exp.Paren, exp.Cast, exp.Lower, exp.Upper, exp.Trim, exp.Abs)
_ARITHMETIC = (exp.Sum, exp.Avg, exp.Add, exp.Sub, exp.Mul, exp.Div)
_OPERANDS = (*_ARITHMETIC, exp.Paren, exp.Neg, exp.Abs, exp.Round, exp.Coalesce, exp.Cast, exp.Distinct)
_CONNECTORS = (exp.And, exp.Or, exp.Not, exp.Paren, exp.Where, exp.Having, exp.Join, exp.If, exp.Xor)
_COUNTING = (exp.Count, exp.RowNumber, exp.Rank, exp.DenseRank, exp.Ntile)
_MOST_ROWS = 1_000  # in a group or a result whose size a query asks for


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
    equal, by a join, IN or a set operation. `conditions`: all other predicates on its rows. `terms`: the computed
    expressions that it shows, groups by or orders by. `sources`: (table, ordinal) -> number of the mention, for the
    variables of both.
    """

    tables: dict[int, str] = field(default_factory=dict)
    atoms: list[Atom] = field(default_factory=list)
    equal: list[tuple[Place, Place]] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    sources: dict[tuple[str, int], int] = field(default_factory=dict)

    def place(self, variable: Variable) -> Place | None:
        """The place that the variable is in this query."""
        number = self.sources.get((variable.table, variable.ordinal))
        return None if number is None else Place(number, variable.table, variable.column)


@dataclass
class Constraints:
    """The constraints of some queries on the data of a schema.

    `scenes`: one for each query. `literals`: column -> (operator, value) of its comparisons. `linked`: pairs of columns
    that are compared. `numeric`: columns used in arithmetic. `extreme`: columns under MIN and MAX. `grouped`,
    `ordered`: columns of GROUP BY and of ORDER BY. `keys`: joined columns that must be unique for a bare output column
    to have one value. `counts`: numbers that a COUNT is compared with. `limits`: the rows that a LIMIT needs.
    `by_count`: whether a query orders by an aggregate. `kinds`: the kinds of the columns (see `schema.Table`), "" where
    the first query contradicts the declared one, and that of a date where it reads a date of text.
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
    limits: list[int] = field(default_factory=list)
    by_count: bool = False
    kinds: dict[Column, str] = field(default_factory=dict)


def read_constraints(trees: list[exp.Expression], schema: Schema) -> Constraints:
    """Collect the constraints of queries, given as syntax trees. The first is the one that the data is for."""
    found = Constraints()
    for table in schema.tables.values():
        found.kinds |= {(table.name, column): table.kinds.get(column, "") for column in table.columns}
    readers = []
    for number, tree in enumerate(trees):
        try:
            reader = _Reader(tree, schema, found)
            if number == 0:
                reader.believe()
            reader.read()
            readers.append(reader)
        except RecursionError:
            continue  # a recursive CTE or very deep nesting: only the other queries count
    involved = {
        variable for scene in found.scenes for one in (*scene.conditions, *scene.terms) for variable in one.variables
    }
    for reader in readers:
        reader.add_plain(involved)
    return found


class _Reader:
    """Adds the constraints of one query to `found`."""

    def __init__(self, tree: exp.Expression, schema: Schema, found: Constraints):
        self.tree, self.schema, self.found = tree, schema, found
        self.nodes = list(tree.walk())
        self.tables = [node for node in self.nodes if isinstance(node, exp.Table)]
        self.series = [one for one in self.nodes if isinstance(one, (exp.GenerateSeries, exp.ExplodingGenerateSeries))]
        self.numbers = number_tables(tree)
        self.mentions = Mentions.of(tree, schema, self.numbers)
        self.scene = Scene(sources=self.mentions.sources)
        self.plain: list[tuple[exp.Expression, Place]] = []  # comparisons with literals

    def believe(self) -> None:
        """Take from the query what kinds of values the columns have, where the schema does not say, or says wrongly."""
        kinds = self.found.kinds
        for node in self.nodes:
            kind = moment_kind(node)
            for column in self._columns(node) if kind else ():
                if kinds[column] in ("", "text") or (kinds[column] == "date" and "%H" in node.sql()):
                    kinds[column] = "timestamp" if kinds[column] == "date" or kind == "timestamp" else kind
        for node in self.nodes:
            if isinstance(node, JSON_READERS) or (isinstance(node, exp.Func) and "json" in node.sql_name().lower()):
                for column in self._columns(node.this if isinstance(node.this, exp.Expression) else node):
                    kinds[column] = "json" if kinds[column] in ("", "text") else kinds[column]
        for node in self.nodes:
            if not isinstance(node, (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.In, exp.Between)):
                continue
            place = self._place(node.this, (exp.Paren,))
            others = [node.expression, *node.expressions, node.args.get("low"), node.args.get("high")]
            values = [literal_value(one) for one in others]
            column = (place.table, place.column) if place else None
            if column and not all(value is None or is_believable(kinds[column], value) for value in values):
                kinds[column] = ""

    def read(self) -> None:
        for table in self.tables:
            if table.name.lower() in self.schema.tables:
                self.scene.tables[self.numbers[id(table)]] = table.name.lower()
        for node in self.nodes:
            self._read_node(node)
        bare = bare_column_tables(self.tree)
        for table in self.tables if bare else ():
            if {table.alias_or_name.lower(), ""} & bare:
                number = self.numbers[id(table)]
                joined = {place for pair in self.scene.equal for place in pair if place.source == number}
                self.found.keys.update((place.table, place.column) for place in joined)
        self.found.scenes.append(self.scene)

    def add_plain(self, involved: set[Variable]) -> None:
        """Make conditions of the comparisons with literals that are on variables of other conditions or terms."""
        for node, place in self.plain:
            if self.mentions.variable(place) in involved:
                self._condition(node)
        self.scene.conditions, self.scene.terms = limited(self.scene.conditions), limited(self.scene.terms)

    def _read_node(self, node: exp.Expression) -> None:
        if type(node) in _OPERATORS:
            self._comparison(node, _OPERATORS[type(node)])
        elif isinstance(node, exp.Between):
            self._between(node)
        elif isinstance(node, exp.In):
            self._membership(node)
        elif isinstance(node, exp.Predicate) and not isinstance(node, exp.SubqueryPredicate):
            self._condition(node)
        elif isinstance(node, exp.SetOperation):
            for left, right in zip(outputs(node.this), outputs(node.expression), strict=False):
                self._equal(left.unalias(), right.unalias())
        elif isinstance(node, exp.Join):
            self._named_join(node)
        elif isinstance(node, (exp.Limit, exp.Offset)):
            number = literal_value(node.expression)
            if isinstance(number, int) and 0 < number <= _MOST_ROWS:
                self.found.limits.append(number)
        elif isinstance(node, exp.Group):
            for key in node.expressions:
                self.found.grouped.update(self._columns(key))
        elif isinstance(node, exp.Window):
            for key in node.args.get("partition_by") or ():
                self.found.grouped.update(self._columns(key))
        elif isinstance(node, exp.Ordered):
            self.found.by_count |= node.find(exp.AggFunc) is not None or self._columns(node) == []
            self.found.ordered.update(self._columns(node))
        if isinstance(node, _ARITHMETIC):
            self.found.numeric.update(self._operands(node))
        elif isinstance(node, (exp.Min, exp.Max)):
            self.found.extreme.update(self._columns(node))
        if not isinstance(node, (exp.Predicate, exp.Connector, exp.Not)):
            if isinstance(node.parent, _CONNECTORS) and node.arg_key in ("this", "expression", "on"):
                self._truth(node)
            if isinstance(node.parent, (exp.Select, exp.Alias, exp.Group, exp.Ordered, exp.AggFunc, exp.Window)):
                self._term(node)

    def _truth(self, node: exp.Expression) -> None:
        """A column or a function that is a condition by itself: WHERE active, WHERE INSTR(name, 'x')."""
        if isinstance(node.parent, (exp.Paren, exp.If)) and not isinstance(node, (exp.Column, exp.Func)):
            return
        top = node
        while isinstance(top.parent, (exp.Paren, exp.And, exp.Or, exp.Not)):
            top = top.parent
        is_if = isinstance(top.parent, exp.If) and top.arg_key == "this"
        if is_if or isinstance(top.parent, (exp.Where, exp.Having)) or top.arg_key == "on":
            self._condition(node)

    def _condition(self, node: exp.Expression) -> None:
        found = self.mentions.condition(node, not _is_negated(node))
        if found:
            self.scene.conditions.append(found)

    def _term(self, node: exp.Expression) -> None:
        if isinstance(node, (exp.Func, exp.Binary, exp.Unary, exp.Bracket)) and not isinstance(node, exp.AggFunc):
            found = self.mentions.term(node)
            if found:
                self.scene.terms.append(found)

    def _place(self, node: exp.Expression | None, transparent: tuple[type, ...] = _TRANSPARENT) -> Place | None:
        while isinstance(node, transparent):
            node = node.this
        return resolve(node, self.schema, self.numbers) if isinstance(node, exp.Column) else None

    def _columns(self, node: exp.Expression) -> list[Column]:
        places = [self._place(column) for column in node.find_all(exp.Column)]
        return [(place.table, place.column) for place in places if place]

    def _operands(self, node: exp.Expression) -> Iterator[Column]:
        """The columns that arithmetic is done with, as they are."""
        place = self._place(node, (exp.Paren,))
        if place:
            yield place.table, place.column
        for child in node.iter_expressions() if isinstance(node, _OPERANDS) else ():
            yield from self._operands(child)

    def _plain_place(self, node: exp.Expression, operator: str) -> Place | None:
        """The place of a column whose comparison with a literal `neighbours` knows values for."""
        place = self._place(node, (exp.Paren,))
        kind = self.found.kinds[place.table, place.column] if place else ""
        return None if kind in MOMENTS or (kind in NUMBERS and operator in ("like", "glob")) else place

    def _comparison(self, node: exp.Expression, operator: str) -> None:
        left, right = node.this, node.expression
        if isinstance(left, (exp.Literal, exp.Neg, exp.Subquery)):
            left, right, operator = right, left, _MIRRORED.get(operator, operator)
        value = literal_value(right)
        if value is not None:
            # A group of one row has that row's value for its SUM or AVG.
            inner = left.this if isinstance(left, (exp.Sum, exp.Avg, exp.Min, exp.Max)) else left
            place = self._plain_place(inner, operator)
            if place:
                self._literal(place, operator, value, _is_negated(node))
                self.plain.append((node, place))
            elif not self._counted(left, value):
                self._condition(node)
            return
        if not (operator == "=" and isinstance(left, exp.Column) and isinstance(right, exp.Column)):
            self._condition(node)
        if operator == "=":
            self._listed(left, right)
        right = right.this if isinstance(right, (exp.Any, exp.All)) else right
        query = right.unnest() if isinstance(right, (exp.Subquery, exp.Paren)) else right
        output = outputs(query)[:1] if isinstance(query, (exp.Query, exp.Subquery)) else [right]
        if operator == "=" and output and not isinstance(output[0].unalias(), exp.AggFunc):
            self._equal(left, output[0].unalias())
        else:
            for column in self._columns(left):
                self.found.linked += [(column, other) for one in output for other in self._columns(one)]

    def _listed(self, left: exp.Expression, right: exp.Expression) -> None:
        """A column that is compared with a series takes values at both of its ends."""
        columns = [*self._columns(left), *self._columns(right)]
        ends = [one.args[name] for one in self.series for name in ("start", "end")] if len(columns) == 1 else []
        for end in ends:
            value, kind = literal_value(end), self.found.kinds[columns[0]]
            if kind == "timestamp" and isinstance(value, str) and len(value) == 10:
                value += " 09:30:00"
            if value is not None:
                self.found.literals.setdefault(columns[0], []).append(("=", value))

    def _between(self, node: exp.Between) -> None:
        place = self._plain_place(node.this, "<=")
        low, high = (literal_value(node.args[part]) for part in ("low", "high"))
        if place and low is not None and high is not None:
            self._literal(place, ">=", low, _is_negated(node))
            self._literal(place, "<=", high, _is_negated(node))
            self.plain.append((node, place))
        elif not (self._counted(node.this, low) and self._counted(node.this, high)):
            self._condition(node)

    def _membership(self, node: exp.In) -> None:
        values = tuple(value for one in node.expressions if (value := literal_value(one)) is not None)
        place = self._plain_place(node.this, "in")
        if values and place:
            self.scene.atoms.append(Atom(place, "in", values, _is_negated(node)))
            self.found.literals.setdefault((place.table, place.column), []).extend(("=", value) for value in values)
            self.plain.append((node, place))
        elif node.expressions:
            self._condition(node)
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

    def _literal(self, place: Place, operator: str, value: Value, negated: bool) -> None:
        self.scene.atoms.append(Atom(place, operator, value, negated))
        self.found.literals.setdefault((place.table, place.column), []).append((operator, value))

    def _counted(self, node: exp.Expression, value: Value) -> bool:
        """Whether `node`, which is compared with `value`, is a number of rows or a rank."""
        if isinstance(node, exp.Column):
            inner = self.mentions.inlined(node)
            node = node if inner is None else inner
        if node.find(*_COUNTING) is None:
            return False
        if is_number(value) and 0 <= float(value) <= _MOST_ROWS:
            self.found.counts.append(int(float(value)))
        return True


def _is_negated(node: exp.Expression) -> bool:
    negated = False
    while isinstance(node.parent, (exp.Not, exp.Paren)):
        node = node.parent
        negated ^= isinstance(node, exp.Not)
    return negated
