"""The rules of translation that PostgreSQL and MySQL share."""

import re
from collections.abc import Callable

from qlora.sql import moments, table_functions
from qlora.sql.distinct_on import distinct_on
from qlora.sql.grouping_sets import grouping_sets, has_grouping_sets
from qlora.sql.laterals import has_laterals, without_laterals
from qlora.sql.quantified import is_quantified, quantified
from qlora.sql.scopes import NUMBERS, RowValue
from qlora.sql.translator import Translator, Untranslated, call

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect

_COMPARED = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)


def anonymous(t: Translator, node: exp.Anonymous) -> exp.Expression:
    name = node.name.lower()
    if name in ("now", "localtimestamp", "transaction_timestamp", "sysdate", "utc_timestamp"):
        return exp.convert(moments.NOW.isoformat(" "))
    if name not in t.named:
        raise Untranslated(node.name)
    target = t.named[name]
    return t.call(target, *node.expressions) if isinstance(target, str) else target(t, *node.expressions)


def compared(t: Translator, node: exp.Binary) -> exp.Expression:
    left, right = node.this, node.expression
    if is_quantified(right):
        return quantified(t, node)
    one, other = t.matched(left, right), t.matched(right, left)
    return type(node)(this=folding(t, left, right, one), expression=other)


def between(t: Translator, node: exp.Between) -> exp.Expression:
    value, low, high = node.this, node.args["low"], node.args["high"]
    if node.args.get("symmetric"):
        either = exp.Or(this=_between(t, value, low, high), expression=_between(t, value, high, low))
        return exp.Paren(this=either)
    return _between(t, value, low, high)


def _between(t: Translator, value: exp.Expression, low: exp.Expression, high: exp.Expression) -> exp.Expression:
    one = t.matched(value, low) if t.kind(low) == "timestamp" else t.matched(value, high)
    return exp.Between(this=folding(t, value, low, one), low=t.matched(low, value), high=t.matched(high, value))


def within(t: Translator, node: exp.In) -> exp.Expression:
    if node.args.get("unnest") or node.args.get("field"):
        raise Untranslated("IN of an array")
    listed = [t.matched(one, node.this) for one in node.expressions]
    first = node.expressions[0] if node.expressions else node.args.get("query")
    value = t.matched(node.this, first) if node.expressions else t.convert(node.this)
    return exp.In(this=folding(t, node.this, first, value), expressions=listed, query=t.convert(node.args.get("query")))


def folding(t: Translator, node: exp.Expression, other: exp.Expression | None, new: exp.Expression) -> exp.Expression:
    """MySQL compares computed texts without case, too; SQLite does so for columns only."""
    computed = not isinstance(node.unnest(), exp.Column) and "text" in (t.kind(node), t.kind(other))
    if t.dialect != "mysql" or not computed:
        return new
    return exp.Collate(this=exp.Paren(this=new), expression=exp.to_identifier("dialect"))


def like(t: Translator, node: exp.Like) -> exp.Expression:
    """LIKE, whose escape is a backslash there and nothing in SQLite."""
    if isinstance(node.expression, (exp.Any, exp.All)):
        return quantified(t, node)
    if any(isinstance(one, exp.Cast) and one.to.is_type("binary") for one in (node.this, node.expression)):
        return negated(t, node, t.call("x_like_exactly", node.this, node.expression))
    new = exp.Like(this=t.convert(node.this), expression=t.convert(node.expression))
    return negated(t, node, escaped(t, node, new))


def escaped(t: Translator, node: exp.Expression, new: exp.Like) -> exp.Expression:
    pattern = node.expression
    if isinstance(node.parent, exp.Escape) or (isinstance(pattern, exp.Literal) and "\\" not in pattern.this):
        return new
    return exp.Escape(this=new, expression=exp.Literal.string("\\"))


def negated(t: Translator, node: exp.Expression, new: exp.Expression) -> exp.Expression:
    return exp.Not(this=new) if node.args.get("negate") else new


def ilike(t: Translator, node: exp.ILike) -> exp.Expression:
    if isinstance(node.expression, (exp.Any, exp.All)):
        return quantified(t, node)
    lowered = exp.Like(this=t.call("lower", node.this), expression=t.call("lower", node.expression))
    return negated(t, node, escaped(t, node, lowered))


def extract(t: Translator, node: exp.Extract) -> exp.Expression:
    return t.call("x_extract", exp.convert(node.this.name.lower()), t.moment(node.expression))


