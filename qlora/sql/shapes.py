"""The shapes of databases: how many rows and values they have, and how these repeat."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """How one database is filled.

    `rows`, `values`: the least and the greatest number of rows in a table and of fresh values in a column. `nulls`: the
    share of NULLs. `distinct`: whether the values of a column differ where they can. `bare`: no rows but witnesses.
    """

    rows: tuple[int, int]
    values: tuple[int, int]
    nulls: float = 0.0
    distinct: bool = False
    bare: bool = False


# Used in turn. Few values make ties and duplicates. Distinct values determine the result of ORDER BY ... LIMIT. A few
# witnesses alone let one row decide an aggregate: one row more hardly changes a MIN over many.
_FEW = Shape(rows=(1, 3), values=(4, 9), bare=True)
_FEW_AND_NULLS = replace(_FEW, nulls=0.25)
SHAPES = (
    Shape(rows=(14, 36), values=(3, 6)),
    Shape(rows=(12, 32), values=(40, 60), distinct=True),
    _FEW_AND_NULLS,
    Shape(rows=(12, 30), values=(3, 7), nulls=0.2),
    _FEW_AND_NULLS,
    Shape(rows=(14, 40), values=(30, 50), nulls=0.05, distinct=True),
    _FEW,
    Shape(rows=(8, 20), values=(2, 4), nulls=0.08),
    _FEW,
    Shape(rows=(1, 3), values=(2, 3)),
)
