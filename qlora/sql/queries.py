"""Properties of a query that its text shows, and the rewrites that scoring needs. sqlglot parses."""

from collections.abc import Iterator

from qlora.sql.parsing import parse
from qlora.sql.places import Place, common_table, number_tables, outputs, resolve, sources
from qlora.sql.schema import Schema

import sqlglot
from sqlglot import exp
from sqlglot.tokens import TokenType

_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.In, exp.Between)
_MIRRORED = {exp.GT: exp.LT, exp.GTE: exp.LTE}
_SHUFFLED = (exp.Window, exp.GroupConcat, exp.Anonymous)


def plain_strings(sql: str, schema: Schema) -> str:
    """Turn "text" into 'text' where no column, table or alias has that name.

    SQLite may accept such a string, depending on how it was built, and many gold queries rely on it. See
    https://www.sqlite.org/quirks.html, "Double-quoted String Literals Are Accepted".
    """
    tree = parse(sql) if '"' in sql else None
    if tree is None:
        return sql
    names = {*schema.tables, *schema.views}.union(*(table.columns for table in schema.tables.values()))
    names |= {node.alias.lower() for node in tree.find_all(exp.Alias, exp.Table, exp.Subquery, exp.CTE)}
    tokens = sqlglot.tokenize(sql, read="sqlite")
    pieces, end = [], 0
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        named = any(other and other.token_type in (TokenType.DOT, TokenType.ALIAS) for other in (before, after))
        quoted = token.token_type == TokenType.IDENTIFIER and sql[token.start] == '"'
        if quoted and not named and token.text.lower() not in names:
            text = token.text.replace("'", "''")
            pieces += [sql[end : token.start], f"'{text}'"]
            end = token.end + 1
    return "".join([*pieces, sql[end:]])


def is_ordered(tree: exp.Expression | None) -> bool:
    """Whether the outermost query has ORDER BY."""
    return tree is not None and tree.args.get("order") is not None


def is_fragile(tree: exp.Expression | None) -> bool:
    """Whether the result may depend on the order in which rows are stored: ties, LIMIT, bare columns, windows."""
    if tree is None or tree.find(exp.Limit, exp.Offset, exp.Order, *_SHUFFLED):
        return True
    return any(_bare_columns(select) for select in tree.find_all(exp.Select))


def shows_case(tree: exp.Expression | None) -> bool:
    """Whether the query changes the case of a text that it shows: then the case of its result matters."""
    if tree is None:
        return False
    functions = (exp.Upper, exp.Lower, exp.Initcap)
    shown = [node for projection in outputs(tree) for node in projection.find_all(*functions)]
    return any(node.find_ancestor(exp.Predicate, exp.Ordered, exp.Select) is node.parent_select for node in shown)


def limits_without_order(tree: exp.Expression | None) -> bool:
    """Whether a LIMIT without ORDER BY picks rows: which ones is undetermined."""
    if tree is None:
        return False
    for limit in tree.find_all(exp.Limit, exp.Offset):
        query = limit.parent
        one_row = isinstance(query, exp.Select) and not query.args.get("group") and _is_aggregate(query)
        if not query.args.get("order") and not one_row and not isinstance(query.parent, exp.Exists):
            return True
    return False


def _is_aggregate(select: exp.Select) -> bool:
    return any(True for projection in select.selects for _ in aggregates(projection))


def aggregates(node: exp.Expression) -> Iterator[exp.AggFunc]:
    """The aggregates of the query that `node` is part of: not those of subqueries, nor window functions.

    sqlglot counts RANK, LAG and the like as aggregates; what is OVER a window is none, but its arguments may be.
    """
    if isinstance(node, exp.Query):
        return
    if isinstance(node, exp.AggFunc) and not _over(node):
        yield node
        return
    for child in node.iter_expressions():
        yield from aggregates(child)


def _over(function: exp.Expression) -> bool:
    """Whether a window function is what OVER applies to."""
    node = function
    while isinstance(node.parent, (exp.IgnoreNulls, exp.RespectNulls, exp.Filter, exp.WithinGroup)):
        node = node.parent
    return isinstance(node.parent, exp.Window) and node.parent.this is node


