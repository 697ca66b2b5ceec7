"""Find values for the conditions and terms of queries by trial: the engine computes them for candidates."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from qlora.sql.candidates import Literals, for_column, for_columns
from qlora.sql.conditions import Condition, Term, Variable
from qlora.sql.constraints import Constraints
from qlora.sql.documents import JSON_READERS, path_of
from qlora.sql.engine import Engine
from qlora.sql.kinds import holds
from qlora.sql.literals import Value, literal_value
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import Schema, Table

from sqlglot import exp

_TABLE = "candidates"
_FAILS = object()
_MOST_VARIABLES = 8
_MOST_PAIRS = 12  # of a term of one query with one of another
_OF_A_CLASS = 6  # rows kept
_CLASSES = 60


@dataclass
class Group:
    """Variables whose values conditions and terms link, with values for them.

    `conditions`: those on the variables. `classes`: what the conditions and terms are -> rows of values. The first
    `len(conditions)` parts of a class are the truths of the conditions: True, False or None.
    """

    variables: list[Variable]
    conditions: list[Condition] = field(default_factory=list)
    terms: list[list[Term]] = field(default_factory=list)
    classes: dict[tuple, list[tuple]] = field(default_factory=dict)

    def choose(self, wanted: set[Condition], random: Random) -> dict[Variable, Value]:
        """Values of some class; with `wanted`, one in which these are as their query asks, if there is one."""
        classes = list(self.classes)
        indices = [index for index, one in enumerate(self.conditions) if one in wanted]
        if indices:
            fits = {one: sum(one[index] is self.conditions[index].wanted for index in indices) for one in classes}
            most = max(fits.values())
            classes = [one for one in classes if fits[one] == most]
        return dict(zip(self.variables, random.choice(self.classes[random.choice(classes)]), strict=True))


def solve(constraints: Constraints, schema: Schema, engine: Engine, random: Random) -> list[Group]:
    """Groups with values, for all conditions and terms of the constraints."""
    found = []
    for group in _groups(constraints):
        if len(group.variables) <= _MOST_VARIABLES:
            _Trial(group, constraints, schema, engine, random).run()
            if group.classes:
                found.append(group)
    return found


def _groups(constraints: Constraints) -> list[Group]:
    """The conditions and terms of all queries, in groups that share no variable."""
    group_of: dict[Variable, Group] = {}
    for scene in constraints.scenes:
        for one in [*scene.conditions, *scene.terms]:
            merged = Group([])
            for variable in one.variables:
                old = group_of.get(variable)
                merged.variables += [
                    each for each in (old.variables if old else [variable]) if each not in merged.variables
                ]
            for variable in merged.variables:
                group_of[variable] = merged
    groups = list({id(group): group for group in group_of.values()}.values())
    for group in groups:
        conditions = [
            one for scene in constraints.scenes for one in scene.conditions if one.variables[0] in group.variables
        ]
        group.conditions = list(dict.fromkeys(conditions))
        group.terms = [
            [one for one in scene.terms if one.variables[0] in group.variables] for scene in constraints.scenes
        ]
    return groups


@lru_cache(maxsize=1024)
def _trial_schema(columns: tuple[tuple, ...], enums: tuple) -> Schema:
    """A table with the columns (name, type, type as written, kind, choices). Engines keep databases of a schema."""
    types, declared, kinds = ({column[0]: column[part] for column in columns} for part in (1, 2, 3))
    choices = {column[0]: column[4] for column in columns if column[4]}
    return Schema({_TABLE: Table(_TABLE, types, (), (), frozenset(), declared, kinds, choices)}, (), enums=dict(enums))


class _Trial:
    """Tries candidates for one group."""

    def __init__(self, group: Group, constraints: Constraints, schema: Schema, engine: Engine, random: Random):
        self.group, self.constraints, self.schema = group, constraints, schema
        self.engine, self.random = engine, random
        self.kinds = [constraints.kinds[one.table, one.column] for one in group.variables]
        self.terms = list(dict.fromkeys(term for terms in group.terms for term in terms))
        # Terms of one column, with its number; terms of the first query with others of the last.
        self.changes = [
            (number, group.variables.index(term.variables[0]))
            for number, term in enumerate(self.terms)
            if len(term.variables) == 1
        ]
        first, last = ([self.terms.index(term) for term in group.terms[end]] for end in (0, -1))
        self.pairs = [(one, other) for one in first for other in last if one != other][:_MOST_PAIRS]
        tables = [schema.tables[one.table] for one in group.variables]
        self.choices = {
            one.name: table.choices[one.column]
            for one, table in zip(group.variables, tables, strict=True)
            if one.column in table.choices
        }
        columns = [("number", "INTEGER", "INTEGER", "integer", None)]
        for one, table in zip(group.variables, tables, strict=True):
            kind, choices = table.kinds.get(one.column, ""), table.choices.get(one.column)
            kind_as_written = table.declared.get(one.column, table.columns[one.column])
            columns.append((one.name, table.columns[one.column], kind_as_written, kind, choices))
        self.trial_schema = _trial_schema(tuple(columns), tuple(schema.enums.items()))

    def run(self) -> None:
        database = self.engine.database(self.trial_schema)
        literals = self._literals(database)
        pools = [
            self._pool(variable, kind, literals)
            for variable, kind in zip(self.group.variables, self.kinds, strict=True)
        ]
        if len(pools) == 1:
            rows = [(value,) for value in pools[0]]
        else:
            rows = [row for row in for_columns(self.kinds, pools, literals, self.random) if self._is_allowed(row)]
        rows = list(dict.fromkeys(rows))
        database.fill({_TABLE: [(number, *row) for number, row in enumerate(rows)]})
        outcomes = [self._values(database, one.tree, len(rows)) for one in (*self.group.conditions, *self.terms)]
        kept: dict[tuple, list[tuple]] = defaultdict(list)
        for number, row in enumerate(rows):
            if any(outcome[number] is _FAILS for outcome in outcomes):
                continue  # a query fails on all of a database that has such a row
            kept[self._class([outcome[number] for outcome in outcomes], row)].append(row)
        classes = list(kept)
        if len(classes) > _CLASSES:
            classes = self.random.sample(classes, _CLASSES)
        for one in classes:
            members = kept[one]
            self.group.classes[one] = self.random.sample(members, min(_OF_A_CLASS, len(members)))

    def _pool(self, variable: Variable, kind: str, literals: Literals) -> list[Value]:
        table = self.schema.tables[variable.table]
        if variable.name in self.choices:
            pool = [*self.choices[variable.name], None]
        else:
            plain = [value for _, value in self.constraints.literals.get((variable.table, variable.column), ())]
            pool = [*plain, *for_column(kind, literals, self.random)]
        if variable.column in table.not_null or variable.column in table.primary_key:
            pool = [value for value in pool if value is not None]
        return [value for value in dict.fromkeys(pool) if holds(kind, value)] or pool

    def _is_allowed(self, row: tuple) -> bool:
        for variable, kind, value in zip(self.group.variables, self.kinds, row, strict=True):
            if variable.name in self.choices and value is not None and value not in self.choices[variable.name]:
                return False
            if not holds(kind, value):
                return False
        return True

    def _literals(self, database) -> Literals:
        values, constants, paths = [], [], []
        for one in (*self.group.conditions, *self.terms):
            for node in one.tree.walk():
                if isinstance(node, JSON_READERS) and not isinstance(node.parent, JSON_READERS):
                    paths.append(path_of(node))
                if isinstance(node, (exp.Literal, exp.Neg)):
                    values.append(literal_value(node))
                elif _is_constant(node):
                    constants.append(node)
        constants = [one for one in constants if not _is_constant(one.parent)][:20]
        for node in constants:
            try:
                result = database.run(f"SELECT {self.engine.write(node, self.trial_schema)}")
                values += [one for one in result.rows[0] if isinstance(one, (int, float, str))]
            except QueryError:
                continue
        found = Literals.of([value for value in values if value is not None])
        found.paths = list(dict.fromkeys(path for path in paths if path))
        return found

    def _values(self, database, tree: exp.Expression, count: int) -> list:
        """What `tree` is for each row of candidates; None for all where the engine does not compute it."""
        query = exp.select(exp.column("number"), tree.copy()).from_(_TABLE)
        try:
            found = dict(database.run(self.engine.write(query, self.trial_schema)).rows)
        except QueryError as error:
            if error.kind != "data":
                return [None] * count
            found = self._one_by_one(database, query, count)
        return [found.get(number) for number in range(count)]

    def _one_by_one(self, database, query: exp.Select, count: int) -> dict[int, object]:
        """The values by row, as some rows make the query fail: text that is no number, a division by zero."""
        found: dict[int, object] = {}
        for number in range(count):
            one = query.copy().where(exp.column("number").eq(number))
            try:
                found |= dict(database.run(self.engine.write(one, self.trial_schema)).rows)
            except QueryError:
                found[number] = _FAILS
        return found

    def _class(self, outcome: list, row: tuple) -> tuple:
        """What tells rows apart: the truths of conditions, which terms change their column, and which terms differ."""
        count = len(self.group.conditions)
        truths = [None if value is None else _truth(value) for value in outcome[:count]]
        changed = [outcome[count + term] != row[column] for term, column in self.changes]
        differ = [outcome[count + one] != outcome[count + other] for one, other in self.pairs]
        return (*truths, *changed, *differ)


def _truth(value: object) -> bool:
    return value not in (0, "0", "", False, "f", "false")


def _is_constant(node: exp.Expression | None) -> bool:
    """Whether `node` computes something of literals alone."""
    if not isinstance(node, (exp.Func, exp.Binary, exp.Paren)) or isinstance(node, (exp.Connector, exp.Predicate)):
        return False
    return node.find(exp.Column, exp.Query, exp.Subquery, exp.Star) is None
