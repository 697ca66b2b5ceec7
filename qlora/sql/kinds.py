"""What values a column of each kind (see `schema.Table`) holds, and made-up ones."""

import json
import re
from datetime import date, timedelta
from random import Random

from qlora.sql.literals import Value, is_number

MOMENTS = ("date", "timestamp", "time")
NUMBERS = ("integer", "real", "year", "boolean")

_FORMATS = {
    "date": re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "timestamp": re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]) ([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?"),
    "time": re.compile(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d"),
}
# A literal that a column of the kind is compared with as text, though the column does not hold it.
_PARTIAL = re.compile(r"\d{4}(-\d{2}(-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?)?)?|\d{2}:\d{2}(:\d{2})?")


def holds(kind: str, value: Value) -> bool:
    """Whether a column of the kind holds `value`."""
    if value is None or kind in ("", "text", "interval", "array"):
        return True
    if kind == "json":
        return isinstance(value, str) and _is_json(value)
    if kind == "boolean":
        return value in (0, 1)
    if kind == "integer":
        return is_number(value) and float(value).is_integer()
    if kind == "year":
        return is_number(value) and 1900 <= float(value) <= 2155
    if kind == "real":
        return is_number(value)
    return isinstance(value, str) and _FORMATS[kind].fullmatch(value) is not None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_believable(kind: str, value: Value) -> bool:
    """Whether a query that compares a column of the kind with `value` can be right about the kind."""
    if kind in ("boolean", "year"):
        return is_number(value) or str(value).lower() in ("true", "false", "t", "f")
    if kind in MOMENTS:
        return isinstance(value, str) and (not value or _PARTIAL.fullmatch(value) is not None)
    return holds(kind, value) or kind in ("integer", "real")


def moments(kind: str, count: int, random: Random) -> list[str]:
    """`count` dates, timestamps or times: several in a year, a month and a day, of the present and of long ago."""
    latest = date(2026, 1, 1) if random.random() < 0.7 else date(1990, 1, 1)
    span = random.choice((3, 12, 40, 80))
    found = []
    anchors = [latest - timedelta(days=random.randrange(365 * span)) for _ in range(max(1, count // 3))]
    for number in range(count):
        day = anchors[number % len(anchors)] + timedelta(days=random.choice((0, 0, 1, 7, 20, 31, 180)))
        found.append(moment(kind, day, random))
    return found


def moment(kind: str, day: date, random: Random) -> str:
    """A value of the kind on that day."""
    clock = "00:00:00"
    if random.random() < 0.85:
        clock = f"{random.randrange(24):02}:{random.randrange(60):02}:{random.randrange(60):02}"
    return {"date": day.isoformat(), "time": clock}.get(kind, f"{day.isoformat()} {clock}")


_SYLLABLES = ("ka", "vo", "ri", "mel", "tan", "su", "bo", "ler", "qui", "nat", "dor", "fi", "zen", "gru", "wex", "ost")


def word(random: Random) -> str:
    """A made-up word."""
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randint(2, 3)))


def texts(count: int, random: Random) -> list[str]:
    """`count` texts. In some columns they have blanks around them, hyphens, several words, digits, or are empty."""
    variety = random.random() < 0.4
    found = []
    for _ in range(count):
        text = word(random).capitalize()
        if variety and random.random() < 0.5:
            text = random.choice((
                f" {text}", f"{text} ", f"{text}-{word(random)}", f"{text} {word(random)}", f"{text}, {word(random)}",
                f"{text}{random.randrange(100)}", f"{text}_{word(random)}", f"{text}{word(random)}{word(random)}", "",
            ))  # fmt: skip
        found.append(text)
    return found


def numbers(kind: str, low: float, high: float, fractions: bool, count: int, random: Random) -> list[Value]:
    """`count` numbers from `low` to `high`."""
    if kind == "boolean":
        return [0, 1]
    if kind == "year":
        low, high = max(low, 1950), min(high, 2030)
        low, high = (low, high) if low < high else (1950, 2030)
    if fractions:
        return [round(random.uniform(low, high), 2) for _ in range(count)]
    return [random.randint(int(low), int(high)) for _ in range(count)]
