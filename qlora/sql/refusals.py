"""What a PostgreSQL or MySQL server would refuse of a query, although its translation runs on SQLite."""

from qlora.sql.function_names import EXISTING, TRANSLATED
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import Schema
from qlora.sql.scopes import MOMENTS, NUMBERS, Scopes

import sqlglot
from sqlglot import exp
from sqlglot.tokens import TokenType

_TYPE_NAMES = """
    numeric decimal varchar char character varying timestamp time interval bit float precision signed unsigned
    datetime
"""
_TYPES = frozenset(_TYPE_NAMES.split())
_KEYWORDS = """
    in and or not where on as over values exists using any all some filter group by then else when having select
    distinct union with from join set case between like ilike is intersect except limit offset array row partition
    window order end materialized lateral return div mod xor regexp rlike similar to escape cube rollup sets
    grouping within only table recursive cross inner left right full outer natural both leading trailing for placing
    separator binary if replace interval collate tablesample system bernoulli
"""
_WORDS = frozenset(_KEYWORDS.split()) | {"grouping sets"}


def check(sql: str, tree: exp.Expression, dialect: str, schema: Schema) -> None:
    """Raise QueryError, with the class of the error, if the server would refuse the query."""
    if not isinstance(tree, (exp.Query, exp.Subquery)):
        raise QueryError("not_a_query", f"{tree.key.upper()} is not a query")
    scopes = Scopes(schema, dialect)
    _check_tables(tree, scopes)
    _check_functions(sql, tree, dialect)
    _check_columns(tree, scopes)
    if dialect == "postgres":
        _check_groups(tree, scopes)
        _check_types(tree, scopes)
        _check_clauses(tree)


def _check_tables(tree: exp.Expression, scopes: Scopes) -> None:
    for table in tree.find_all(exp.Table):
        if not scopes.is_known(table):
            raise QueryError("unknown_table", f"there is no table {table.name}")


def _check_functions(sql: str, tree: exp.Expression, dialect: str) -> None:
    """sqlglot reads functions of all dialects: the names as they are written tell which the query calls."""
    own = {one.name.lower() for one in tree.find_all(exp.TableAlias) if one.this} | {
        alias.lower() for one in tree.find_all(exp.CTE) if (alias := one.alias)
    }
    tokens = sqlglot.tokenize(sql, read=dialect)
    _check_operators(tokens, dialect)
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if after is None or after.token_type != TokenType.L_PAREN:
            continue
        name = token.text.lower()
        if token.token_type in (TokenType.STRING, TokenType.IDENTIFIER, TokenType.NUMBER) or not name[:1].isalpha():
            continue
        after_type = before is not None and before.token_type in (TokenType.DCOLON, TokenType.ALIAS)
        if name in own or name in _WORDS - {"left", "right", "replace", "if", "mod"} or after_type or name in _TYPES:
            continue
        if name not in TRANSLATED[dialect]:
            kind = "untranslated" if name in EXISTING[dialect] else "unknown_function"
            raise QueryError(kind, f"no translation of {name}" if kind == "untranslated" else f"there is no {name}")


# Operators of other dialects that sqlglot reads all the same.
_FOREIGN = {
    "postgres": {"RLIKE", "REGEXP", "DIV", "XOR", "<=>", "=="},
    "mysql": {"ILIKE", "::", "=="},
}
_OPERATORS = (
    TokenType.RLIKE, TokenType.DIV, TokenType.XOR, TokenType.NULLSAFE_EQ, TokenType.EQ, TokenType.ILIKE,
    TokenType.DCOLON,
)  # fmt: skip


def _check_operators(tokens: list, dialect: str) -> None:
    for token, after, last in zip(tokens, [*tokens[1:], None], [*tokens[2:], None, None], strict=False):
        foreign = token.token_type in _OPERATORS and token.text.upper() in _FOREIGN[dialect]
        if dialect == "postgres" and after is not None and after.token_type == TokenType.NUMBER:
            foreign |= token.token_type == TokenType.INTERVAL
            foreign |= token.token_type == TokenType.LIMIT and last is not None and last.token_type == TokenType.COMMA
        if foreign:
            raise QueryError("syntax", f"syntax error at or near {token.text}")


