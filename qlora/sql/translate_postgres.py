"""The rules of translation from PostgreSQL."""

from collections.abc import Callable

from qlora.sql import moments
from qlora.sql.scopes import MOMENTS, NUMBERS
from qlora.sql.translate_common import collected, to
from qlora.sql.translator import Translator, Untranslated, call

from sqlglot import exp


def array_aggregate(t: Translator, node: exp.ArrayAgg) -> exp.Expression:
    return collected(t, "x_array_agg", node.this, exp.convert(","))


def percentile(t: Translator, node: exp.WithinGroup) -> exp.Expression:
    key = node.expression.expressions[0]
    if isinstance(node.this, exp.Mode):
        return t.call("x_mode", key.this)
    name = {exp.PercentileCont: "x_percentile", exp.PercentileDisc: "x_percentile_disc"}.get(type(node.this))
    if name is None or not isinstance(node.this.this, exp.Literal):
        raise Untranslated("WITHIN GROUP")
    fraction = float(node.this.this.this)
    if key.args.get("desc") and name == "x_percentile_disc":
        raise Untranslated("PERCENTILE_DISC in descending order")
    return t.call(name, key.this, exp.convert(1 - fraction if key.args.get("desc") else fraction))


def sum_or_shift(t: Translator, node: exp.Binary) -> exp.Expression:
    """+ and -: of numbers, or of dates and intervals."""
    one, other = t.kind(node.this), t.kind(node.expression)
    if one in NUMBERS and other in NUMBERS:
        return t.copy(node)
    name = "x_add" if isinstance(node, exp.Add) else "x_subtract"
    left, right = t.convert(node.this), t.convert(node.expression)
    if one == "literal" and other in MOMENTS:
        left = t.matched(node.this, node.expression)
    if other == "literal" and one in MOMENTS:
        right = t.matched(node.expression, node.this)
    if one == "timestamp" and other == "date":
        right = t.call("x_timestamp", node.expression)
    return call(name, left, right)


def product(t: Translator, node: exp.Mul) -> exp.Expression:
    kinds = {t.kind(node.this), t.kind(node.expression)}
    return t.copy(node) if kinds <= set(NUMBERS) else t.call("x_scale", node.this, node.expression)


def quotient(t: Translator, node: exp.Div) -> exp.Expression:
    kinds = {t.kind(node.this), t.kind(node.expression)}
    if "interval" in kinds:
        return call(
            "x_scale",
            t.convert(node.this),
            exp.Div(this=exp.convert(1.0), expression=t.convert(node.expression)),
        )
    exact = kinds & {"real", "float"}
    return t.call("x_divide_exactly" if exact else "x_divide", node.this, node.expression)


def cast(t: Translator, node: exp.Cast) -> exp.Expression:
    target, given = t.kind(node), t.kind(node.this)
    if node.to.is_type("json", "jsonb"):
        return t.call("x_json", node.this)
    if target == "array":
        return t.convert(node.this)
    parameters = [int(one.name) for one in node.to.expressions if one.name.isdigit()]
    value = node.this
    if target == "text":
        name = {"boolean": "x_boolean_text", "interval": "x_interval_text"}.get(given, "x_text")
        text = t.call(name, value)
        return call("x_left", text, parameters[0]) if parameters else text
    if target == "real" and len(parameters) == 2:
        return t.call("x_decimal", value, exp.convert(parameters[1]))
    if target == "real" and parameters:
        return t.call("x_decimal", value, exp.convert(0))
    if target == "integer" and given == "float":
        return t.call("x_float_integer", value)
    if target == "date" and isinstance(value, exp.Literal):
        return t.matched(value, node)
    name = {"integer": "x_integer", "real": "x_number", "float": "x_number", "date": "x_date", "time": "x_time",
            "timestamp": "x_timestamp", "boolean": "x_boolean", "interval": "x_interval"}.get(target)  # fmt: skip
    if name is None:
        raise Untranslated(f"CAST AS {node.to.sql(t.dialect)}")
    return t.call(name, value)


