"""Where the columns of a query come from: tables of the schema, through aliases, subqueries and CTEs."""

from collections.abc import Iterator
from typing import NamedTuple

from qlora.sql.schema import Schema

from sqlglot import exp


class Place(NamedTuple):
    """A column of one mention of a table: `source` is that mention's number in the query."""

    source: int
    table: str
    column: str


def sources(select: exp.Select) -> Iterator[exp.Expression]:
    """Yield the tables and subqueries in FROM and in the joins of `select`."""
    start = select.args.get("from_")
    if start is not None:
        yield start.this
    for join in select.args.get("joins") or ():
        yield join.this


def number_tables(tree: exp.Expression) -> dict[int, int]:
    """`id` of each mention of a table -> its number, in the order of the tree."""
    return {id(table): number for number, table in enumerate(tree.find_all(exp.Table))}


def resolve(column: exp.Column, schema: Schema, numbers: dict[int, int]) -> Place | None:
    """The place in the schema that `column` refers to, through aliases, subqueries, CTEs and outer queries.

    None where there is none: an output alias, an unknown name, a computed column. Raises RecursionError on a
    recursive CTE.
    """
    found = origin(column, schema, numbers)
    return found if isinstance(found, Place) else None


def origin(column: exp.Column, schema: Schema, numbers: dict[int, int]) -> Place | exp.Expression | None:
    """As `resolve`, but for a computed column the expression that a subquery or CTE computes it by."""
    select = column.parent_select
    while select is not None:
        for source in sources(select):
            if column.table and source.alias_or_name.lower() != column.table.lower():
                continue
            found = _in_source(source, column.name.lower(), schema, numbers)
            if found is not None:
                return found
        select = select.parent_select
    return None


def _in_source(
    source: exp.Expression, name: str, schema: Schema, numbers: dict[int, int]
) -> Place | exp.Expression | None:
    if isinstance(source, exp.Table):
        query = common_table(source)
        if query is None:
            table = schema.tables.get(source.name.lower())
            return Place(numbers[id(source)], table.name, name) if table and name in table.columns else None
    else:
        query = source
    for projection in outputs(query):
        if isinstance(projection, exp.Star):
            inner = [_in_source(one, name, schema, numbers) for one in sources(projection.parent)]
            return next((one for one in inner if one is not None), None)
        if projection.alias_or_name.lower() == name:
            inner = projection.unalias()
            return origin(inner, schema, numbers) if isinstance(inner, exp.Column) else inner
    return None


def common_table(table: exp.Table) -> exp.Expression | None:
    """The query of the CTE that `table` names."""
    node = table.parent
    while node is not None:
        clause = node.args.get("with_")
        for common in clause.expressions if clause else ():
            if common.alias.lower() == table.name.lower():
                return common.this
        node = node.parent
    return None


def outputs(query: exp.Expression) -> list[exp.Expression]:
    """The output expressions of a query: those of the first SELECT of a set operation."""
    while isinstance(query, (exp.Subquery, exp.SetOperation, exp.Paren)):
        query = query.this
    return query.selects if isinstance(query, exp.Select) else []