def _check_columns(tree: exp.Expression, scopes: Scopes) -> None:
    """Every column must be one of the sources, or an output alias where the dialect allows these."""
    for column in tree.find_all(exp.Column):
        if isinstance(column.this, exp.Star) or not isinstance(column.this, exp.Identifier):
            continue
        found = scopes.find(column)
        if found is not None and found[1] > 1 and not _is_merged(column) and not _is_alias(column, scopes):
            raise QueryError("ambiguous", f"{column.name} is a column of several tables")
        if found is None and not _is_alias(column, scopes):
            raise QueryError("unknown_column", f"there is no column {column.sql()}")


def _is_merged(column: exp.Column) -> bool:
    """Whether USING or NATURAL JOIN makes one column of those with the name."""
    select = column.parent_select
    joins = select.args.get("joins") or () if select is not None else ()
    named = {one.name.lower() for join in joins for one in join.args.get("using") or ()}
    return column.name.lower() in named or any(str(join.args.get("method")).upper() == "NATURAL" for join in joins)


def _is_alias(column: exp.Column, scopes: Scopes) -> bool:
    """Whether a column names an output of its query, in a clause that may do so."""
    if column.table:
        return False
    node, clause = column, None
    while node.parent is not None and not isinstance(node.parent, (exp.Select, exp.SetOperation)):
        node = node.parent
    query, clause = node.parent, node
    if query is None:
        return False
    outputs = scopes.outputs(query)
    if outputs is None:
        return True
    if scopes.name(column.this) not in outputs:
        return False
    if isinstance(query, exp.SetOperation):
        return isinstance(clause, exp.Order)
    if scopes.dialect == "mysql":
        return isinstance(clause, (exp.Order, exp.Group, exp.Having))
    alone = column.parent is clause or (isinstance(column.parent, exp.Ordered) and column.parent.parent is clause)
    return (isinstance(clause, (exp.Order, exp.Group)) and alone) or isinstance(clause, exp.Distinct)


def _check_groups(tree: exp.Expression, scopes: Scopes) -> None:
    """PostgreSQL shows only columns that are grouped by, aggregated, or of a table whose primary key is grouped by."""
    for select in tree.find_all(exp.Select):
        where = select.args.get("where")
        if where is not None and any(_is_aggregate(one, select) for one in where.find_all(exp.AggFunc)):
            raise QueryError("invalid", "aggregate functions are not allowed in WHERE")
        group = select.args.get("group")
        parts = [*select.selects, select.args.get("having"), select.args.get("order")]
        aggregated = any(_is_aggregate(one, select) for part in parts if part for one in part.find_all(exp.AggFunc))
        if group is None and not aggregated and select.args.get("having") is None:
            continue
        if group is not None and any(group.args.get(one) for one in ("cube", "rollup", "grouping_sets", "all")):
            continue
        keys = [_meant(key, select, scopes) for one in group.expressions for key in _keys(one)] if group else []
        texts = {_normal(key) for key in keys}
        whole = _tables_by_key(keys, scopes)
        for part in parts:
            if part is not None:
                _check_shown(part, select, texts, whole, scopes)


def _keys(node: exp.Expression) -> list[exp.Expression]:
    """The keys in a part of GROUP BY: itself, or those in a ROLLUP, CUBE, GROUPING SETS or parentheses."""
    if isinstance(node, (exp.Rollup, exp.Cube, exp.GroupingSets, exp.Tuple)):
        return [key for one in node.expressions for key in _keys(one)]
    return [node.unnest()]


def _is_aggregate(node: exp.AggFunc, select: exp.Select) -> bool:
    """Whether an aggregate is one of that query, and no window function."""
    if node.parent_select is not select:
        return False
    top = node
    while isinstance(top.parent, (exp.Filter, exp.WithinGroup, exp.IgnoreNulls)):
        top = top.parent
    return not (isinstance(top.parent, exp.Window) and top.parent.this is top)


