"""Arithmetic and casts of PostgreSQL and MySQL, on the values that SQLite has for them."""

import math
import re
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

from qlora.sql import moments


def text(value: object) -> str:
    """A value as the server turns it into text."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return moments.interval_text(value) if moments.is_interval(value) else str(value)


def number(value: object) -> float | int:
    if isinstance(value, str):
        return float(value) if re.search(r"[.eE]", value) else int(value)
    return value


def divide(one: object, other: object) -> object:
    """PostgreSQL's /: of integers it truncates."""
    one, other = number(one), number(other)
    if other == 0:
        raise ZeroDivisionError("division by zero")
    if isinstance(one, int) and isinstance(other, int):
        return int(Decimal(one) / Decimal(other)) if abs(one) > 2**53 else math.trunc(one / other)
    return one / other


def divide_exactly(one: object, other: object) -> object:
    """PostgreSQL's / where an operand is numeric: a whole number is no integer."""
    if number(other) == 0:
        raise ZeroDivisionError("division by zero")
    return float(number(one)) / float(number(other))


def modulo(one: object, other: object) -> object:
    one, other = number(one), number(other)
    if other == 0:
        raise ZeroDivisionError("division by zero")
    return math.fmod(one, other) if isinstance(one, float) or isinstance(other, float) else int(math.fmod(one, other))


def add(one: object, other: object) -> object:
    """PostgreSQL's + of what may be dates, timestamps, intervals or numbers."""
    if moments.is_interval(one) and not moments.is_interval(other):
        one, other = other, one
    if moments.is_interval(one) and moments.is_interval(other):
        return moments.interval(*(a + b for a, b in zip(moments.parts(one), moments.parts(other), strict=True)))
    if moments.is_interval(other):
        return moments.shift(one, other, 1).isoformat(" ")
    if moments.is_date(other) and isinstance(one, int):
        one, other = other, one
    if moments.is_date(one) and isinstance(other, int):
        return moments.shift(one, moments.interval(0, other, 0), 1).date().isoformat()
    return number(one) + number(other)


def subtract(one: object, other: object) -> object:
    """PostgreSQL's - of what may be dates, timestamps, intervals or numbers."""
    if moments.is_interval(one) and moments.is_interval(other):
        return moments.interval(*(a - b for a, b in zip(moments.parts(one), moments.parts(other), strict=True)))
    if moments.is_interval(other):
        return moments.shift(one, other, -1).isoformat(" ")
    if moments.is_date(one) and moments.is_date(other):
        return (moments.moment(one) - moments.moment(other)).days
    if (moments.is_date(one) or moments.is_timestamp(one)) and isinstance(other, str):
        return moments.between(one, other)
    if moments.is_date(one) and isinstance(other, int):
        return moments.shift(one, moments.interval(0, other, 0), -1).date().isoformat()
    return number(one) - number(other)


def scale(amount: object, factor: object) -> object:
    """PostgreSQL's * of an interval and a number, or of numbers."""
    if moments.is_interval(factor):
        amount, factor = factor, amount
    if not moments.is_interval(amount):
        return number(amount) * number(factor)
    months, days, micros = (part * factor for part in moments.parts(amount))
    days += (months - int(months)) * 30
    micros += (days - int(days)) * 86_400_000_000
    return moments.interval(int(months), int(days), round(micros))


def round_exactly(value: object, places: int = 0) -> object:
    """ROUND of an exact number: a half is rounded away from zero."""
    return _rounded(value, places, ROUND_HALF_UP)


def round_float(value: object) -> object:
    """PostgreSQL's ROUND of a double precision number: a half is rounded to the even number."""
    return _rounded(value, 0, ROUND_HALF_EVEN)


def _rounded(value: object, places: int, how: str) -> object:
    result = Decimal(text(number(value))).quantize(Decimal(1).scaleb(-places), how)
    return int(result) if places <= 0 else float(result)


def truncate_number(value: object, places: int = 0) -> object:
    result = Decimal(text(number(value))).quantize(Decimal(1).scaleb(-places), "ROUND_DOWN")
    return int(result) if places <= 0 else float(result)


def power(one: object, other: object) -> float:
    return float(number(one)) ** float(number(other))


def as_integer(value: object) -> int:
    """PostgreSQL's cast to an integer. Raises ValueError for a text that is none."""
    if isinstance(value, str):
        return int(value)
    return value if isinstance(value, int) else int(_rounded(value, 0, ROUND_HALF_UP))


def float_as_integer(value: object) -> int:
    return int(_rounded(value, 0, ROUND_HALF_EVEN))


def as_number(value: object) -> object:
    return float(value) if isinstance(value, str) else value


def as_decimal(value: object, places: int) -> object:
    return _rounded(as_number(value), places, ROUND_HALF_UP)


def as_boolean(value: object) -> int:
    if isinstance(value, str):
        for texts, result in ((("t", "true", "yes", "on", "1"), 1), (("f", "false", "no", "off", "0"), 0)):
            if value.lower() in texts:
                return result
        raise ValueError(f"{value!r} is no boolean")
    return int(value != 0)


def boolean_text(value: object) -> str:
    return "true" if value else "false"


def leading_number(value: object) -> object:
    """A value as MySQL takes it for a number: what a text begins with."""
    if not isinstance(value, str):
        return value
    found = re.match(r"\s*[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", value)
    return number(found[0].strip()) if found else 0


def mysql_integer(value: object) -> int:
    number = leading_number(value)
    if isinstance(value, str):  # a text is cut off at the point, a number is rounded
        found = re.match(r"\s*[+-]?\d+", value)
        return int(found[0]) if found else 0
    return int(_rounded(number, 0, ROUND_HALF_UP))


def mysql_decimal(value: object, places: int) -> object:
    return _rounded(leading_number(value), places, ROUND_HALF_UP)
