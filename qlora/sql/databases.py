"""Make up data for a schema, such that queries with different meanings give different results on it.

The idea is that of test suites distilled for a query's neighbours (Zhong, Yu and Klein 2020, "Semantic Evaluation for
Text-to-SQL with Distilled Test Suites"), where no database exists to start from: values come from the literals of the
queries themselves with their neighbours, and "witness" rows satisfy all of a query's conditions across its joined
tables, or all but one, as in query-aware generation (Binnig et al. 2007, "QAGen"; Chandra et al. 2015, "XData").
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, replace
from random import Random

from qlora.sql.constraints import Atom, Column, Constraints, Scene, Value, is_number, neighbours, word
from qlora.sql.queries import Place
from qlora.sql.schema import ForeignKey, Schema, Table

Row = dict[str, Value]


@dataclass(frozen=True)
class Shape:
    """How one database is filled: rows a table, values a column, share of NULLs, whether values repeat.

    `bare`: no rows but the witnesses.
    """

    rows: tuple[int, int]
    values: tuple[int, int]
    nulls: float = 0.0
    distinct: bool = False
    bare: bool = False


# In this order, again and again. Few values make ties and duplicates; distinct values determine ORDER BY ... LIMIT; a
# few witnesses alone let one row decide an aggregate (MIN over many rows hardly notices a row more).
_FEW = Shape(rows=(1, 3), values=(4, 9), bare=True)
_FEW_AND_NULLS = replace(_FEW, nulls=0.25)
SHAPES = (
    Shape(rows=(14, 36), values=(3, 6)),
    Shape(rows=(12, 32), values=(40, 60), distinct=True),
    _FEW_AND_NULLS,
    Shape(rows=(12, 30), values=(3, 7), nulls=0.12),
    _FEW_AND_NULLS,
    Shape(rows=(14, 40), values=(30, 50), nulls=0.05, distinct=True),
    _FEW,
    Shape(rows=(8, 20), values=(2, 4)),
    _FEW,
    Shape(rows=(1, 3), values=(2, 3)),
)


class Generator:
    """Databases of one schema for one set of constraints."""

    def __init__(self, schema: Schema, constraints: Constraints):
        self.schema = schema
        self.constraints = constraints
        self.domain_of = _shared_domains(schema, constraints)
        members = defaultdict(list)
        for column, domain in self.domain_of.items():
            members[domain].append(column)
        self.members = dict(members)
        self.keys = {table.name: self._unique_columns(table) for table in schema.tables.values()}

    def _unique_columns(self, table: Table) -> set[str]:
        """Single columns whose values must differ: declared so, or needed for a bare column to be determined."""
        declared = {columns[0] for columns in table.unique if len(columns) == 1}
        return declared | {column for name, column in self.constraints.keys if name == table.name}

    def looks_like_key(self, table: str, column: str) -> bool:
        """Whether `column` is joined and named as the table's own identifier is (dept.dept_id, dept.id)."""
        stem = table.rstrip("s").replace("_", "")[:5]
        return self.is_joined(table, column) and (
            column in ("id", "code", "key", "uid")
            or (column.endswith(("id", "code")) and column.replace("_", "").startswith(stem))
        )

    def is_joined(self, table: str, column: str) -> bool:
        return len(self.members[self.domain_of[table, column]]) > 1

    def database(self, random: Random, shape: Shape, nulls: bool = True) -> dict[str, list[tuple]]:
        """Rows for every table, in random order. Declared keys and foreign keys hold."""
        return _Filling(self, random, shape if nulls else replace(shape, nulls=0.0)).fill()


def _shared_domains(schema: Schema, constraints: Constraints) -> dict[Column, Column]:
    """Column -> the representative of the columns that it shares values with."""
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


