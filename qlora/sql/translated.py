"""SQLite in the place of PostgreSQL or MySQL: a database whose values have the form that `translate` relies on."""

import re
from collections.abc import Mapping, Sequence

from qlora.sql import moments
from qlora.sql.dialect_numbers import round_exactly
from qlora.sql.sandbox import Database
from qlora.sql.schema import Schema

_EXACT = re.compile(r"(?:NUMERIC|DECIMAL)\s*\(\s*\d+\s*,\s*(\d+)\s*\)")  # rounds what it stores


class TranslatedDatabase(Database):
    """A `sandbox.Database` for translated queries: dates and timestamps have their full form, or are NULL; numbers
    have the places that their column has.
    """

    def __init__(self, schema: Schema, dialect: str):
        super().__init__(schema.columns(), dialect)
        self._schema = schema

    def fill(self, rows: Mapping[str, Sequence[tuple]]) -> None:
        super().fill(
            {
                name: [
                    tuple(map(_stored, row, table.kinds.values(), table.columns.values())) for row in rows.get(name, ())
                ]
                for name, table in self._schema.tables.items()
            }
        )


def _stored(value: object, kind: str, declared: str) -> object:
    exact = _EXACT.match(declared)
    if exact and isinstance(value, float):
        return round_exactly(value, int(exact[1]))
    if kind not in ("date", "timestamp") or value is None:
        return value
    try:
        return moments.as_date(value) if kind == "date" else moments.as_timestamp(value)
    except ValueError:
        return None
