"""Parse SQL with sqlglot."""

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError


def parse(sql: str, dialect: str = "sqlite") -> exp.Expression | None:
    """The syntax tree of one statement, or None if sqlglot cannot parse it; SQLite may run it all the same.

    Some texts take exponential time (59 joins without ON): see `sandbox.clock`.
    """
    try:
        trees = sqlglot.parse(sql, read=dialect)
    except (SqlglotError, RecursionError, ValueError, AttributeError, TypeError, IndexError):
        return None  # sqlglot raises some of Python's own errors on odd text
    return trees[0] if len(trees) == 1 else None
