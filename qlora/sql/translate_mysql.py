"""The rules of translation from MySQL."""

from collections.abc import Callable

from qlora.sql.distinct_on import key as meaning
from qlora.sql.translate_common import named_part, to
from qlora.sql.translator import Translator, Untranslated, call

from sqlglot import exp


def shifted(t: Translator, node: exp.Expression) -> exp.Expression:
    """DATE_ADD, DATE_SUB, + INTERVAL, - INTERVAL."""
    if isinstance(node, (exp.Add, exp.Sub)):
        value, amount = node.this, node.expression
        if isinstance(value, exp.Interval):
            value, amount = amount, value
        if not isinstance(amount, exp.Interval):
            return t.copy(node)
    else:
        value = node.this
        amount = exp.Interval(this=node.expression.copy(), unit=node.args.get("unit").copy())
        if not isinstance(node.expression, exp.Literal):
            interval = call("x_interval", t.convert(node.expression), node.args["unit"].name)
            return call("x_shift", t.convert(t.moment(value)), interval, sign(t, node), 1)
    return call("x_shift", t.convert(t.moment(value)), t.convert(amount), sign(t, node), 1)


def sign(t: Translator, node: exp.Expression) -> int:
    return -1 if isinstance(node, (exp.Sub, exp.DateSub)) else 1


def mysql_cast(t: Translator, node: exp.Cast) -> exp.Expression:
    target = t.kind(node)
    if node.to.is_type("binary"):
        return exp.Collate(this=t.convert(node.this), expression=exp.to_identifier("BINARY"))
    if node.to.this == exp.DataType.Type.CHARACTER_SET:
        return t.convert(node.this)
    if node.to.is_type("json"):
        return t.call("x_json", node.this)
    parameters = [int(one.name) for one in node.to.expressions if one.name.isdigit()]
    if target == "real":
        return t.call("x_mysql_decimal", node.this, exp.convert(parameters[1] if len(parameters) > 1 else 0))
    names = {"integer": "x_mysql_integer", "float": "x_number"}
    names |= {kind: f"x_{kind}" for kind in ("text", "date", "timestamp", "time")}
    name = names.get(target)
    if name is None:
        raise Untranslated(f"CAST AS {node.to.sql(t.dialect)}")
    return t.call(name, node.this)


def exclusive(t: Translator, node: exp.Xor) -> exp.Expression:
    sides = [t.call("x_is_true", side) for side in (node.this, node.expression)]
    return exp.Paren(this=exp.NEQ(this=sides[0], expression=sides[1]))


def either_bit(t: Translator, node: exp.BitwiseXor) -> exp.Expression:
    one, other = exp.Paren(this=t.convert(node.this)), exp.Paren(this=t.convert(node.expression))
    both = exp.BitwiseAnd(this=one.copy(), expression=other.copy())
    return exp.Paren(
        this=exp.Sub(this=exp.Paren(this=exp.BitwiseOr(this=one, expression=other)), expression=exp.Paren(this=both))
    )


def grouped(t: Translator, node: exp.Group) -> exp.Expression:
    """GROUP BY a computed text, whose case and trailing blanks do not count; SQLite says so of columns only."""
    new = t.copy(node)
    for key, written in zip(new.expressions, node.expressions, strict=True):
        meant = meaning(t, written, node.parent)
        if not isinstance(meant.unnest(), exp.Column) and t.kind(meant) == "text":
            computed = t.convert(meant) if isinstance(written, exp.Literal) else key.copy()
            key.replace(exp.Collate(this=exp.Paren(this=computed), expression=exp.to_identifier("dialect")))
    return new


def days_between(t: Translator, node: exp.DateDiff) -> exp.Expression:
    """DATEDIFF; sqlglot reads TO_DAYS as the difference from a day of the year 0, which Python lacks."""
    start = t.moment(node.expression)
    if isinstance(start, exp.Literal) and start.this == "0000-01-01":
        return exp.Paren(this=exp.Sub(this=t.call("x_day_number", t.moment(node.this)), expression=exp.convert(1)))
    return t.call("x_days_between", t.moment(node.this), start)


def moved(t: Translator, node: exp.TimestampAdd) -> exp.Expression:
    interval = call("x_interval", t.convert(node.expression), node.args["unit"].name)
    return call("x_shift", t.convert(t.moment(node.this)), interval, 1, 1)


