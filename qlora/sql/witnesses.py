"""Rows that satisfy the conditions of a query together, or all of them but one."""

from random import Random

from qlora.sql.constraints import Atom, Column, Scene
from qlora.sql.literals import Value
from qlora.sql.neighbours import neighbours
from qlora.sql.places import Place
from qlora.sql.values import Values

Row = dict[str, Value]


class Witnesses:
    """Makes witnesses of `scene`: rows, one for each mention of a table, that together satisfy it or almost do.

    A broken witness has a value near a literal, chosen from those on which `scenes` (of all queries) disagree, if any.
    `dangling` is the probability that a witness lacks one of its rows.
    """

    def __init__(self, scene: Scene, scenes: list[Scene], values: Values, random: Random, dangling: float):
        self.scene, self.values, self.random, self.dangling = scene, values, random, dangling
        self.classes = _equal_places(scene)
        self.groups = [group for group in values.groups if any(scene.place(one) for one in group.variables)]
        self.breaks = self._breaks(scenes)

    def make(self, count: int) -> list[list[tuple[str, Row]]]:
        """`count` witnesses: rows with their tables. A row has only the columns that the scene is about."""
        made = []
        for _ in range(count):
            if self.random.random() < 0.55 and self.breaks:
                self.breaks.append(self.breaks.pop(0))  # each broken comparison and value in turn
                made.append(self._rows(self.breaks[-1]))
            else:
                made.append(self._rows(None))
        return made

    def _breaks(self, scenes: list[Scene]) -> list[tuple[Atom, Value]]:
        """The comparisons of the scene, each with values around its own; only disputed values, if there are any."""
        breaks = [
            (atom, near)
            for atom in self.scene.atoms
            for value in (atom.value if isinstance(atom.value, tuple) else (atom.value,))
            for near in neighbours(atom.operator, value, self.random)
            if self.values.is_possible(atom.place.table, atom.place.column, near)
        ]
        self.random.shuffle(breaks)
        disputed = [
            (atom, value) for atom, value in breaks if len({_allowed(scene, atom.place, value) for scene in scenes}) > 1
        ]
        return disputed or breaks

    def _rows(self, broken: tuple[Atom, Value] | None) -> list[tuple[str, Row]]:
        rows: dict[int, Row] = {number: {} for number in self.scene.tables}
        # Without one row the others dangle: LEFT JOIN, EXCEPT and NOT IN are about those.
        is_dangling = len(rows) > 1 and self.random.random() < self.dangling
        left_out = self.random.choice(list(rows)) if is_dangling else None
        solved = self._solved()
        for place, value in solved.items():
            rows[place.source][place.column] = value
        for places, atoms in self.classes:
            domain = self.values.domains.of[places[0].table, places[0].column]
            known = next((place for place in places if place in solved), None)
            if known:
                value = solved[known]
            elif broken and broken[0] in atoms:
                value = broken[1]
            elif self.values.shape.nulls and self.random.random() < 0.1 and self._are_nullable(places):
                value = None
            elif atoms and self.random.random() < 0.15:
                continue  # any value: one side of an OR must be false at times
            elif not atoms and left_out in {place.source for place in places}:
                value = self.values.new(domain)
            else:
                value = self._satisfying(places, atoms, domain)
            for place in places:
                rows[place.source].setdefault(place.column, value)
        return [(self.scene.tables[number], row) for number, row in rows.items() if number != left_out]

    def _are_nullable(self, places: list[Place]) -> bool:
        return not any(place.column in self.values.not_null(place.table) for place in places)

    def _solved(self) -> dict[Place, Value]:
        """Values for the variables of conditions and terms: mostly such that the scene's own conditions hold."""
        found = {}
        for group in self.groups:
            wanted = set(self.scene.conditions) if self.random.random() < 0.6 else set()
            for variable, value in group.choose(wanted, self.random).items():
                place = self.scene.place(variable)
                if place:
                    found[place] = value
        return found

    def _satisfying(self, places: list[Place], atoms: list[Atom], domain: Column) -> Value:
        """A value that satisfies all of the comparisons, or else one of them."""
        values = self.values
        pool = values.seeds[domain] + values.fresh[domain]
        keys = [(place.table, place.column) for place in places if place.column in values.unique[place.table]]
        if keys:
            pool = [value for value in pool if not any(values.is_used(*key, value) for key in keys)]
            pool = pool or [values.new(domain)]
        elif not atoms:  # a join: prefer the values that other rows have
            pool, _ = values.pool(places[0].table, places[0].column)
        candidates = [value for value in pool if all(atom.holds(value) for atom in atoms)]
        if not candidates and atoms:  # the comparisons are sides of an OR, or contradict each other
            atom = self.random.choice(atoms)
            candidates = [value for value in pool if atom.holds(value)]
        return self.random.choice(candidates or pool)


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
    """Whether the scene's comparisons of that column allow `value`, for each mention of its table; sorted."""
    return tuple(
        sorted(
            all(atom.holds(value) for atom in scene.atoms if atom.place == Place(number, place.table, place.column))
            for number, table in scene.tables.items()
            if table == place.table
        )
    )