def _meant(key: exp.Expression, select: exp.Select, scopes: Scopes) -> exp.Expression:
    """The expression that a key of GROUP BY stands for."""
    if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.this) <= len(select.selects):
        return select.selects[int(key.this) - 1].unalias()
    if isinstance(key, exp.Column) and not key.table and scopes.find(key, local=True) is None:
        outputs = scopes.outputs(select) or {}
        found = outputs.get(scopes.name(key.this))
        return found if isinstance(found, exp.Expression) else key
    return key


def _normal(node: exp.Expression) -> str:
    """A text that two expressions share if they are the same, whether or not columns are qualified."""

    def name(one: exp.Expression) -> exp.Expression:
        return exp.to_identifier(one.name.lower()) if isinstance(one, exp.Column) else one

    return node.unnest().transform(name).sql("postgres", normalize_functions="lower")


def _tables_by_key(keys: list, scopes: Scopes) -> set[str]:
    """The tables whose primary key is among the keys."""
    columns: dict[str, set[str]] = {}
    for key in keys:
        found = scopes.find(key) if isinstance(key, exp.Column) else None
        if found and isinstance(found[0], tuple):
            columns.setdefault(found[0][0].name, set()).add(found[0][1])
    tables = scopes.schema.tables
    return {
        name for name, seen in columns.items() if tables[name].primary_key and set(tables[name].primary_key) <= seen
    }


def _check_shown(node: exp.Expression, select: exp.Select, texts: set[str], whole: set[str], scopes: Scopes) -> None:
    if isinstance(node, exp.Query) or _normal(node) in texts:
        return
    if isinstance(node, exp.AggFunc) and _is_aggregate(node, select):
        return
    if isinstance(node, (exp.WithinGroup, exp.Filter)):
        return
    if isinstance(node, exp.Anonymous) and node.name.lower() == "every":
        return
    if isinstance(node, exp.Star) and node.parent is select:
        raise QueryError("invalid", "* must appear in GROUP BY")
    if isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier):
        found = scopes.find(node)
        if found is None or not isinstance(found[0], (tuple, exp.Expression)):
            return  # an alias, or a source that is not known
        if isinstance(found[0], tuple) and found[0][0].name in whole:
            return
        if node.parent_select is select:
            raise QueryError("invalid", f"{node.sql()} must appear in GROUP BY or be used in an aggregate function")
        return
    for child in node.iter_expressions():
        _check_shown(child, select, texts, whole, scopes)


def _family(kind: str) -> str:
    return "number" if kind in NUMBERS else "moment" if kind in MOMENTS else kind


_BOOLEANS = {word[:end] for word in ("true", "yes", "false") for end in range(1, 6)}
_BOOLEANS |= {"on", "of", "off", "n", "no", "0", "1"}
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
_COMPARED = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)
_TEXT_ONLY = (
    exp.Lower, exp.Upper, exp.Like, exp.ILike, exp.RegexpLike, exp.Length, exp.Left, exp.Right, exp.Substring,
    exp.SplitPart, exp.Initcap, exp.Trim, exp.Replace, exp.StrPosition, exp.Reverse,
)  # fmt: skip


