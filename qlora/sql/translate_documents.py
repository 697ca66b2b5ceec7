"""The rules of translation for JSON and arrays."""

from collections.abc import Callable

from qlora.sql.scopes import NUMBERS
from qlora.sql.translate_common import to
from qlora.sql.translator import Translator, Untranslated, call

from sqlglot import exp


def path_steps(t: Translator, path: exp.Expression) -> list:
    """The keys and positions of a path, as arguments."""
    if isinstance(path, exp.JSONPath):
        steps = [one for one in path.expressions if not isinstance(one, exp.JSONPathRoot)]
        plain = all(isinstance(one, (exp.JSONPathKey, exp.JSONPathSubscript)) for one in steps)
        if not plain or not all(isinstance(one.this, (str, int)) for one in steps):
            raise Untranslated("JSON paths with wildcards and filters")
        return [one.this for one in steps]
    if isinstance(path, exp.Literal) and path.is_string and path.this.startswith("{"):
        return [one.strip(' "') for one in path.this.strip("{}").split(",") if one]
    if isinstance(path, exp.Literal) and path.is_string and path.this.startswith("$"):
        raise Untranslated(f"the JSON path {path.this}")
    return [t.convert(path)]


def extracted(t: Translator, node: exp.Expression) -> exp.Expression:
    """->, #> and JSON_EXTRACT: JSON. MySQL compares the strings in it as texts."""
    if node.expressions:
        raise Untranslated("JSON_EXTRACT of several paths")
    compared = isinstance(node.parent, (exp.Predicate, exp.Order, exp.Ordered)) and t.dialect == "mysql"
    name = "x_mysql_json_value" if compared else "x_json_get"
    return call(name, t.convert(node.this), *path_steps(t, node.expression))


def extracted_text(t: Translator, node: exp.Expression) -> exp.Expression:
    name = "x_json_text" if t.dialect == "postgres" else mysql_text(t, node)
    return call(name, t.convert(node.this), *path_steps(t, node.expression))


def mysql_text(t: Translator, node: exp.Expression) -> str:
    """The function for MySQL's ->>, a text; MySQL compares it with a number as one, and SQLite would not."""
    other = node.parent if isinstance(node.parent, exp.Predicate) else None
    sides = [other.this, other.args.get("expression")] if other is not None else []
    return "x_mysql_json_value" if any(t.kind(one) in NUMBERS for one in sides) else "x_mysql_json_text"


def unquoted(t: Translator, value: exp.Expression) -> exp.Expression:
    """MySQL's JSON_UNQUOTE."""
    if isinstance(value, exp.JSONExtract):
        return call(mysql_text(t, value.parent), t.convert(value.this), *path_steps(t, value.expression))
    raise Untranslated("JSON_UNQUOTE of what is not extracted")


def contained(
    t: Translator, value: exp.Expression, other: exp.Expression, path: exp.Expression | None = None
) -> object:
    if path is None:
        return t.call("x_mysql_json_contains", value, other)
    steps = path.this.removeprefix("$").strip(".").split(".") if isinstance(path, exp.Literal) else [""]
    if any(not one.replace("_", "").isalnum() for one in steps):
        raise Untranslated("JSON_CONTAINS with this path")
    return call("x_mysql_json_contains", t.convert(value), t.convert(other), *steps)


def array(t: Translator, node: exp.Array) -> exp.Expression:
    if len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
        raise Untranslated("ARRAY of a query")
    if any(isinstance(one, exp.Array) for one in node.expressions):
        raise Untranslated("arrays of arrays")
    return t.call("x_array", *node.expressions)


def element(t: Translator, node: exp.Bracket) -> exp.Expression:
    if len(node.expressions) != 1 or isinstance(node.expressions[0], exp.Slice):
        raise Untranslated("a slice of an array")
    inner = node.this.unnest()
    if isinstance(inner, exp.Anonymous) and inner.name.lower() == "regexp_match":
        return call(
            "x_regexp_group", *(t.convert(one) for one in inner.expressions[:2]), t.convert(node.expressions[0])
        )
    return t.call("x_array_element", node.this, node.expressions[0])


RULES: dict[type, Callable] = {
    exp.JSONExtract: extracted,
    exp.JSONBExtract: extracted,
    exp.JSONExtractScalar: extracted_text,
    exp.JSONBExtractScalar: extracted_text,
    exp.JSONBContains: to("x_json_has_key", "this", "expression"),
    exp.JSONBContainsTopKey: to("x_json_has_key", "this", "expression"),
    exp.JSONArrayContains: to("x_mysql_json_contains", "expression", "this"),
    exp.ArrayContainsAll: to("x_contains_all", "this", "expression"),
    exp.ArrayOverlaps: to("x_array_overlaps", "this", "expression"),
    exp.Array: array,
    exp.Bracket: element,
    exp.ArraySize: to("x_array_length", "this", "expression"),
    exp.ArrayToString: to("x_array_joined", "this", "expression", "null"),
    exp.ArrayPosition: to("x_array_place", "this", "expression"),
    exp.ArrayRemove: to("x_array_without", "this", "expression"),
    exp.ArrayAppend: to("x_array_with", "this", "expression"),
    exp.StringToArray: to("x_array_split", "this", "expression"),
}
NAMED: dict[str, str | Callable] = {
    "cardinality": "x_array_cardinality",
    "json_array_length": "x_json_list_size",
    "jsonb_array_length": "x_json_list_size",
    "json_typeof": "x_json_type",
    "jsonb_typeof": "x_json_type",
    "json_extract_path": "x_json_get",
    "jsonb_extract_path": "x_json_get",
    "json_extract_path_text": "x_json_text",
    "jsonb_extract_path_text": "x_json_text",
    "jsonb_exists": "x_json_has_key",
    "json_length": "x_json_size",
    "json_valid": "x_json_valid",
    "json_unquote": unquoted,
    "json_contains": contained,
}
