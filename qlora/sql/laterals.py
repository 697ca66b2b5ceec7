"""LATERAL subqueries, which SQLite lacks, as scalar subqueries or as joins of chosen rows."""

from qlora.sql.translator import Translator, Untranslated

from sqlglot import exp


def has_laterals(node: exp.Select) -> bool:
    return any(_is_lateral(join.this) for join in node.args.get("joins") or ())


def _is_lateral(node: exp.Expression) -> bool:
    return isinstance(node, exp.Lateral) and isinstance(node.this, exp.Subquery)


def without_laterals(t: Translator, node: exp.Select) -> exp.Select:
    """A copy of the SELECT without LATERAL.

    One that always gives one row, an aggregate without groups, becomes a scalar subquery wherever its outputs are used.
    One that chooses rows of a single table becomes a join with the rows whose ids it chooses.
    """
    new = node.copy()
    new.parent = node.parent  # where its columns and tables are looked up
    for join in list(new.args.get("joins") or ()):
        if not _is_lateral(join.this):
            continue
        condition = join.args.get("on")
        if condition is not None and condition.sql().upper() not in ("TRUE", "1 = 1"):
            raise Untranslated("LATERAL with a condition")
        query, alias = join.this.this.this, join.this.args["alias"].name
        if join.this.args["alias"].args.get("columns") or not isinstance(query, exp.Select):
            raise Untranslated("this LATERAL subquery")
        if query.args.get("group") is None and query.find(exp.AggFunc) and query.args.get("having") is None:
            _as_values(t, new, join, query, alias)
        else:
            _as_rows(t, join, query, alias)
    return new


def _outputs(query: exp.Select) -> dict[str, exp.Expression]:
    if any(one.is_star for one in query.selects):
        raise Untranslated("* in this LATERAL subquery")
    return {one.alias_or_name.lower(): one.unalias() for one in query.selects}


def _as_values(t: Translator, select: exp.Select, join: exp.Join, query: exp.Select, alias: str) -> None:
    outputs = _outputs(query)
    if any(one.is_star for one in select.selects):
        raise Untranslated("* over a LATERAL subquery")
    inside = {id(one) for one in join.find_all(exp.Column)}
    for column in list(select.find_all(exp.Column)):
        if id(column) in inside or column.name.lower() not in outputs:
            continue
        if column.table.lower() == alias.lower() or (not column.table and column.parent_select is select):
            scalar = query.copy()
            scalar.set("expressions", [outputs[column.name.lower()].copy()])
            value = exp.Subquery(this=scalar)
            shown = isinstance(column.parent, exp.Select)
            column.replace(exp.alias_(value, column.name, quoted=True) if shown else value)
    join.pop()


def _as_rows(t: Translator, join: exp.Join, query: exp.Select, alias: str) -> None:
    source = query.args.get("from_")
    table = source.this if source is not None else None
    complex_ = any(query.args.get(name) for name in ("joins", "group", "having", "distinct", "laterals", "windows"))
    if not isinstance(table, exp.Table) or table.name.lower() not in t.scopes.schema.tables or complex_:
        raise Untranslated("a LATERAL subquery of several tables or groups")
    stars = all(one.is_star for one in query.selects)
    if not stars and any(not isinstance(one, exp.Column) or one.alias_or_name != one.name for one in query.selects):
        raise Untranslated("a LATERAL subquery of computed columns")
    chosen = query.copy()
    chosen.set("expressions", [exp.column("rowid", table.alias_or_name)])
    joined = exp.to_table(table.name)
    joined.set("this", table.this.copy())
    joined.set("alias", exp.TableAlias(this=exp.to_identifier(alias)))
    condition = exp.In(this=exp.column("rowid", alias), query=exp.Subquery(this=chosen))
    new = exp.Join(this=joined, on=condition, side=join.args.get("side"))
    join.replace(new)
