"""Functions of PostgreSQL and MySQL on texts, and their regular expressions."""

import re
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache

from qlora.sql.dialect_numbers import leading_number, number, text

_MAX_TEXT = 100_000  # as SQLite's own limit in the sandbox


def left(value: object, count: int) -> str:
    return text(value)[:count]  # a negative count leaves out the end


def right(value: object, count: int) -> str:
    shown = text(value)
    return shown[max(0, len(shown) - count) :] if count >= 0 else shown[-count:]


def mysql_left(value: object, count: int) -> str:
    return text(value)[: max(0, count)]


def substring(value: object, start: int, length: int | None = None) -> str:
    """PostgreSQL's SUBSTRING: positions before the first count, but are empty."""
    shown, begin = text(value), start - 1
    if length is not None and length < 0:
        raise ValueError("negative substring length not allowed")
    end = len(shown) if length is None else begin + length
    return shown[max(0, begin) : max(0, end)]


def mysql_substring(value: object, start: int, length: int | None = None) -> str:
    shown = text(value)
    if start == 0 or abs(start) > len(shown):
        return ""
    begin = start - 1 if start > 0 else len(shown) + start
    return shown[begin:] if length is None else shown[begin : begin + max(0, length)]


def concat(*values: object) -> str:
    return "".join(text(value) for value in values if value is not None)


def mysql_concat(*values: object) -> str | None:
    return None if None in values else "".join(map(text, values))


def concat_ws(separator: object, *values: object) -> str | None:
    return None if separator is None else text(separator).join(text(value) for value in values if value is not None)


def split_part(value: object, separator: str, number: int) -> str:
    pieces = text(value).split(separator) if separator else [text(value)]
    index = number - 1 if number > 0 else len(pieces) + number
    return pieces[index] if 0 <= index < len(pieces) else ""


def substring_index(value: object, separator: str, count: int) -> str:
    pieces = text(value).split(separator)
    return separator.join(pieces[:count] if count >= 0 else pieces[count:])


def initcap(value: object) -> str:
    return re.sub(r"[^\W_]+", lambda found: found[0][0].upper() + found[0][1:].lower(), text(value))


def pad_left(value: object, length: int, fill: str = " ") -> str:
    return _padded(value, length, fill, left_side=True)


def pad_right(value: object, length: int, fill: str = " ") -> str:
    return _padded(value, length, fill, left_side=False)


def _padded(value: object, length: int, fill: str, *, left_side: bool) -> str:
    shown = text(value)
    if length <= len(shown):
        return shown[: max(0, length)]
    if not fill:
        return shown
    missing = min(length, _MAX_TEXT) - len(shown)
    padding = (fill * (missing // len(fill) + 1))[:missing]
    return padding + shown if left_side else shown + padding


def repeat(value: object, count: int) -> str:
    if len(text(value)) * count > _MAX_TEXT:
        raise ValueError("string too long")
    return text(value) * max(0, count)


def translate(value: object, given: str, wanted: str) -> str:
    table = {ord(one): wanted[index] if index < len(wanted) else None for index, one in reversed([*enumerate(given)])}
    return text(value).translate(table)


def position(part: str, value: object, start: int = 1) -> int:
    return text(value).find(text(part), start - 1) + 1


def mysql_position(part: str, value: object, start: int = 1) -> int:
    return text(value).lower().find(text(part).lower(), start - 1) + 1


def field(value: object, *values: object) -> int:
    """MySQL's FIELD: the place of a value among others, 0 if it is none of them."""
    folded = [text(one).lower() if one is not None else None for one in (value, *values)]
    return folded[1:].index(folded[0]) + 1 if folded[0] is not None and folded[0] in folded[1:] else 0


def find_in_set(value: object, listed: str) -> int:
    pieces = text(listed).lower().split(",") if listed else []
    return pieces.index(text(value).lower()) + 1 if text(value).lower() in pieces else 0


def elt(number: int | None, *values: object) -> object:
    return values[number - 1] if number is not None and 0 < number <= len(values) else None


def format_number(value: object, places: int) -> str:
    return f"{Decimal(text(number(value))).quantize(Decimal(1).scaleb(-max(0, places)), ROUND_HALF_UP):,}"


def overlay(value: object, new: str, start: int, length: int | None = None) -> str:
    shown = text(value)
    return shown[: start - 1] + new + shown[start - 1 + (len(new) if length is None else length) :]


def is_true(value: object) -> int:
    """Whether MySQL takes a value for true."""
    return int(leading_number(value) != 0)


# Nested repetition takes exponential time in Python.
_SLOW = re.compile(r"\([^)]*[*+][^)]*\)[*+{]")


@lru_cache(maxsize=256)
def _compiled(pattern: str, flags: str) -> re.Pattern:
    """A POSIX or ICU pattern for Python. Raises ValueError for what differs between them."""
    if len(pattern) > 200 or _SLOW.search(pattern):
        raise ValueError("the pattern is not available")
    for mark, python in (("[[:<:]]", r"\b"), ("[[:>:]]", r"\b"), (r"\m", r"\b"), (r"\M", r"\b"), (r"\y", r"\b")):
        pattern = pattern.replace(mark, python)
    classes = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "space": r"\s", "upper": "A-Z", "lower": "a-z",
               "punct": r"!-/:-@\[-`{-~", "xdigit": "0-9a-fA-F", "blank": r" \t"}  # fmt: skip
    pattern = re.sub(r"\[:(\w+):\]", lambda found: classes[found[1]], pattern)
    return re.compile(pattern, re.IGNORECASE if "i" in flags else 0)


def matches(value: object, pattern: str, flags: str = "") -> int:
    return int(_compiled(pattern, flags).search(text(value)) is not None)


def similar(value: object, pattern: str) -> int:
    """SIMILAR TO: LIKE's wildcards within a regular expression, for the whole text."""
    translated = re.sub(r"[%_.^$]", lambda one: {"%": ".*", "_": "."}.get(one[0], "\\" + one[0]), pattern)
    return int(_compiled(f"(?:{translated})", "").fullmatch(text(value)) is not None)


def regexp_replace(value: object, pattern: str, new: str, flags: str = "") -> str:
    new = re.sub(r"\\(\d|&)", lambda one: r"\g<0>" if one[1] == "&" else rf"\g<{one[1]}>", new)
    return _compiled(pattern, flags).sub(new, text(value), count=0 if "g" in flags else 1)


def regexp_group(value: object, pattern: str, index: int) -> str | None:
    """PostgreSQL's (REGEXP_MATCH(...))[index + 1]."""
    found = _compiled(pattern, "").search(text(value))
    groups = () if found is None else found.groups() or (found[0],)
    return groups[index] if 0 <= index < len(groups) else None


def regexp_count(value: object, pattern: str, start: int = 1, flags: str = "") -> int:
    return sum(1 for _ in _compiled(pattern, flags).finditer(text(value)[start - 1 :]))


def regexp_place(value: object, pattern: str) -> int:
    """MySQL's REGEXP_INSTR."""
    found = _compiled(pattern, "i").search(text(value))
    return 0 if found is None else found.start() + 1


def regexp_substring(value: object, pattern: str) -> str | None:
    found = _compiled(pattern, "").search(text(value))
    return None if found is None else found[1] if found.re.groups else found[0]
