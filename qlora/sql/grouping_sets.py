"""GROUP BY with ROLLUP, CUBE and GROUPING SETS, as a union of plain groupings."""

import itertools

from qlora.sql.distinct_on import key
from qlora.sql.translator import Translator, Untranslated

from sqlglot import exp

_MARKS = (exp.Rollup, exp.Cube, exp.GroupingSets)


def has_grouping_sets(node: exp.Select) -> bool:
    group = node.args.get("group")
    return group is not None and (
        any(isinstance(one, _MARKS) for one in group.expressions) or any(group.args.get(n) for n in ("rollup", "cube"))
    )


def grouping_sets(t: Translator, node: exp.Select) -> exp.Expression:
    """The query as UNION ALL of one SELECT for each set of keys; keys that are not in the set are NULL."""
    sets = [[_key(t, one, node) for one in found] for found in _sets(node.args["group"])]
    keys = list({one.sql(): one for found in sets for one in found}.values())
    if any(not found for found in sets) and node.find(exp.AggFunc) is None:
        raise Untranslated("an empty grouping set without an aggregate")
    if any(one.find(exp.Window) for one in node.selects) or node.args.get("distinct"):
        raise Untranslated("windows and DISTINCT over grouping sets")
    parts = [t.convert(_part(node, found, keys)) for found in sets]
    clause = parts[0].args.get("with_")
    for one in parts:
        one.set("with_", None)
    union = parts[0]
    for one in parts[1:]:
        union = exp.Union(this=union, expression=one, distinct=False)
    query = exp.select("*").from_(union.subquery("_sets")) if len(parts) > 1 else union
    order = node.args.get("order")
    if order is not None:
        query.set("order", exp.Order(expressions=[_ordered(t, one, node) for one in order.expressions]))
    for name in ("limit", "offset"):
        query.set(name, t.convert(node.args.get(name)))
    query.set("with_", clause)
    return query


def _sets(group: exp.Group) -> list[list[exp.Expression]]:
    """The sets of keys: each part of GROUP BY gives some, and every choice of them is one."""
    plain = [one for one in group.expressions if not isinstance(one, _MARKS)]
    if group.args.get("rollup"):  # MySQL's WITH ROLLUP
        return [plain[:size] for size in range(len(plain), -1, -1)]
    if group.args.get("cube"):
        raise Untranslated("WITH CUBE")
    choices = [[_members(one)] if not isinstance(one, _MARKS) else _of(one) for one in group.expressions]
    return [list(itertools.chain(*one)) for one in itertools.product(*choices)]


def _of(mark: exp.Expression) -> list[list[exp.Expression]]:
    members = [_members(one) if not isinstance(one, _MARKS) else one for one in mark.expressions]
    if isinstance(mark, exp.GroupingSets):
        found: list[list] = []
        for one in members:
            found += _of(one) if isinstance(one, exp.Expression) else [one]
        return found
    if any(isinstance(one, exp.Expression) for one in members):
        raise Untranslated("nested grouping sets")
    sizes = range(len(members), -1, -1)
    if isinstance(mark, exp.Rollup):
        return [list(itertools.chain(*members[:size])) for size in sizes]
    return [list(itertools.chain(*some)) for size in sizes for some in itertools.combinations(members, size)]


def _members(node: exp.Expression) -> list[exp.Expression]:
    return list(node.expressions) if isinstance(node, exp.Tuple) else [node.unnest()]


def _key(t: Translator, node: exp.Expression, select: exp.Select) -> exp.Expression:
    return key(t, node, select)


def _part(node: exp.Select, found: list[exp.Expression], keys: list[exp.Expression]) -> exp.Select:
    """A copy of the SELECT that groups by the keys of one set."""
    part = node.copy()
    part.parent = node.parent  # where its columns and tables are looked up
    grouped = {one.sql() for one in found}
    absent = {one.sql() for one in keys} - grouped
    part.set("group", exp.Group(expressions=[one.copy() for one in found]) if found else None)
    for name in ("order", "limit", "offset"):
        part.set(name, None)
    clauses = [*part.selects, *([part.args["having"]] if part.args.get("having") else [])]
    for clause in clauses:
        for one in list(clause.find_all(exp.Grouping)):
            bits = [int(each.sql() not in grouped) for each in one.expressions]
            one.replace(exp.convert(int("".join(map(str, bits)), 2)))
    for clause in clauses:
        for one in list(clause.walk(prune=lambda n: isinstance(n, exp.AggFunc) or n.sql() in absent)):
            if one.sql() in absent:
                if one is clause:  # an output keeps its name
                    one.replace(exp.alias_(exp.Null(), one.alias_or_name or "_", quoted=True))
                else:
                    one.replace(exp.Null())
    return part


def _ordered(t: Translator, one: exp.Ordered, node: exp.Select) -> exp.Ordered:
    """A key of ORDER BY as the number of an output."""
    wanted = one.this
    if isinstance(wanted, exp.Literal) and wanted.is_int:
        place = int(wanted.this)
    else:
        names = [output.alias.lower() for output in node.selects]
        texts = [output.unalias().sql() for output in node.selects]
        name = wanted.name.lower() if isinstance(wanted, exp.Column) and not wanted.table else None
        if name in names:
            place = names.index(name) + 1
        elif wanted.sql() in texts:
            place = texts.index(wanted.sql()) + 1
        else:
            raise Untranslated("ORDER BY of what grouping sets do not show")
    return exp.Ordered(this=exp.convert(place), desc=one.args.get("desc"), nulls_first=one.args.get("nulls_first"))