class _Filling:
    """One database in the making."""

    def __init__(self, generator: Generator, random: Random, shape: Shape):
        self.generator, self.random, self.shape = generator, random, shape
        self.schema, self.constraints = generator.schema, generator.constraints
        self.counter = itertools.count(random.randint(100, 900))
        self.numeric: dict[Column, bool] = {}
        self.seeds: dict[Column, list[Value]] = {}
        self.fresh: dict[Column, list[Value]] = {}
        self.choices: dict[Column, tuple[list[Value], list[float]]] = {}
        for domain, columns in generator.members.items():
            self._plan_domain(domain, columns)
        self.unique = {name: set(keys) for name, keys in generator.keys.items()}
        for table in self.schema.tables.values():
            for column in table.columns:
                # An identifier is unique most of the time, and a child's column in the other times.
                if generator.looks_like_key(table.name, column) and random.random() < 0.6:
                    self.unique[table.name].add(column)
        # Columns whose values differ where there are enough of them, so that few orders are tied.
        self.spread = {
            column
            for column in generator.domain_of
            if (shape.distinct and column not in self.constraints.grouped and not generator.is_joined(*column))
            or (column in self.constraints.ordered and random.random() < 0.7)
        }
        self.used: dict[Column, set[Value]] = defaultdict(set)

    # ---- values

    def _plan_domain(self, domain: Column, columns: list[Column]) -> None:
        random = self.random
        literals = [literal for column in columns for literal in self.constraints.literals.get(column, ())]
        kinds = {_kind(self.schema.tables[table].columns[column]) for table, column in columns}
        numeric = self._is_numeric(columns, kinds, [value for _, value in literals])
        seeds = [near for operator, value in literals for near in neighbours(operator, value, random)]
        if numeric and kinds == {"text"}:  # text columns that hold numbers: as text, as a loader would put them
            seeds = [str(seed) for seed in seeds]
        count = random.randint(*self.shape.values)
        numbers = [float(value) for _, value in literals if is_number(value)]
        fractions = "real" in kinds and random.random() < 0.6
        low, high = 1, 400 if count > 20 else 12
        if numbers:
            margin = 20 + 0.4 * max(map(abs, numbers))
            low, high = min(numbers) - margin, max(numbers) + margin
        joined = len(columns) > 1
        if joined and not numbers:
            low, high = 1, max(8, count)
        fresh: list[Value] = []
        for _ in range(count):
            if numeric:
                value = round(random.uniform(low, high), 2) if fractions else random.randint(int(low), int(high))
                fresh.append(str(value) if kinds == {"text"} else value)
            elif kinds == {"date"} or (kinds == {"text"} and "date" in columns[0][1]):
                fresh.append(f"{random.randint(1990, 2024)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}")
            else:
                fresh.append(word(random).capitalize())
        self.numeric[domain] = numeric
        self.seeds[domain] = list(dict.fromkeys(seeds))
        self.fresh[domain] = list(dict.fromkeys(fresh))

    def _is_numeric(self, columns: list[Column], kinds: set[str], literals: list[Value]) -> bool:
        if kinds <= {"integer", "real"} or not self.constraints.numeric.isdisjoint(columns):
            return True
        if any(not is_number(value) for value in literals):
            return False
        chance = 0.8 if literals else 0.5 if not self.constraints.extreme.isdisjoint(columns) else 0.0
        return self.random.random() < chance

    def _choices(self, table: str, column: str) -> tuple[list[Value], list[float]]:
        """What the column's ordinary values are drawn from, with skewed weights."""
        key = (table, column)
        if key not in self.choices:
            domain = self.generator.domain_of[key]
            seeds, fresh = self.seeds[domain], self.fresh[domain]
            pool = self.random.sample(seeds, min(len(seeds), self.random.randint(2, 8))) + fresh
            if self.generator.is_joined(table, column):  # the same few values on both sides of a join
                pool = (seeds[:6] + fresh)[: max(4, len(fresh))]
            pool = list(dict.fromkeys(pool))
            self.random.shuffle(pool)
            skew = self.random.choice((0.2, 0.7, 1.1))
            self.choices[key] = pool, [1 / (rank + 1) ** skew for rank in range(len(pool))]
        return self.choices[key]

    def _new_value(self, domain: Column) -> Value:
        """A value that nothing else in this database has."""
        number = next(self.counter)
        if not self.numeric[domain]:
            return f"{word(self.random).capitalize()} {number}"
        as_text = all(_kind(self.schema.tables[t].columns[c]) == "text" for t, c in self.generator.members[domain])
        return str(number) if as_text else number

    def _value(self, table: str, column: str) -> Value:
        pool, weights = self._choices(table, column)
        if column in self.unique[table] or (table, column) in self.spread:
            unused = [value for value in pool if _folded(value) not in self.used[table, column]]
            if unused:
                return self.random.choice(unused)
            # A key beyond the shared values would join with nothing; other columns just need another value.
            return self._new_value(self.generator.domain_of[table, column])
        if self.shape.nulls and self.random.random() < self.shape.nulls and column not in self._not_null(table):
            return None
        return self.random.choices(pool, weights)[0]

    def _not_null(self, table: str) -> set[str]:
        return self.unique[table].union(self.schema.tables[table].not_null, *self.schema.tables[table].unique)

    # ---- rows

    def fill(self) -> dict[str, list[tuple]]:
        random = self.random
        rows: dict[str, list[Row]] = {name: [] for name in self.schema.tables}
        size = random.randint(*self.shape.rows)
        tiny = self.shape.rows[1] <= 3 and not self.shape.bare
        if not tiny:
            size = max([size, *(min(160, 5 * count) for count in self.constraints.counts)])
        scenes = self.constraints.scenes
        if self.shape.bare and scenes:
            scenes = [random.choice(scenes)]
        for scene in scenes:
            for witness in self._witnesses(scene, 1 if tiny else size if self.shape.bare else max(4, size // 2)):
                for table, row in witness:
                    self._add(rows[table], table, row)
        for name in self.schema.tables:
            # A key has about as many rows as there are shared values, so that most of them join.
            target = size if len(rows) == 1 else max(1, round(size * random.uniform(0.5, 1.2)))
            if self.shape.bare and rows[name]:
                continue
            for column in sorted(self.unique[name]):
                if self.generator.is_joined(name, column):
                    # ... and some have no partner.
                    target = min(target, max(3, len(self._choices(name, column)[0])) + random.randint(0, 4))
            while len(rows[name]) < target:
                if not self._add(rows[name], name, {}):
                    break
            if tiny and len(rows[name]) > target:
                rows[name] = random.sample(rows[name], target)
        if not tiny and random.random() < 0.5:
            self._block_groups(rows)
        for name in rows:  # whole rows twice, for DISTINCT; those of a table with a key go again below
            rows[name] += random.sample(rows[name], min(len(rows[name]), random.randint(0, 2)))
        self._hold_keys(rows)
        result = {}
        for name, table in self.schema.tables.items():
            result[name] = [tuple(row[column] for column in table.columns) for row in rows[name]]
            random.shuffle(result[name])
        return result

    def _add(self, rows: list[Row], table: str, fixed: Row) -> bool:
        """Add a row with the values `fixed` and others at will, unless a fixed key is taken."""
        for column in self.unique[table]:
            if column in fixed and _folded(fixed[column]) in self.used[table, column]:
                return False
        row = {
            column: fixed[column] if column in fixed else self._value(table, column)
            for column in self.schema.tables[table].columns
        }
        for column, value in row.items():
            self.used[table, column].add(_folded(value))
        rows.append(row)
        return True

    def _witnesses(self, scene: Scene, count: int) -> list[list[tuple[str, Row]]]:
        """Combinations of rows that satisfy the whole scene, or all of it but one comparison or one joined row."""
        classes = _equal_places(scene)
        breaks = self._breaks(scene)
        found = []
        for _ in range(count):
            # Each broken comparison takes one of its neighbouring values in turn.
            if self.random.random() < 0.55 and breaks:
                breaks.append(breaks.pop(0))
                found.append(self._witness(scene, classes, breaks[-1]))
            else:
                found.append(self._witness(scene, classes, None))
        return found

    def _breaks(self, scene: Scene) -> list[tuple[Atom, Value]]:
        """Comparisons of the scene with values around their own; only values that the queries disagree on, if any."""
        breaks = [
            (atom, near)
            for atom in scene.atoms
            for value in (atom.value if isinstance(atom.value, tuple) else (atom.value,))
            for near in neighbours(atom.operator, value, self.random)
        ]
        self.random.shuffle(breaks)
        disputed = [
            (atom, value)
            for atom, value in breaks
            if len({_allowed(one, atom.place, value) for one in self.constraints.scenes}) > 1
        ]
        return disputed or breaks

    def _witness(
        self, scene: Scene, classes: list[tuple[list[Place], list[Atom]]], broken: tuple[Atom, Value] | None
    ) -> list[tuple[str, Row]]:
        random = self.random
        rows: dict[int, Row] = {number: {} for number in scene.tables}
        # A missing row makes the others dangle: what LEFT JOIN, EXCEPT and NOT IN are about.
        dangling = len(rows) > 1 and random.random() < (0.4 if self.shape.bare else 0.2)
        left_out = random.choice(list(rows)) if dangling else None
        for places, atoms in classes:
            domain = self.generator.domain_of[places[0].table, places[0].column]
            if broken and broken[0] in atoms:
                value = broken[1]
            elif atoms and random.random() < 0.15:
                continue  # whatever it turns out to be: the other side of an OR must also be false at times
            elif not atoms and left_out in {place.source for place in places}:
                value = self._new_value(domain)
            else:
                value = self._satisfying(places, atoms, domain)
            for place in places:
                rows[place.source][place.column] = value
        return [(scene.tables[number], row) for number, row in rows.items() if number != left_out]

    def _satisfying(self, places: list[Place], atoms: list[Atom], domain: Column) -> Value:
        pool = self.seeds[domain] + self.fresh[domain]
        keys = [(place.table, place.column) for place in places if place.column in self.unique[place.table]]
        if keys:
            pool = [value for value in pool if all(_folded(value) not in self.used[key] for key in keys)]
            pool = pool or [self._new_value(domain)]
        elif not atoms:  # a join: prefer the values that other rows have
            some = places[0]
            pool = self._choices(some.table, some.column)[0]
        candidates = [value for value in pool if all(atom.holds(value) for atom in atoms)]
        if not candidates and atoms:  # OR, or a contradiction: satisfy one of them
            atom = self.random.choice(atoms)
            candidates = [value for value in pool if atom.holds(value)]
        return self.random.choice(candidates or pool)

    def _block_groups(self, rows: dict[str, list[Row]]) -> None:
        """Give groups different sizes, around the numbers that the query counts to, or else one after the other."""
        found = self.constraints
        if not (found.counts or found.by_count or found.grouped):
            return
        sizes = [max(1, count + step) for count in found.counts for step in (0, 1, -1)] or range(1, 7)
        for name in rows:
            columns = [column for table, column in sorted(found.grouped) if table == name]
            # A table that is only joined decides by its foreign key how many rows a group has.
            columns = columns or [
                one for one in self.schema.tables[name].columns if self.generator.is_joined(name, one)
            ]
            columns = [column for column in columns if column not in self.unique[name]]
            if not columns:
                continue
            column = self.random.choice(columns)
            values = list(self._choices(name, column)[0])
            self.random.shuffle(values)
            pairs = zip(values, dict.fromkeys(sizes), strict=False)
            blocks = itertools.chain.from_iterable([value] * size for value, size in pairs)
            blocked = list(zip(rows[name], blocks, strict=False))
            for row, value in blocked:
                row[column] = value
            rows[name] = [row for row, _ in blocked]

    def _hold_keys(self, rows: dict[str, list[Row]]) -> None:
        """Make the declared keys hold: add the missing parents, so that witnesses stay what they are, or drop rows."""
        for _ in self.schema.foreign_keys:  # a parent may need a parent of its own
            for key in self.schema.foreign_keys:
                self._add_parents(rows, key)
        for name, table in self.schema.tables.items():
            rows[name] = self._without_duplicates(table, rows[name])
        dropped = True
        while dropped:
            dropped = False
            for key in self.schema.foreign_keys:
                parents = {_folded(row[key.parent_column]) for row in rows[key.parent]} | {None}
                kept = [row for row in rows[key.table] if _folded(row[key.column]) in parents]
                dropped |= len(kept) < len(rows[key.table])
                rows[key.table] = kept

    def _add_parents(self, rows: dict[str, list[Row]], key: ForeignKey) -> None:
        parents = {_folded(row[key.parent_column]): row[key.parent_column] for row in rows[key.parent]}
        nullable = self.shape.nulls and key.column not in self._not_null(key.table)
        for row in list(rows[key.table]):  # a table may be its own parent
            value = row[key.column]
            if value is None or _folded(value) in parents:
                continue
            if nullable and self.random.random() < 0.5:
                row[key.column] = None
            elif self._add(rows[key.parent], key.parent, {key.parent_column: value}):
                parents[_folded(value)] = value
            elif parents:
                row[key.column] = self.random.choice(list(parents.values()))

    def _without_duplicates(self, table: Table, rows: list[Row]) -> list[Row]:
        keys = [*table.unique, *((column,) for column in sorted(self.unique[table.name]))]
        seen: dict[tuple[str, ...], set] = {key: set() for key in keys}
        kept = []
        for row in rows:
            values = {key: tuple(_folded(row[column]) for column in key) for key in keys}
            if any(None in values[key] for key in keys) or any(values[key] in seen[key] for key in keys):
                continue
            for key in keys:
                seen[key].add(values[key])
            kept.append(row)
        return kept


def _equal_places(scene: Scene) -> list[tuple[list[Place], list[Atom]]]:
    """The places that must have one value, with the comparisons of that value."""
    group_of: dict[Place, list[Place]] = {}
    for place in [atom.place for atom in scene.atoms] + [place for pair in scene.equal for place in pair]:
        group_of.setdefault(place, [place])
    for one, other in scene.equal:
        if group_of[one] is not group_of[other]:
            merged = group_of[one] + group_of[other]
            for place in merged:
                group_of[place] = merged
    groups = {id(group): group for group in group_of.values()}
    return [(group, [atom for atom in scene.atoms if atom.place in group]) for group in groups.values()]


def _allowed(scene: Scene, place: Place, value: Value) -> tuple[bool, ...]:
    """Whether the scene's comparisons of that column let `value` through, for each mention of its table."""
    return tuple(
        sorted(
            all(atom.holds(value) for atom in scene.atoms if atom.place == Place(number, place.table, place.column))
            for number, table in scene.tables.items()
            if table == place.table
        )
    )


def _kind(declared: str) -> str:
    """Rough type of a column: integer, real, date or text."""
    if any(part in declared for part in ("INT", "BOOL", "YEAR")):
        return "integer"
    if any(part in declared for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC", "MONEY")):
        return "real"
    if any(part in declared for part in ("DATE", "TIME")):
        return "date"
    return "text"


def _folded(value: Value) -> Value:
    return str(value).lower() if value is not None else None