def moved_by_days(sign_there: int) -> Callable:
    """The rule of ADDDATE and SUBDATE: by an interval, or a number of days."""

    def rule(t: Translator, value: exp.Expression, amount: exp.Expression) -> exp.Expression:
        shown = t.convert(amount) if isinstance(amount, exp.Interval) else call("x_interval", t.convert(amount), "day")
        return call("x_shift", t.convert(t.moment(value)), shown, sign_there, 1)

    return rule


def read_time(name: str, *more: int) -> Callable:
    return lambda t, *values: call(name, *(t.convert(one) for one in values), *more)


RULES: dict[type, Callable] = {
    exp.Add: shifted,
    exp.Sub: shifted,
    exp.DateAdd: shifted,
    exp.DateSub: shifted,
    exp.Cast: mysql_cast,
    exp.Xor: exclusive,
    exp.BitwiseXor: either_bit,
    exp.Group: grouped,
    exp.Year: named_part("year"),
    exp.Month: named_part("month"),
    exp.Day: named_part("day"),
    exp.DayOfMonth: named_part("day"),
    exp.DayOfYear: named_part("doy"),
    exp.DayOfWeek: named_part("dow", 1),
    exp.WeekOfYear: named_part("week"),
    exp.Quarter: named_part("quarter"),
    exp.Hour: named_part("hour"),
    exp.Minute: named_part("minute"),
    exp.Second: named_part("second"),
    exp.Dayname: lambda t, node: t.call("x_date_format", t.moment(node.this), exp.convert("%W")),
    exp.Week: lambda t, node: t.call("x_week", t.moment(node.this), node.args.get("mode")),
    exp.DateDiff: days_between,
    exp.TimestampAdd: moved,
    exp.Soundex: to("x_soundex", "this"),
    exp.Hex: to("x_hexadecimal", "this"),
    exp.Stuff: to("x_replaced_part", "this", "start", "length", "expression"),
    exp.BitwiseCount: to("x_bits", "this"),
    exp.BitwiseOrAgg: to("x_bit_or", "this"),
    exp.BitwiseAndAgg: to("x_bit_and", "this"),
    exp.BitwiseXorAgg: to("x_bit_xor", "this"),
    exp.RegexpSubstr: to("x_regexp_substring", "this", "expression"),
    exp.RegexpInstr: to("x_regexp_place", "this", "expression"),
    exp.TimeFromParts: to("x_make_time", "hour", "min", "sec"),
    exp.TimestampDiff: lambda t, node: t.call(
        "x_difference", exp.convert(node.args["unit"].name.lower()), node.expression, node.this
    ),
    exp.LastDay: to("x_last_day", "this"),
    exp.Time: to("x_time", "this"),
    exp.Left: to("x_mysql_left", "this", "expression"),
    exp.SubstringIndex: to("x_substring_index", "this", "delimiter", "count"),
    exp.Length: lambda t, node: t.call("x_bytes" if node.args.get("binary") else "length", node.this),
    exp.Stddev: to("x_stddev_pop", "this"),
    exp.RegexpLike: lambda t, node: t.call("x_matches", node.this, node.expression, exp.convert("i")),
    exp.Elt: lambda t, node: t.call("x_elt", node.this, *node.expressions),
    exp.NumberToStr: to("x_format", "this", "format"),
    exp.Space: lambda t, node: t.call("x_repeat", exp.convert(" "), node.this),
}
NAMED: dict[str, str | Callable] = {
    "field": "x_field",
    "find_in_set": "x_find_in_set",
    "mid": "x_mysql_substring",
    "weekday": named_part("isodow", -1),
    "unix_timestamp": "x_epoch",
    "octet_length": "x_bytes",
    "adddate": moved_by_days(1),
    "subdate": moved_by_days(-1),
    "sec_to_time": "x_clock",
    "time_to_sec": "x_seconds",
    "timediff": "x_time_between",
    "addtime": read_time("x_add_time", 1),
    "subtime": read_time("x_add_time", -1),
    "makedate": "x_day_of_year",
    "from_days": "x_day_of_number",
    "period_add": "x_period_add",
    "period_diff": "x_period_diff",
    "yearweek": "x_year_week",
    "microsecond": lambda t, value: call("x_modulo", named_part("microsecond")(t, value), 1_000_000),
    "strcmp": "x_order",
    "conv": "x_to_base",
    "bin": read_time("x_to_base", 10, 2),
    "oct": read_time("x_to_base", 10, 8),
    "inet_aton": "x_address_number",
    "quote": "x_quoted",
    "ord": "x_ascii",
}
