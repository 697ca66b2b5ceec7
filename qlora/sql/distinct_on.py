"""SELECT DISTINCT ON of PostgreSQL's, by a window."""

from qlora.sql.translator import Translator, Untranslated

from sqlglot import exp


def distinct_on(t: Translator, node: exp.Select, on: exp.Expression) -> exp.Expression:
    """SELECT DISTINCT ON: the first row of each group, by a window."""
    outputs = t.scopes.outputs(node)
    if outputs is None or len(outputs) != len(node.selects):
        raise Untranslated("DISTINCT ON with *")
    inner = t.copy(node)
    inner.set("distinct", None)
    for clause in ("order", "limit", "offset", "with_"):
        inner.set(clause, None)
    order = node.args.get("order")
    keys = [t.convert(key(t, one.this, node)) for one in order.expressions] if order else []
    ordered = [
        exp.Ordered(this=key.copy(), desc=one.args.get("desc"), nulls_first=one.args.get("nulls_first"))
        for key, one in zip(keys, order.expressions if order else [], strict=True)
    ]
    groups = [t.convert(key(t, one, node)) for one in (on.expressions if isinstance(on, exp.Tuple) else [on])]
    number = exp.Window(
        this=exp.RowNumber(), partition_by=groups, order=exp.Order(expressions=ordered) if ordered else None
    )
    names = [f"_{place}" for place in range(len(node.selects))]
    inner.set(
        "expressions",
        [exp.alias_(one.unalias().copy(), name) for one, name in zip(inner.selects, names, strict=True)]
        + [exp.alias_(number, "_first")]
        + [exp.alias_(key, f"_key{place}") for place, key in enumerate(keys)],
    )
    outer = (
        exp.select(
            *(
                exp.alias_(exp.column(name), one.alias_or_name or name, quoted=True)
                for name, one in zip(names, node.selects, strict=True)
            )
        )
        .from_(inner.subquery("_rows"))
        .where("_first = 1")
    )
    if ordered:
        again = [
            exp.Ordered(
                this=exp.column(f"_key{place}"), desc=one.args.get("desc"), nulls_first=one.args.get("nulls_first")
            )
            for place, one in enumerate(order.expressions)
        ]
        outer.set("order", exp.Order(expressions=again))
    for clause in ("limit", "offset", "with_"):
        outer.set(clause, t.convert(node.args.get(clause)))
    return outer


def key(t: Translator, node: exp.Expression, select: exp.Select) -> exp.Expression:
    """The expression that a key of ORDER BY or DISTINCT ON stands for: perhaps an output, by name or position."""
    if isinstance(node, exp.Literal) and node.is_int:
        return select.selects[int(node.this) - 1].unalias()
    if isinstance(node, exp.Column) and not node.table and t.scopes.find(node, local=True) is None:
        return next((one.unalias() for one in select.selects if one.alias.lower() == node.name.lower()), node)
    return node
