"""A kind of query: how it is asked in English and answered in SQL.

A kind is a function that picks tables, columns and values and returns the words for its question and the query. The
decorator `kind` adds its wordings and the number of its rows.

The SQL of all kinds has one style. A join starts at the referring table and qualifies columns by the full names of
their tables; a query over one table qualifies none.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of query. `make` picks what it is about: it returns the words of the question and the SQL."""

    name: str
    rows: float  # mean number for each schema that it fits
    wordings: tuple[str, ...]  # one is used only if `make` returned every word that it needs
    make: Callable


def kind(rows: float, *wordings: str) -> Callable[[Callable], Kind]:
    """Turn a function into the kind of query of its name."""
    return lambda make: Kind(make.__name__, rows, wordings, make)