def joined_text(t: Translator, node: exp.DPipe) -> exp.Expression:
    sides = []
    for side in (node.this, node.expression):
        kind = t.kind(side)
        if kind == "array":
            raise Untranslated("|| of arrays")
        plain = kind in ("text", "literal")
        name = "x_boolean_text" if kind == "boolean" else "x_interval_text" if kind == "interval" else "x_text"
        sides.append(t.convert(side) if plain else t.call(name, side))
    return exp.DPipe(this=sides[0], expression=sides[1])


def truncated(t: Translator, node: exp.TimestampTrunc) -> exp.Expression:
    return t.call("x_date_trunc", exp.convert(node.args["unit"].name.lower()), node.this)


def at_time_zone(t: Translator, node: exp.AtTimeZone) -> exp.Expression:
    zone = node.args.get("zone")
    if zone is None or zone.name.lower() not in ("utc", "gmt", "etc/utc"):
        raise Untranslated("time zones")
    return t.convert(node.this)


def age(t: Translator, *dates: exp.Expression) -> exp.Expression:
    if len(dates) == 1:
        dates = (exp.convert(moments.NOW.date().isoformat()), *dates)
    return t.call("x_age", *dates)


def make_interval(t: Translator, node: exp.MakeInterval) -> exp.Expression:
    """MAKE_INTERVAL, with or without the names of its parts."""
    given = {}
    for name in ("year", "month", "week", "day", "hour", "minute", "second"):
        part = node.args.get(name)
        if isinstance(part, exp.Kwarg):
            given[part.this.name.lower().removesuffix("s")] = t.convert(part.expression)
        elif part is not None:
            given[{"minute": "min", "second": "sec"}.get(name, name)] = t.convert(part)
    parts = (given.get(one, 0) for one in ("year", "month", "week", "day", "hour", "min", "sec"))
    return call("x_make_interval", *parts)


RULES: dict[type, Callable] = {
    exp.Add: sum_or_shift,
    exp.Sub: sum_or_shift,
    exp.Mul: product,
    exp.Div: quotient,
    exp.Cast: cast,
    exp.DPipe: joined_text,
    exp.TimestampTrunc: truncated,
    exp.DateTrunc: truncated,
    exp.AtTimeZone: at_time_zone,
    exp.ArrayAgg: array_aggregate,
    exp.WithinGroup: percentile,
    exp.Left: to("x_left", "this", "expression"),
    exp.SplitPart: to("x_split_part", "this", "delimiter", "part_index"),
    exp.Initcap: to("x_initcap", "this"),
    exp.Translate: to("x_translate", "this", "from_", "to"),
    exp.StartsWith: to("x_starts_with", "this", "expression"),
    exp.Overlay: to("x_overlay", "this", "expression", "from_", "for_"),
    exp.Cbrt: to("x_cbrt", "this"),
    exp.RegrSlope: to("x_slope", "this", "expression"),
    exp.RegrIntercept: to("x_intercept", "this", "expression"),
    exp.WidthBucket: to("x_bucket", "this", "min_value", "max_value", "num_buckets"),
    exp.Format: lambda t, node: t.call("x_format_text", node.this, *node.expressions),
    exp.Hex: lambda t, node: call("LOWER", t.call("x_hexadecimal", node.this)),
    exp.SHA2Digest: to("x_digest", "this", "length"),
    exp.MakeInterval: make_interval,
    exp.Corr: to("x_corr", "this", "expression"),
    exp.Stddev: to("x_stddev_samp", "this"),
    exp.RegexpLike: to("x_matches", "this", "expression"),
    exp.RegexpILike: lambda t, node: t.call("x_matches", node.this, node.expression, exp.convert("i")),
    exp.SimilarTo: to("x_similar", "this", "expression"),
}
NAMED: dict[str, str | Callable] = {
    "age": age,
    "make_date": "x_make_date",
    "every": "MIN",
    "octet_length": "x_bytes",
    "num_nulls": "x_nulls",
    "num_nonnulls": "x_not_nulls",
    "quote_literal": "x_quoted",
    "isfinite": "x_is_finite",
    "regexp_count": "x_regexp_count",
}
