"""Rewrites: queries that mean the same as a given one.

A rewriter yields variants of a query, given as a syntax tree and as text.
"""

from collections.abc import Iterator

from benchmarks.parts.sql_mutants import Tree, each
from qlora.sql.queries import is_ordered

from sqlglot import exp


def other_case(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """Names and keywords in capitals, names in small letters."""
    yield tree.transform(
        lambda node: exp.to_identifier(node.name.upper()) if isinstance(node, exp.Identifier) else node
    ).sql(dialect, normalize_functions="lower")
    yield tree.transform(
        lambda node: exp.to_identifier(node.name.lower(), quoted=True) if isinstance(node, exp.Identifier) else node
    ).sql(dialect)


def text_case(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """Text literals in capitals."""
    upper = tree.copy()
    for literal in upper.find_all(exp.Literal):
        # Only a column compares without case: LOWER(city) = 'BERN' is never true.
        compared = isinstance(literal.parent, (exp.EQ, exp.NEQ, exp.Like, exp.In)) and not literal.parent.this.find(
            exp.Func
        )
        if literal.is_string and literal.this.isascii() and compared:
            literal.replace(exp.Literal.string(literal.this.upper()))
    yield upper.sql(dialect)


def layout(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """Line breaks, comments, a semicolon, a code fence."""
    yield tree.sql(dialect, pretty=True)
    yield f"-- the answer\n{sql} ;"
    yield f"Here is the query:\n```sql\n{sql};\n```\nIt reads the table."


def aliases(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """Other table aliases, and aliases for the output columns."""
    used = {column.name.lower() for column in tree.find_all(exp.Column)}
    renamed = tree.copy()
    for alias in renamed.find_all(exp.TableAlias):
        alias.set("this", exp.to_identifier(alias.name + "_x"))
    for column in renamed.find_all(exp.Column):
        owners = {alias.name for alias in tree.find_all(exp.TableAlias)}
        if column.table in owners:
            column.set("table", exp.to_identifier(column.table + "_x"))
        elif column.table.lower() in {owner.lower() for owner in owners}:
            return
    yield renamed.sql(dialect)
    if isinstance(tree, exp.Select) and "out_1" not in used:
        named = tree.copy()
        selects = [
            one if isinstance(one, (exp.Star, exp.Alias)) or one.name == "*" else exp.alias_(one, f"out_{number}")
            for number, one in enumerate(named.selects)
        ]
        named.set("expressions", selects)
        yield named.sql(dialect)


def conjuncts(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """The sides of AND, OR and comparisons exchanged; a condition that is always true; a double negation."""

    def exchange(node: Tree) -> object:
        left, right = node.this.copy(), node.expression.copy()
        return node.replace(type(node)(this=exp.paren(right), expression=exp.paren(left)))

    def mirror(node: Tree) -> object:
        other = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE}.get(type(node), type(node))
        return node.replace(other(this=node.expression.copy(), expression=node.this.copy()))

    def doubled(node: Tree) -> object:
        return node.set("this", exp.Not(this=exp.paren(exp.Not(this=exp.paren(node.this.copy())))))

    yield from (one.sql(dialect) for one in each(tree, (exp.And, exp.Or), exchange))
    kinds = (exp.EQ, exp.NEQ, exp.GT, exp.LT, exp.GTE, exp.LTE)
    yield from (one.sql(dialect) for one in each(tree, kinds, mirror))
    yield from (one.sql(dialect) for one in each(tree, exp.Where, doubled))

    def always(node: Tree) -> object:
        return node.set("this", exp.and_("1 = 1", node.this.copy()))

    yield from (one.sql(dialect) for one in each(tree, exp.Where, always))


def predicates(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """IN for OR and = ; BETWEEN and two comparisons; NOT = for !=."""

    def as_in(node: Tree) -> object:
        if not isinstance(node.expression, exp.Literal):
            return False
        return node.replace(exp.In(this=node.this.copy(), expressions=[node.expression.copy()]))

    def or_as_in(node: Tree) -> object:
        left, right = node.this.unnest(), node.expression.unnest()
        if not (isinstance(left, exp.EQ) and isinstance(right, exp.EQ) and left.this == right.this):
            return False
        if not isinstance(left.expression, exp.Literal) or not isinstance(right.expression, exp.Literal):
            return False
        return node.replace(
            exp.In(this=left.this.copy(), expressions=[left.expression.copy(), right.expression.copy()])
        )

    def two(node: Tree) -> object:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        return node.replace(exp.paren(exp.and_(low, high)))

    def not_equal(node: Tree) -> object:
        return node.replace(exp.Not(this=exp.paren(exp.EQ(**node.copy().args))))

    yield from (one.sql(dialect) for one in each(tree, exp.EQ, as_in))
    yield from (one.sql(dialect) for one in each(tree, exp.Or, or_as_in))
    yield from (one.sql(dialect) for one in each(tree, exp.Between, two))
    yield from (one.sql(dialect) for one in each(tree, exp.NEQ, not_equal))


def structure(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """A CTE or a subquery around tables or around the whole, joins in another order or as WHERE, COUNT(1), DISTINCT."""
    if isinstance(tree, exp.Select) and not is_ordered(tree) and not any(one.is_star for one in tree.selects):
        yield f"SELECT * FROM ({sql}) AS whole"
        yield f"WITH whole AS ({sql}) SELECT * FROM whole"

    def wrapped(node: Tree) -> object:
        query = exp.select("*").from_(exp.to_table(node.name))
        return node.replace(query.subquery(node.alias_or_name))

    yield from (one.sql(dialect) for one in each(tree, exp.Table, wrapped))

    def one_for_star(node: Tree) -> object:
        return node.set("this", exp.Literal.number(1)) if isinstance(node.this, exp.Star) else False

    yield from (one.sql(dialect) for one in each(tree, exp.Count, one_for_star))

    def swapped(node: Tree) -> object:
        select = node.parent
        start = select.args["from_"]
        if node.side or len(select.args["joins"]) != 1 or any(one.is_star for one in select.selects):
            return False
        first, second = start.this.copy(), node.this.copy()
        start.set("this", second)
        return node.set("this", first)

    def as_where(node: Tree) -> object:
        on = node.args.get("on")
        if node.side or on is None:
            return False
        select = node.parent
        select.where(on.copy(), copy=False)
        return node.replace(exp.Join(this=node.this.copy(), kind="CROSS"))

    yield from (
        one.sql(dialect)
        for one in each(tree, exp.Join, swapped, as_where, lambda n: False if n.side else n.set("kind", "INNER"))
    )

    def as_groups(node: Tree) -> object:
        if (
            not node.args.get("distinct")
            or node.args.get("group")
            or any(one.find(exp.AggFunc) for one in node.selects)
        ):
            return False
        if not all(isinstance(one, exp.Column) for one in node.selects) or node.args.get("order"):
            return False
        node.set("distinct", None)
        return node.set("group", exp.Group(expressions=[one.copy() for one in node.selects]))

    yield from (one.sql(dialect) for one in each(tree, exp.Select, as_groups))


def qualified(tree: Tree, sql: str, dialect: str = "sqlite") -> Iterator[str]:
    """Every column of a query over one table with that table's name."""
    tables = list(tree.find_all(exp.Table))
    if len(tables) == 1 and not tables[0].alias and not tree.find(exp.Subquery):
        copy = tree.copy()
        for column in copy.find_all(exp.Column):
            column.set("table", exp.to_identifier(tables[0].name))
        yield copy.sql(dialect)


REWRITERS = (other_case, text_case, layout, aliases, conjuncts, predicates, structure, qualified)
