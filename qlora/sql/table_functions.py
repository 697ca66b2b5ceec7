"""Functions in FROM that give rows: GENERATE_SERIES, UNNEST, JSON_ARRAY_ELEMENTS, by SQLite's json_each."""

from qlora.sql.scopes import MOMENTS
from qlora.sql.translator import Translator, Untranslated, call

from sqlglot import exp

IN_OUTPUTS = (exp.Explode, exp.ExplodingGenerateSeries)
_OF_JSON = {
    "json_array_elements": ("x_json_elements", 0),
    "jsonb_array_elements": ("x_json_elements", 0),
    "json_array_elements_text": ("x_json_elements", 1),
    "jsonb_array_elements_text": ("x_json_elements", 1),
    "json_object_keys": ("x_json_keys",),
    "jsonb_object_keys": ("x_json_keys",),
}


def listed(t: Translator, node: exp.Expression) -> exp.Expression:
    """The JSON array of the values of a function that gives rows. Raises Untranslated for any other."""
    if isinstance(node, (exp.GenerateSeries, exp.ExplodingGenerateSeries)):
        start, end, step = (node.args.get(name) for name in ("start", "end", "step"))
        kinds = {t.kind(start), t.kind(end)}
        if kinds & set(MOMENTS) or t.kind(step) in ("literal", "interval"):
            moved = t.convert(step) if t.kind(step) == "interval" else t.call("x_interval", step)
            return call("x_series_of_moments", t.convert(start), t.convert(end), moved)
        return t.call("x_series", start, end, *([step] if step is not None else []))
    if isinstance(node, exp.Unnest) and len(node.expressions) == 1 and not node.args.get("offset"):
        return t.call("x_array_list", node.expressions[0])
    if isinstance(node, exp.Explode):
        return t.call("x_array_list", node.this)
    if isinstance(node, exp.Anonymous) and node.name.lower() in _OF_JSON and len(node.expressions) == 1:
        name, *more = _OF_JSON[node.name.lower()]
        return call(name, t.convert(node.expressions[0]), *more)
    raise Untranslated(f"rows of {node.name or type(node).__name__}")


def source(t: Translator, node: exp.Expression) -> exp.Expression:
    """The function in FROM or in a join as SQLite has it: json_each(...) AS alias, whose `value` is the column."""
    inner = node.this if isinstance(node, (exp.Table, exp.Lateral)) else node
    if isinstance(node, exp.Table) and node.args.get("ordinality"):
        raise Untranslated("WITH ORDINALITY")
    table = exp.Table(this=exp.Anonymous(this="json_each", expressions=[listed(t, inner)]))
    table.set("alias", exp.TableAlias(this=exp.to_identifier(t.scopes.row_function(node)[0], quoted=True)))
    table.set("joins", t.convert(node.args.get("joins") or []))
    return table


def in_output(t: Translator, node: exp.Select) -> exp.Select:
    """A SELECT with one such function among its outputs: a row for each of its values."""
    found = [one for output in node.selects for one in output.find_all(*IN_OUTPUTS)]
    if len(found) != 1 or found[0].parent_select is not node or isinstance(found[0].parent, exp.Func):
        raise Untranslated("several functions that give rows in one SELECT")
    values = exp.Table(this=exp.Anonymous(this="json_each", expressions=[listed(t, found[0])]))
    values.set("alias", exp.TableAlias(this=exp.to_identifier("_values")))
    t.replaced[id(found[0])] = exp.column("value", "_values")
    new = t.copy(node)
    if new.args.get("from_") is None:
        new.set("from_", exp.From(this=values))
    else:
        new.append("joins", exp.Join(this=values, kind="CROSS"))
    return new