def needs_shuffling(tree: exp.Expression | None) -> bool:
    """Whether only runs on shuffled rows show that the result depends on the stored order, and `probes` do not."""
    if tree is None or tree.find(*_SHUFFLED):
        return True
    return any(_bare_columns(select) and select.find(exp.Min, exp.Max) for select in tree.find_all(exp.Select))


def _bare_columns(select: exp.Select) -> list[exp.Column | exp.Star]:
    """The columns that a grouped or aggregated query shows or sorts by, but neither groups by nor aggregates."""
    group = select.args.get("group")
    if not group and not _is_aggregate(select):
        return []
    grouped = {key.name.lower() for key in group.expressions} if group else set()
    named = {projection.alias.lower() for projection in select.selects if projection.alias}
    shown = [
        projection
        for number, projection in enumerate(select.selects, start=1)
        if not {projection.alias.lower(), str(number)} & grouped  # GROUP BY of an alias or of a position
    ]
    bare = []
    for part in (*shown, select.args.get("order"), select.args.get("having")):
        for node in part.find_all(exp.Column, exp.Star) if part else ():
            if node.parent_select is not select or _is_aggregated(node) or node.name.lower() in grouped:
                continue
            if part in shown or node.name.lower() not in named:
                bare.append(node)
    return bare


def _is_aggregated(column: exp.Expression) -> bool:
    function = column.find_ancestor(exp.AggFunc, exp.Select)
    while isinstance(function, exp.AggFunc):
        if not _over(function):
            return True
        function = function.find_ancestor(exp.AggFunc, exp.Select)
    return False


def bare_column_tables(tree: exp.Expression) -> set[str]:
    """The names (aliases) of the tables that bare columns are read from; "" for a column that names no table."""
    return {
        node.table.lower() if isinstance(node, exp.Column) else ""
        for select in tree.find_all(exp.Select)
        for node in _bare_columns(select)
    }


def probes(tree: exp.Expression, schema: Schema) -> list[exp.Expression]:
    """Variants of a query that give the same result wherever it is determined.

    Two break ties by all output columns, ascending and descending, and so order the rows of a LIMIT without ORDER BY.
    Two replace each bare column of a group by its least and by its greatest value: SQLite takes that of any row.
    """
    found = []
    for descending in (False, True):
        tied = tree.copy()
        for query in list(tied.find_all(exp.Select, exp.SetOperation)):
            if query.args.get("order") or query.args.get("limit"):
                order = query.args.get("order") or exp.Order(expressions=[])
                for position in range(1, _width(query, schema) + 1):
                    key = exp.Literal.number(position)
                    order.append("expressions", exp.Ordered(this=key, desc=descending, nulls_first=not descending))
                if order.expressions:
                    query.set("order", order)
        found.append(tied)
        chosen = tree.copy()
        for select in list(chosen.find_all(exp.Select)):
            if not select.find(exp.Min, exp.Max):  # with either, bare columns come from the extreme's row
                for node in _bare_columns(select):
                    if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
                        node.replace(exp.Max(this=node.copy()) if descending else _least(node))
        found.append(chosen)
    return list(dict.fromkeys(probe for probe in found if probe != tree))


def _least(column: exp.Column) -> exp.Expression:
    """The least value of a group, where NULL, which MIN ignores, is less than all others."""
    counted = exp.EQ(this=exp.Count(this=column.copy()), expression=exp.Count(this=exp.Star()))
    return exp.Case().when(counted, exp.Min(this=column.copy()))


def _width(query: exp.Expression, schema: Schema) -> int:
    """The number of columns of a query's result; 0 if it is not evident."""
    projections = outputs(query)
    if not any(projection.is_star for projection in projections):
        return len(projections)
    tables = [schema.tables.get(source.name.lower()) for source in sources(projections[0].parent_select)]
    if len(projections) > 1 or isinstance(projections[0], exp.Column) or None in tables:
        return 0
    return sum(len(table.columns) for table in tables)