def interval(t: Translator, node: exp.Interval) -> exp.Expression:
    unit = node.args.get("unit")
    name = unit.name if unit is not None else ""
    if unit is not None and not isinstance(unit, exp.Var):
        raise Untranslated("INTERVAL")
    if isinstance(node.this, exp.Literal):
        try:
            return exp.convert(moments.interval(*moments.parse_interval(node.this.this, name)))
        except ValueError as error:
            raise Untranslated(str(error)) from None
    return call("x_interval", t.convert(node.this), name)


def date_text(t: Translator, node: exp.TimeToStr) -> exp.Expression:
    pattern = node.args["format"]
    if not isinstance(pattern, exp.Literal):
        raise Untranslated("a format that is no literal")
    written = Dialect.get_or_raise(t.dialect).generator().format_time(node)[1:-1].replace("''", "'")
    if t.kind(node.this) in NUMBERS:
        if any(one in written.upper() for one in "$L") and not written.upper().startswith("FM"):
            raise Untranslated(f"TO_CHAR with {written}")
        return t.call("x_number_to_char", node.this, exp.convert(written))
    name = "x_to_char" if t.dialect == "postgres" else "x_date_format"
    return t.call(name, t.moment(node.this), exp.convert(written))


def text_aggregate(t: Translator, node: exp.GroupConcat) -> exp.Expression:
    separator = node.args.get("separator")
    default = exp.convert(",") if t.dialect == "mysql" else None
    return collected(t, "x_text_agg", node.this, separator if separator is not None else default)


def collected(t: Translator, name: str, value: exp.Expression, separator: exp.Expression | None) -> exp.Expression:
    keys: list[object] = []
    if isinstance(value, exp.Order):
        for key in value.expressions:
            keys += [t.convert(key.this), int(bool(key.args.get("desc")))]
        value = value.this
    distinct = isinstance(value, exp.Distinct)
    if distinct:
        if len(value.expressions) != 1:
            raise Untranslated("DISTINCT of several values")
        value = value.expressions[0]
    return call(name, t.convert(value), t.convert(separator), int(distinct), *keys)


def count(t: Translator, node: exp.Count) -> exp.Expression:
    """COUNT(DISTINCT a, b) of MySQL's: of the pairs without NULL."""
    if isinstance(node.this, exp.Distinct) and len(node.this.expressions) > 1:
        separated = [part for one in node.this.expressions for part in (one, exp.convert("\x1f"))]
        return exp.Count(this=exp.Distinct(expressions=[t.call("x_mysql_concat", *separated)]))
    return t.copy(node)


def aggregate(t: Translator, node: exp.AggFunc) -> exp.Expression:
    """SUM and AVG, of intervals as well."""
    if t.kind(node.this) == "interval":
        return t.call("x_sum_interval" if isinstance(node, exp.Sum) else "x_avg_interval", node.this)
    return t.copy(node)


def trim(t: Translator, node: exp.Trim) -> exp.Expression:
    name = {"LEADING": "LTRIM", "TRAILING": "RTRIM"}.get(str(node.args.get("position") or "").upper(), "TRIM")
    return t.call(name, node.this, node.expression)


def padded(t: Translator, node: exp.Pad) -> exp.Expression:
    name = "x_lpad" if node.args.get("is_left") else "x_rpad"
    return t.call(name, node.this, node.expression, node.args.get("fill_pattern"))


def rounded(t: Translator, node: exp.Round) -> exp.Expression:
    places = node.args.get("decimals")
    if t.dialect == "postgres" and places is None and t.kind(node.this) == "float":
        return t.call("x_round_float", node.this)
    return t.call("x_round", node.this, places)


def position(t: Translator, node: exp.StrPosition) -> exp.Expression:
    name = "x_position" if t.dialect == "postgres" else "x_mysql_position"
    return t.call(name, node.args["substr"], node.this, node.args.get("position"))


def logarithm(t: Translator, node: exp.Log) -> exp.Expression:
    if node.expression is not None and node.args.get("expression"):
        return t.call("x_log", node.this, node.expression)
    return t.call("x_log10" if t.dialect == "postgres" else "x_ln", node.this)


def concat(t: Translator, node: exp.Concat) -> exp.Expression:
    name = "x_concat" if t.dialect == "postgres" else "x_mysql_concat"
    return t.call(name, *node.expressions)


def concat_ws(t: Translator, node: exp.ConcatWs) -> exp.Expression:
    return t.call("x_concat_ws", *node.expressions)


