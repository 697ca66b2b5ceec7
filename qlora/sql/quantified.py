"""Comparisons with ANY and ALL, which SQLite lacks."""

from qlora.sql.dialect_documents import elements
from qlora.sql.translator import Translator, Untranslated

from sqlglot import exp


def is_quantified(node: exp.Expression) -> bool:
    """Whether a side of a comparison is ANY(...) or ALL(...); sqlglot takes ALL of an array for a function."""
    return isinstance(node, (exp.Any, exp.All)) or (isinstance(node, exp.Anonymous) and node.name.upper() == "ALL")


def quantified(t: Translator, node: exp.Binary) -> exp.Expression:
    """A comparison with ANY or ALL of an array or a query."""
    side = node.expression
    inner, any_one = (side.expressions[0] if isinstance(side, exp.Anonymous) else side.this), isinstance(side, exp.Any)
    inner = inner.unnest()
    same = isinstance(node, exp.EQ) and any_one
    if isinstance(inner, exp.Array) and len(inner.expressions) == 1 and isinstance(inner.expressions[0], exp.Query):
        inner = inner.expressions[0]
    listed = _listed(inner)
    if isinstance(inner, exp.Query):
        if not same and not (isinstance(node, exp.NEQ) and not any_one):
            return _counted(t, node, inner, any_one)
        found = exp.In(this=t.convert(node.this), query=exp.Subquery(this=t.convert(inner)))
    elif listed is not None:
        parts = [t.convert(type(node)(this=node.this, expression=one)) for one in _adopted(listed, node)]
        if not parts:
            return exp.convert(not any_one)
        return exp.Paren(this=exp.or_(*parts) if any_one else exp.and_(*parts))
    elif same or (isinstance(node, exp.NEQ) and not any_one):
        found = t.call("x_array_has", inner, node.this)
    else:
        raise Untranslated("a comparison with ANY or ALL of an array")
    return found if same else exp.Not(this=found)


def _listed(node: exp.Expression) -> list[exp.Expression] | None:
    """The elements of an array that is written as ARRAY[...] or as '{...}'; None for any other."""
    inner = node.this if isinstance(node, exp.Cast) and isinstance(node.this, (exp.Literal, exp.Array)) else node
    if isinstance(inner, exp.Array) and not (inner.expressions and isinstance(inner.expressions[0], exp.Query)):
        return list(inner.expressions)
    if isinstance(inner, exp.Literal) and inner.is_string and inner.this.strip().startswith("{"):
        return [exp.Null() if one is None else exp.Literal.string(one) for one in elements(inner.this)]
    return None


def _adopted(nodes: list[exp.Expression], parent: exp.Expression) -> list[exp.Expression]:
    for one in nodes:
        one.parent = one.parent or parent
    return nodes


def _counted(t: Translator, node: exp.Binary, query: exp.Query, any_one: bool) -> exp.Expression:
    """A comparison with ANY or ALL of a query: one row of it that is as wanted, or none that is not."""
    inner = t.convert(query)
    if not isinstance(inner, exp.Select) or len(inner.selects) != 1:
        raise Untranslated("ANY or ALL of this query")
    inner.set("expressions", [exp.alias_(inner.selects[0].unalias(), "_value")])
    truth = type(node)(this=t.convert(node.this), expression=exp.column("_value", "_all"))
    decided = truth if any_one else exp.Not(this=exp.Paren(this=truth))
    return exp.Subquery(
        this=exp.select(
            exp.case()
            .when(f"SUM({decided.sql('sqlite')}) > 0", exp.convert(int(any_one)))
            .when(f"SUM(({truth.sql('sqlite')}) IS NULL) > 0", exp.Null())
            .else_(exp.convert(int(not any_one)))
        ).from_(inner.subquery("_all"))
    )