def without_distinct(tree: exp.Expression) -> exp.Expression:
    """The query without DISTINCT, which annotators use inconsistently (Zhong et al. 2020, section 4.3)."""
    tree = tree.copy()
    for select in tree.find_all(exp.Select):
        select.set("distinct", None)
    for distinct in list(tree.find_all(exp.Distinct)):
        if len(distinct.expressions) == 1:
            distinct.replace(distinct.expressions[0].copy())
    return tree


def normal_form(tree: exp.Expression | None, schema: Schema) -> object:
    """A value that two queries share only if they mean the same; None if no such value is found cheaply.

    It does not depend on the case of names and of text compared with a column, aliases, redundant qualification and
    parentheses, the order of conjuncts and of a comparison's sides, BETWEEN instead of two comparisons, and COUNT(1)
    instead of COUNT(*).
    """
    if tree is None:
        return None
    numbers = number_tables(tree)
    aliases = {alias.alias.lower() for alias in tree.find_all(exp.Alias)}
    columns = {}
    try:
        for column in tree.find_all(exp.Column):
            columns[id(column)] = resolve(column, schema, numbers)
            if columns[id(column)] is None or (column.name.lower() in aliases and not column.table):
                return None
        if any(common_table(table) for table in tree.find_all(exp.Table)):
            return None
        return _form(tree, columns)
    except RecursionError:
        return None


def _form(node: object, columns: dict[int, Place]) -> object:
    if isinstance(node, list):
        return tuple(_form(part, columns) for part in node)
    if not isinstance(node, exp.Expression):
        return node
    if isinstance(node, (exp.Paren, exp.Alias)):
        return _form(node.this, columns)
    if isinstance(node, exp.Column):
        return columns[id(node)]
    if isinstance(node, exp.Table):
        return ("table", node.name.lower())
    if isinstance(node, exp.Literal):
        compared = isinstance(node.parent, _COMPARISONS) and any(
            isinstance(side, exp.Column) for side in (node.parent.this, node.parent.args.get("expression"))
        )
        return ("literal", node.is_string, _lower(node.this) if compared else node.this)
    if isinstance(node, (exp.And, exp.Between)):
        return ("And", *sorted(set(_conjuncts(node, columns)), key=repr))
    if isinstance(node, exp.Or):
        return ("Or", *sorted({_form(part, columns) for part in node.flatten()}, key=repr))
    if type(node) in (exp.EQ, exp.NEQ):
        return (type(node).__name__, *sorted((_form(side, columns) for side in (node.this, node.expression)), key=repr))
    if type(node) in _MIRRORED:
        return _comparison(_MIRRORED[type(node)], _form(node.expression, columns), _form(node.this, columns))
    if isinstance(node, exp.Count) and isinstance(node.this, exp.Literal):
        return ("Count", ("this", ("Star",)))
    # A join is the same whether `kind` is INNER or absent; `big_int` is sqlglot's own mark.
    arguments = {k: v for k, v in node.args.items() if v and k != "big_int" and (k, v) != ("kind", "INNER")}
    return (type(node).__name__, *((name, _form(value, columns)) for name, value in arguments.items()))


def _conjuncts(node: exp.Expression, columns: dict[int, Place]) -> list:
    node = node.unnest()
    if isinstance(node, exp.And):
        return _conjuncts(node.this, columns) + _conjuncts(node.expression, columns)
    if isinstance(node, exp.Between):
        value, low, high = (_form(node.args[part], columns) for part in ("this", "low", "high"))
        return [_comparison(exp.LTE, low, value), _comparison(exp.LTE, value, high)]
    return [_form(node, columns)]


def _comparison(kind: type, left: object, right: object) -> tuple:
    return (kind.__name__, ("this", left), ("expression", right))


def _lower(text: str) -> str:
    """Lower case as SQLite's NOCASE sees it: ASCII only."""
    return "".join(character.lower() if character.isascii() else character for character in text)