def substring(t: Translator, node: exp.Substring) -> exp.Expression:
    start, length = node.args.get("start"), node.args.get("length")
    if isinstance(start, exp.Literal) and start.is_string:
        return t.call("x_regexp_substring", node.this, start)
    name = "x_substring" if t.dialect == "postgres" else "x_mysql_substring"
    return t.call(name, node.this, start if start is not None else exp.convert(1), length)


def replaced(t: Translator, node: exp.RegexpReplace) -> exp.Expression:
    flags = node.args.get("modifiers")
    flags = flags if flags is not None else exp.convert("" if t.dialect == "postgres" else "gi")
    return t.call("x_regexp_replace", node.this, node.expression, node.args.get("replacement"), flags)


def collated(t: Translator, node: exp.Collate) -> exp.Expression:
    name = node.expression.name.lower()
    known = {"c": "BINARY", "posix": "BINARY", "ucs_basic": "BINARY"}
    collation = "dialect" if name.endswith("_ci") else "BINARY" if name.endswith("_bin") else known.get(name)
    if collation is None:
        raise Untranslated(f"COLLATE {name}")
    return exp.Collate(this=t.convert(node.this), expression=exp.to_identifier(collation))


def select(t: Translator, node: exp.Select) -> exp.Expression:
    if node.args.get("locks"):
        raise Untranslated("FOR UPDATE")
    if has_laterals(node):
        return select(t, without_laterals(t, node))
    if has_grouping_sets(node):
        return grouping_sets(t, node)
    if id(node) not in t.expanded and any(
        one.parent_select is node for output in node.selects for one in output.find_all(*table_functions.IN_OUTPUTS)
    ):
        t.expanded.add(id(node))
        return table_functions.in_output(t, node)
    distinct = node.args.get("distinct")
    on = distinct.args.get("on") if distinct is not None else None
    return t.copy(node) if on is None else distinct_on(t, node, on)


def column(t: Translator, node: exp.Column) -> exp.Expression:
    found = t.scopes.find(node)
    if found is not None and isinstance(found[0], RowValue):
        value = exp.column("value", exp.to_identifier(found[0].alias, quoted=True))
        return exp.alias_(value, node.name, quoted=True) if isinstance(node.parent, exp.Select) else value
    return t.copy(node)


def table(t: Translator, node: exp.Expression) -> exp.Expression:
    return table_functions.source(t, node) if t.scopes.is_row_function(node) else t.copy(node)


def values(t: Translator, node: exp.Values) -> exp.Expression:
    """VALUES in FROM: SQLite gives its columns no names."""
    alias = node.args.get("alias")
    if not isinstance(node.parent, (exp.From, exp.Join)) or alias is None:
        return t.copy(node)
    names = [one.name for one in alias.args.get("columns") or ()]
    rows = [one.expressions for one in node.expressions]
    names += [f"column{place}" for place in range(len(names) + 1, len(rows[0]) + 1)]
    parts = [
        exp.select(*(exp.alias_(t.convert(one), name, quoted=True) for one, name in zip(row, names, strict=True)))
        for row in rows
    ]
    union = parts[0]
    for one in parts[1:]:
        union = exp.Union(this=union, expression=one, distinct=False)
    return union.subquery(alias.name)


def _names_of_days(pattern: str) -> str:
    """A format of PostgreSQL's with all its parts as directives: sqlglot leaves those that stand for names."""
    for name, directive in (("month", "%B"), ("mon", "%b"), ("day", "%A"), ("dy", "%a"), ("am", "%p"), ("pm", "%p")):
        pattern = re.sub(rf"(?<!%)(?:FM|TM)?{name}\b", directive, pattern, flags=re.IGNORECASE)
    return pattern


def parsed(kind: str) -> Callable:
    """The rule of a function that reads a date or a timestamp with a format."""

    def rule(t: Translator, node: exp.Expression) -> exp.Expression:
        pattern = node.args["format"]
        if not isinstance(pattern, exp.Literal):
            raise Untranslated("a format that is no literal")
        wanted, text = ("", pattern.this) if t.dialect == "mysql" else (kind, _names_of_days(pattern.this))
        return t.call("x_read_moment", node.this, exp.convert(text), exp.convert(wanted))

    return rule