def _check_types(tree: exp.Expression, scopes: Scopes) -> None:
    """Operands that PostgreSQL has no operator or function for. What is not known for certain passes."""
    for node in tree.walk():
        if isinstance(node, _COMPARED) and not isinstance(node.expression, (exp.Any, exp.All)):
            _check_compared(node.this, node.expression, scopes)
        elif isinstance(node, exp.In):
            outputs = scopes.outputs(node.args["query"]) if node.args.get("query") is not None else None
            others = node.expressions or [one for one in (outputs or {}).values() if isinstance(one, exp.Expression)]
            for one in others:
                _check_compared(node.this, one, scopes)
        elif isinstance(node, exp.Between):
            _check_compared(node.this, node.args["low"], scopes)
            _check_compared(node.this, node.args["high"], scopes)
        elif isinstance(node, _ARITHMETIC):
            _check_arithmetic(node, scopes)
        elif isinstance(node, (exp.Sum, exp.Avg)):
            _require(_family(scopes.kind(node.this)), ("number", "interval", "", "literal"), node)
        elif isinstance(node, _TEXT_ONLY):
            _require(scopes.kind(node.this), ("text", "literal", "", "array"), node)
        elif isinstance(node, exp.Round) and node.args.get("decimals") is not None:
            if scopes.kind(node.this) == "float":
                raise QueryError("invalid", "function round(double precision, integer) does not exist")
        elif isinstance(node, exp.Extract):
            _require(scopes.kind(node.expression), (*MOMENTS, "time", "interval", ""), node)
        elif isinstance(node, exp.TimestampTrunc):
            _require(scopes.kind(node.this), (*MOMENTS, "interval", "", "literal"), node)
        elif isinstance(node, (exp.Where, exp.Having, exp.Not)):
            _require(scopes.kind(node.this), ("boolean", "", "literal"), node)
        elif isinstance(node, (exp.And, exp.Or)):
            for side in (node.this, node.expression):
                _require(scopes.kind(side), ("boolean", "", "literal"), node)
        elif isinstance(node, exp.Cast) and scopes.kind(node) in (*MOMENTS, "time"):
            _require(scopes.kind(node.this), (*MOMENTS, "time", "text", "literal", "interval", ""), node)
        elif isinstance(node, exp.TimeToStr):
            _require(_family(scopes.kind(node.this)), ("moment", "time", "number", "interval", ""), node)
        elif isinstance(node, exp.Anonymous) and node.name.lower() == "age":
            for one in node.expressions:
                _require(scopes.kind(one), (*MOMENTS, "literal", ""), node)
        elif isinstance(node, (exp.Coalesce, exp.Case, exp.Greatest, exp.Least)):
            _check_branches(node, scopes)
        elif isinstance(node, (exp.LogicalOr, exp.LogicalAnd)):
            _require(scopes.kind(node.this), ("boolean", "", "literal"), node)
        elif isinstance(node, (exp.Max, exp.Min)):
            _require("boolean" if scopes.kind(node.this) == "boolean" else "", ("",), node)
        elif isinstance(node, (exp.Stddev, exp.StddevPop, exp.StddevSamp, exp.Variance, exp.VariancePop)):
            _require(_family(scopes.kind(node.this)), ("number", "", "literal"), node)
        elif isinstance(node, exp.Count) and isinstance(node.this, exp.Distinct) and len(node.this.expressions) > 1:
            raise QueryError("unknown_function", "count takes one argument")
        elif isinstance(node, exp.SetOperation):
            _check_outputs(node, scopes)
        elif isinstance(node, exp.Join) and node.side and not node.args.get("on") and not node.args.get("using"):
            if str(node.args.get("method")).upper() != "NATURAL":
                raise QueryError("syntax", f"{node.side} JOIN needs a condition")
        elif isinstance(node, exp.GroupConcat):
            inner = node.this.this if isinstance(node.this, exp.Order) else node.this
            _require(scopes.kind(inner), ("text", "literal", ""), node)
            if node.args.get("separator") is None:
                raise QueryError("unknown_function", "string_agg needs a separator")


def _check_outputs(node: exp.SetOperation, scopes: Scopes) -> None:
    one, other = scopes.outputs(node.this), scopes.outputs(node.expression)
    for left, right in zip((one or {}).values(), (other or {}).values(), strict=False):
        kinds = [scopes.kind_of(side) for side in (left, right)]
        families = {_family(kind) for kind in kinds} - {"", "literal"}
        if len(families) > 1:
            raise QueryError("invalid", f"types {' and '.join(sorted(families))} cannot be matched")


def _require(kind: str, allowed: tuple[str, ...], node: exp.Expression) -> None:
    if kind not in allowed:
        raise QueryError("invalid", f"{node.key} takes no {kind}")


