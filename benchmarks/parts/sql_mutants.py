"""Mutants: queries that mean something else than a given one.

A mutator yields changed copies of a syntax tree. Each has one change.
"""

from collections.abc import Callable, Iterator

from qlora.sql.schema import Schema

from sqlglot import exp

Tree = exp.Expression
Change = Callable[[Tree], object]


def each(tree: Tree, kinds: type | tuple[type, ...], *changes: Change) -> Iterator[Tree]:
    """Copies of `tree`, each with one node of `kinds` changed in one way. A change that returns False made none."""
    for index, _ in enumerate(list(tree.find_all(kinds))):
        for change in changes:
            copy = tree.copy()
            if change(list(copy.find_all(kinds))[index]) is not False:
                yield copy


def becomes(kind: type) -> Change:
    """Replace a node by one of `kind` with the same arguments."""
    return lambda node: False if type(node) is kind else node.replace(kind(**node.copy().args))


def aggregates(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """MAX for MIN, SUM for AVG, ..., and COUNT of the other kind."""
    yield from each(tree, (exp.Max, exp.Min, exp.Sum, exp.Avg), *map(becomes, (exp.Max, exp.Min, exp.Sum, exp.Avg)))

    def count_distinct(node: Tree) -> object:
        if not isinstance(node.this, exp.Column):
            return False
        return node.set("this", exp.Distinct(expressions=[node.this.copy()]))

    yield from each(tree, exp.Count, count_distinct)
    yield from each(tree, (exp.Sum, exp.Avg), becomes(exp.Count))


def comparisons(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """> for >=, = for !=, and so on."""
    kinds = (exp.GT, exp.GTE, exp.LT, exp.LTE)
    yield from each(tree, kinds, *map(becomes, kinds))

    def in_condition(change: Change) -> Change:
        return lambda node: False if node.find_ancestor(exp.Join) else change(node)

    yield from each(tree, (exp.EQ, exp.NEQ), *(in_condition(becomes(kind)) for kind in (exp.EQ, exp.NEQ, exp.LTE)))


def conditions(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """A conjunct dropped, a whole WHERE dropped, OR for AND, AND for OR, NOT dropped."""
    yield from each(tree, (exp.And, exp.Or), lambda node: node.replace(node.this), lambda n: n.replace(n.expression))
    yield from each(tree, exp.Where, lambda node: node.pop())
    yield from each(tree, exp.And, becomes(exp.Or))
    yield from each(tree, exp.Or, becomes(exp.And))
    yield from each(tree, exp.Not, lambda node: node.replace(node.this))


def literals(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """A number one more or one less, a text with a letter more or less."""

    def number(step: int) -> Change:
        def change(node: Tree) -> object:
            if node.is_string or node.find_ancestor(exp.Limit):
                return False
            try:
                return node.replace(exp.Literal.number(int(node.this) + step))
            except ValueError:
                return node.replace(exp.Literal.number(round(float(node.this) + step / 10, 4)))

        return change

    def text(new: Callable[[str], str]) -> Change:
        return lambda node: node.replace(exp.Literal.string(new(node.this))) if node.is_string and node.this else False

    texts = (text(lambda old: old + "s"), text(lambda old: old[:-1]), text(lambda old: "the " + old))
    yield from each(tree, exp.Literal, number(1), number(-1), *texts)


def patterns(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """LIKE with one of its % lost, and = for LIKE."""

    def without(side: str) -> Change:
        def change(node: Tree) -> object:
            old = node.expression.name
            new = old.removeprefix("%") if side == "left" else old.removesuffix("%")
            return False if new == old else node.expression.replace(exp.Literal.string(new))

        return change

    yield from each(tree, exp.Like, without("left"), without("right"), becomes(exp.EQ))


def distinct(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """DISTINCT dropped or added, where rows can be duplicates and their number shows."""

    def toggle(node: Tree) -> object:
        if (
            node.parent
            or node.args.get("group")
            or node.args.get("limit")
            or any(o.find(exp.AggFunc) for o in node.selects)
        ):
            return False
        return node.set("distinct", None if node.args.get("distinct") else exp.Distinct())

    def plain(node: Tree) -> object:
        return node.replace(node.expressions[0]) if isinstance(node.parent, exp.Count) else False

    yield from each(tree, exp.Select, toggle)
    yield from each(tree, exp.Distinct, plain)


def joins(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """LEFT for INNER, either way round, and a join without its condition.

    LEFT JOIN differs only where the rows that it adds, with NULLs, are not removed again: by WHERE, by a later join, by
    HAVING with an aggregate of theirs, by IN, or by an aggregate that is all that is shown of them.
    """

    def is_tested(table: Tree, select: exp.Select, join: Tree) -> bool:
        later = select.args["joins"][select.args["joins"].index(join) + 1 :]
        having = select.args.get("having")
        tests = [
            one for one in (select.args.get("where"), *later, *(having.find_all(exp.AggFunc) if having else ())) if one
        ]
        if isinstance(select.find_ancestor(exp.In, exp.Select), exp.In) and not select.find_ancestor(exp.Not):
            tests += select.selects
        if not select.args.get("group") and all(isinstance(one, exp.AggFunc) for one in select.selects):
            tests += select.selects
        names = {table.alias_or_name.lower(), ""}
        return any(column.table.lower() in names for test in tests for column in test.find_all(exp.Column))

    def outer(node: Tree) -> object:
        return False if is_tested(node.this, node.parent, node) else node.set("side", "LEFT")

    def swapped(node: Tree) -> object:
        select = node.parent
        start = select.args["from_"]
        if len(select.args["joins"]) != 1 or is_tested(start.this, select, node):
            return False
        first, second = start.this.copy(), node.this.copy()
        start.set("this", second)
        node.set("this", first)
        return node.set("side", "LEFT")

    yield from each(tree, exp.Join, outer, swapped, lambda node: node.set("on", None))


def ordering(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """The other direction, no order, a LIMIT of one more or none."""

    def more(node: Tree) -> object:
        return node.expression.replace(exp.Literal.number(int(node.expression.name) + 1))

    yield from each(tree, exp.Ordered, lambda node: node.set("desc", not node.args.get("desc")))
    yield from each(tree, exp.Order, lambda node: node.pop())
    yield from each(tree, exp.Limit, lambda node: node.pop(), more)


def groups(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """GROUP BY or HAVING dropped."""
    yield from each(tree, exp.Having, lambda node: node.pop())

    def ungrouped(node: Tree) -> object:
        node.parent.set("having", None)
        return node.pop()

    yield from each(tree, exp.Group, ungrouped)


def set_operations(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """One set operator for another, the sides of EXCEPT exchanged, one side alone."""
    kinds = (exp.Union, exp.Intersect, exp.Except)
    yield from each(tree, kinds, *map(becomes, kinds))
    yield from each(tree, exp.Union, lambda node: node.set("distinct", not node.args.get("distinct")))

    def exchanged(node: Tree) -> object:
        left, right = node.this.copy(), node.expression.copy()
        node.set("this", right)
        return node.set("expression", left)

    yield from each(tree, exp.Except, exchanged)
    yield from each(tree, kinds, lambda node: node.replace(node.this), lambda node: node.replace(node.expression))


def columns(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """Another column of the same table, in any one place outside of a join's condition."""
    for index, column in enumerate(list(tree.find_all(exp.Column))):
        if column.find_ancestor(exp.Join) or isinstance(column.this, exp.Star):
            continue
        for table in schema.tables.values():
            if column.name.lower() not in table.columns:
                continue
            for other in table.columns:
                if other != column.name.lower():
                    copy = tree.copy()
                    twin = list(copy.find_all(exp.Column))[index]
                    twin.set("this", exp.to_identifier(other, quoted=True))
                    yield copy


def functions(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """A function dropped from around its argument; another part of a date."""
    kinds = (exp.Lower, exp.Upper, exp.Trim, exp.Abs, exp.Round, exp.Coalesce, exp.Substring, exp.Length, exp.Cast)
    yield from each(tree, kinds, lambda node: node.replace(node.this.copy()))

    def another_part(node: Tree) -> object:
        parts = {"%Y": "%m", "%m": "%d", "%d": "%m", "%H": "%M", "%w": "%d", "%Y-%m": "%Y"}
        if not node.is_string or node.this not in parts:
            return False
        return node.replace(exp.Literal.string(parts[node.this]))

    yield from each(tree, exp.Literal, another_part)
    yield from each(tree, (exp.Add, exp.Sub, exp.Mul, exp.Div), *map(becomes, (exp.Add, exp.Sub, exp.Mul)))


def windows(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """No partition, the other direction, another ranking."""
    yield from each(
        tree, exp.Window, lambda node: node.set("partition_by", None) if node.args.get("partition_by") else False
    )
    ranks = (exp.Rank, exp.DenseRank, exp.RowNumber)

    def ranked(kind: type) -> Change:
        return lambda node: False if type(node) is kind else node.replace(kind())

    yield from each(tree, ranks, *map(ranked, ranks))


MUTATORS = (
    functions,
    windows,
    aggregates,
    comparisons,
    conditions,
    literals,
    patterns,
    distinct,
    joins,
    ordering,
    groups,
    set_operations,
    columns,
)