def named_part(name: str, plus: int = 0) -> Callable:
    """The rule of a function that is a part of a date: YEAR(d)."""

    def rule(t: Translator, node: exp.Expression) -> exp.Expression:
        value = node.this if isinstance(node, exp.Func) and not isinstance(node, exp.Column) else node
        found = t.call("x_extract", exp.convert(name), t.moment(value))
        return found if not plus else exp.Paren(this=exp.Add(this=found, expression=exp.convert(plus)))

    return rule


def to(name: str, *parts: str) -> Callable:
    """The rule that calls a function with the parts of a node."""
    return lambda t, node: t.call(name, *(t.moment(node.args[one]) for one in parts if node.args.get(one)))


def constant(value: str) -> Callable:
    return lambda _, __: exp.convert(value)


_TODAY, _NOW = moments.NOW.date().isoformat(), moments.NOW.isoformat(" ")
RULES: dict[type, Callable] = {
    **dict.fromkeys(_COMPARED, compared),
    exp.Anonymous: anonymous,
    exp.Between: between,
    exp.In: within,
    exp.Like: like,
    exp.ILike: ilike,
    exp.Extract: extract,
    exp.Interval: interval,
    exp.TimeToStr: date_text,
    exp.GroupConcat: text_aggregate,
    exp.Count: count,
    exp.Sum: aggregate,
    exp.Avg: aggregate,
    exp.Trim: trim,
    exp.Pad: padded,
    exp.Round: rounded,
    exp.StrPosition: position,
    exp.Log: logarithm,
    exp.Select: select,
    exp.Column: column,
    exp.Table: table,
    exp.Unnest: table,
    exp.Lateral: table,
    exp.Values: values,
    exp.StrToDate: parsed("date"),
    exp.StrToTime: parsed("timestamp"),
    exp.Tan: to("x_tan", "this"),
    exp.Asin: to("x_asin", "this"),
    exp.Acos: to("x_acos", "this"),
    exp.Atan: to("x_atan", "this"),
    exp.Atan2: to("x_atan2", "this", "expression"),
    exp.Cot: to("x_cot", "this"),
    exp.SHA: lambda t, node: t.call("x_digest", node.this, exp.convert(1)),
    exp.SHA2: lambda t, node: t.call("x_digest", node.this, node.args.get("length") or exp.convert(256)),
    exp.RegexpCount: to("x_regexp_count", "this", "expression"),
    exp.Concat: concat,
    exp.ConcatWs: concat_ws,
    exp.Substring: substring,
    exp.RegexpReplace: replaced,
    exp.CurrentDate: constant(_TODAY),
    exp.CurrentTimestamp: constant(_NOW),
    exp.CurrentDatetime: constant(_NOW),
    exp.CurrentTime: constant(_NOW[11:]),
    exp.TsOrDsToDate: to("x_date", "this"),
    exp.TsOrDsToTimestamp: to("x_timestamp", "this"),
    exp.Date: to("x_date", "this"),
    exp.Trunc: to("x_truncate", "this", "decimals"),
    exp.Floor: to("x_floor", "this"),
    exp.Ceil: to("x_ceil", "this"),
    exp.Pow: to("x_power", "this", "expression"),
    exp.Sqrt: to("x_sqrt", "this"),
    exp.Exp: to("x_exp", "this"),
    exp.Ln: to("x_ln", "this"),
    exp.Sign: to("x_sign", "this"),
    exp.Mod: to("x_modulo", "this", "expression"),
    exp.Right: to("x_right", "this", "expression"),
    exp.Repeat: to("x_repeat", "this", "times"),
    exp.Reverse: to("x_reverse", "this"),
    exp.Ascii: to("x_ascii", "this"),
    exp.MD5: to("x_md5", "this"),
    exp.Collate: collated,
    exp.Pi: to("x_pi"),
    exp.Degrees: to("x_degrees", "this"),
    exp.Radians: to("x_radians", "this"),
    exp.Sin: to("x_sin", "this"),
    exp.Cos: to("x_cos", "this"),
    exp.UnixToTime: to("x_from_epoch", "this"),
    exp.StddevPop: to("x_stddev_pop", "this"),
    exp.StddevSamp: to("x_stddev_samp", "this"),
    exp.Variance: to("x_var_samp", "this"),
    exp.VariancePop: to("x_var_pop", "this"),
}
# Functions that sqlglot has no class for.
NAMED: dict[str, str | Callable] = {
    name: f"x_{name}"
    for name in (
        "pi",
        "sin",
        "cos",
        "radians",
        "degrees",
        "sqrt",
        "exp",
        "sign",
        "repeat",
        "reverse",
        "gcd",
        "lcm",
        "factorial",
    )
}
