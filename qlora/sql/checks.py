"""The CHECKs and generated columns of a schema: made-up rows keep them, as the engine computes them."""

from collections.abc import Sequence

from qlora.sql.engine import Engine
from qlora.sql.literals import Value, is_number, literal_value
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import Schema

from sqlglot import exp


class Checks:
    """Computes the conditions and generated columns of the tables of `schema`. An expression that fails is ignored."""

    def __init__(self, schema: Schema, engine: Engine):
        self.schema, self.engine = schema, engine
        self.tables = {name for name, table in schema.tables.items() if table.checks or table.generated}
        self.database = engine.database(schema) if self.tables else None

    def allowed(self, table: str, column: str, values: Sequence[Value]) -> list[Value]:
        """Those of `values` that the conditions on this column alone allow."""
        if table not in self.tables:
            return list(values)
        declared = self.schema.tables[table]
        width, place = len(declared.columns), list(declared.columns).index(column)
        checks = [check for check in declared.checks if _columns(check) == {column}]
        rows = [(*(None,) * place, value, *(None,) * (width - place - 1)) for value in values]
        kept = self._satisfying(table, rows, checks) if checks else rows
        return [row[place] for row in kept]

    def numbers(self, table: str, column: str) -> list[float]:
        """The numbers in the conditions on this column."""
        if table not in self.tables:
            return []
        checks = [check for check in self.schema.tables[table].checks if column in _columns(check)]
        values = [literal_value(one) for check in checks for one in check.find_all(exp.Literal, exp.Neg)]
        return [float(value) for value in values if is_number(value)]

    def rows(self, table: str, rows: list[tuple]) -> list[tuple]:
        """The rows with their generated columns, without those that a condition excludes."""
        if table not in self.tables or not rows:
            return rows
        declared = self.schema.tables[table]
        for column, expression in declared.generated.items():
            place = list(declared.columns).index(column)
            values = self._computed(table, rows, expression)
            if values is not None:
                rows = [(*row[:place], value, *row[place + 1 :]) for row, value in zip(rows, values, strict=True)]
        return self._satisfying(table, rows, declared.checks)

    def _satisfying(self, table: str, rows: list[tuple], checks: Sequence[exp.Expression]) -> list[tuple]:
        for check in checks:
            truths = self._computed(table, rows, check)
            if truths is not None:
                rows = [row for row, truth in zip(rows, truths, strict=True) if truth is None or truth]
        return rows

    def _computed(self, table: str, rows: list[tuple], expression: exp.Expression) -> list | None:
        self.database.fill({table: rows})
        query = exp.select(expression.copy()).from_(exp.to_identifier(table, quoted=True))
        try:
            values = [value for (value,) in self.database.run(self.engine.write(query, self.schema)).rows]
        except (QueryError, ValueError):
            return None
        return values if len(values) == len(rows) else None


def _columns(expression: exp.Expression) -> set[str]:
    return {column.name.lower() for column in expression.find_all(exp.Column)}
