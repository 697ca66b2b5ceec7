"""Whether two query results are the same."""

from collections import Counter

from qlora.sql.sandbox import Result


def same_results(gold: Result, other: Result, ordered: bool, any_column_order: bool = True) -> bool:
    """Whether `other` has the rows of `gold`, in the same order if `ordered`.

    Text is compared without case, unless it matters to the engine of `gold`. Numbers are compared to nine digits,
    because a sum depends on the order of rows. With `any_column_order`, the columns may be permuted, in one way for all
    rows (Zhong et al. 2020, section 4.2).
    """
    if gold.width != other.width or len(gold.rows) != len(other.rows):
        return False
    canonical = _number if gold.case_matters else _canonical
    left = [tuple(map(canonical, row)) for row in gold.rows]
    right = [tuple(map(canonical, row)) for row in other.rows]
    if _same_rows(left, right, ordered):
        return True
    if not any_column_order or gold.width == 1:
        return False
    columns = [Counter(column) for column in zip(*right, strict=True)]
    fitting = []
    for column in zip(*left, strict=True):
        values = Counter(column)
        fitting.append([index for index, candidate in enumerate(columns) if candidate == values])
    return _can_arrange(left, right, fitting, (), ordered)


def _can_arrange(left: list, right: list, fitting: list[list[int]], chosen: tuple[int, ...], ordered: bool) -> bool:
    """Whether `chosen`, columns of `right`, can be completed such that its rows match those of `left`.

    `fitting`: for each column of `left`, the columns of `right` with the same values.
    """
    for index in fitting[len(chosen)]:
        if index in chosen:
            continue
        prefix = (*chosen, index)
        if not _same_rows(
            [row[: len(prefix)] for row in left], [tuple(row[i] for i in prefix) for row in right], ordered
        ):
            continue
        if len(prefix) == len(fitting) or _can_arrange(left, right, fitting, prefix, ordered):
            return True
    return False


def _same_rows(left: list[tuple], right: list[tuple], ordered: bool) -> bool:
    return left == right or (not ordered and Counter(left) == Counter(right))


def _canonical(value: object) -> object:
    return value.lower() if isinstance(value, str) else _number(value)


def _number(value: object) -> object:
    if isinstance(value, float):
        return int(value) if abs(value) < 2**53 and value.is_integer() else float(f"{value:.9g}")
    return value
