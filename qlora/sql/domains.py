"""Which columns of a schema share their values, and which are unique."""

import itertools
from collections import defaultdict

from qlora.sql.constraints import Column, Constraints
from qlora.sql.schema import Schema


class Domains:
    """The domains of a schema's columns for one set of constraints. A domain is a set of columns that share values.

    `of`: column -> its domain, named by one of its columns. `members`: domain -> its columns. `unique`: table -> the
    single columns whose values must differ.
    """

    def __init__(self, schema: Schema, constraints: Constraints):
        self.of = _shared_domains(schema, constraints)
        self.members: dict[Column, list[Column]] = {}
        for column, domain in self.of.items():
            self.members.setdefault(domain, []).append(column)
        self.unique: dict[str, set[str]] = {}
        for table in schema.tables.values():
            declared = {columns[0] for columns in table.unique if len(columns) == 1}
            # Others must be unique for a bare column of the result to be determined.
            self.unique[table.name] = declared | {column for name, column in constraints.keys if name == table.name}

    def is_joined(self, table: str, column: str) -> bool:
        """Whether another column shares the values of this one."""
        return len(self.members[self.of[table, column]]) > 1

    def looks_like_key(self, table: str, column: str) -> bool:
        """Whether the column is joined and has the name of its table's identifier (dept.dept_id, dept.id)."""
        stem = table.rstrip("s").replace("_", "")[:5]
        return self.is_joined(table, column) and (
            column in ("id", "code", "key", "uid")
            or (column.endswith(("id", "code")) and column.replace("_", "").startswith(stem))
        )


def _shared_domains(schema: Schema, constraints: Constraints) -> dict[Column, Column]:
    """Column -> the representative of the columns that share its values.

    Columns share values if a query compares them, if one is a foreign key to the other, or if both have the same name
    and it ends as an identifier's does.
    """
    parent: dict[Column, Column] = {
        (t.name, column): (t.name, column) for t in schema.tables.values() for column in t.columns
    }

    def find(column: Column) -> Column:
        while parent[column] != column:
            column = parent[column]
        return column

    links = list(constraints.linked)
    links += [((key.table, key.column), (key.parent, key.parent_column)) for key in schema.foreign_keys]
    by_name = defaultdict(list)
    for table, column in parent:
        if column.endswith(("_id", "_code", "_no", "_number", "_key")):
            by_name[column].append((table, column))
    links += [pair for columns in by_name.values() for pair in itertools.pairwise(columns)]
    for one, other in links:
        parent[find(one)] = find(other)
    return {column: find(column) for column in parent}