def _check_compared(left: exp.Expression, right: exp.Expression, scopes: Scopes) -> None:
    one, other = _family(scopes.kind(left)), _family(scopes.kind(right))
    for kind, literal in ((one, right), (other, left)):
        value = literal.unnest()
        if isinstance(value, exp.Literal) and value.is_string:
            _check_literal(value.this, kind)
    if {"", "literal", "array"} & {one, other} or one == other or {one, other} == {"time", "interval"}:
        return
    raise QueryError("invalid", f"operator does not exist: {one} = {other}")


def _check_literal(text: str, kind: str) -> None:
    if kind == "number":
        try:
            float(text)
        except ValueError:
            raise QueryError("invalid", f"invalid input syntax for a number: {text!r}") from None
    if kind == "boolean" and text.strip().lower() not in _BOOLEANS:
        raise QueryError("invalid", f"invalid input syntax for type boolean: {text!r}")
    if kind == "moment" and not any(one.isdigit() for one in text) and text.lower() not in (
        "now", "today", "yesterday", "tomorrow", "epoch", "infinity", "-infinity",
    ):  # fmt: skip
        raise QueryError("invalid", f"invalid input syntax for type date: {text!r}")


def _check_arithmetic(node: exp.Binary, scopes: Scopes) -> None:
    one, other = _family(scopes.kind(node.this)), _family(scopes.kind(node.expression))
    if "" in (one, other) or "array" in (one, other):
        return
    pair = {one, other} - {"literal"}
    if pair & {"text", "boolean"} or (isinstance(node, (exp.Add, exp.Sub)) and pair == {"number", "interval"}):
        raise QueryError("invalid", f"operator does not exist: {one} {node.key} {other}")
    if isinstance(node, exp.Add) and one == other == "moment":
        raise QueryError("invalid", "operator does not exist: date + date")
    if not isinstance(node, (exp.Add, exp.Sub)) and "moment" in pair:
        raise QueryError("invalid", f"operator does not exist: {one} {node.key} {other}")
    exact = {scopes.kind(node.this), scopes.kind(node.expression)} & {"real", "float"}
    if "moment" in pair and exact:
        raise QueryError("invalid", "operator does not exist: date - numeric")
    timestamp = "timestamp" in (scopes.kind(node.this), scopes.kind(node.expression))
    if timestamp and "number" in pair:
        raise QueryError("invalid", "operator does not exist: timestamp + integer")


def _check_branches(node: exp.Expression, scopes: Scopes) -> None:
    if isinstance(node, exp.Case):
        branches = [one.args["true"] for one in node.args["ifs"]] + [node.args.get("default")]
    else:
        branches = [node.this, *node.expressions]
    branches = [one for one in branches if one is not None]
    families = {_family(scopes.kind(one)) for one in branches} - {"", "literal"}
    if len(families) > 1:
        raise QueryError("invalid", f"{node.key} types {' and '.join(sorted(families))} cannot be matched")
    for one in branches:
        value = one.unnest()
        if isinstance(value, exp.Literal) and value.is_string and len(families) == 1:
            _check_literal(value.this, *families)


def _check_clauses(tree: exp.Expression) -> None:
    for query in tree.find_all(exp.Subquery):
        if isinstance(query.parent, (exp.From, exp.Join)) and not query.alias and isinstance(query.this, exp.Query):
            raise QueryError("syntax", "subquery in FROM must have an alias")
    for select in tree.find_all(exp.Select):
        distinct, order = select.args.get("distinct"), select.args.get("order")
        if distinct is None or distinct.args.get("on") or order is None or any(one.is_star for one in select.selects):
            continue
        shown = {one.unalias().sql("postgres").lower() for one in select.selects}
        shown |= {one.alias_or_name.lower() for one in select.selects}
        for key in order.expressions:
            bare = key.this.name.lower() if isinstance(key.this, exp.Column) else ""
            if not isinstance(key.this, exp.Literal) and not {bare, key.this.sql("postgres").lower()} & shown:
                raise QueryError("invalid", "for SELECT DISTINCT, ORDER BY expressions must appear in select list")
