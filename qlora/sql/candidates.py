"""Values that may satisfy conditions on computed expressions, made from the literals in these."""

import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import islice
from random import Random

from qlora.sql import documents
from qlora.sql.kinds import MOMENTS, NUMBERS, moments, numbers, texts, word
from qlora.sql.literals import Value, is_number
from qlora.sql.patterns import matching
from qlora.sql.sandbox import NOW

_TODAY = datetime.fromisoformat(NOW)
_MOST = 240  # candidates of one column
_NEAREST = 5
_PAIRS = 320  # candidates of several columns
_DATE = re.compile(r"(\d{4})-(\d{1,2})(?:-(\d{1,2}))?(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?")
_WILD = re.compile(r"[%*]")


@dataclass
class Literals:
    """The literals of some conditions: `texts` and `numbers`, also those that the texts contain; `paths` in JSON."""

    texts: list[str] = field(default_factory=list)
    numbers: list[int | float] = field(default_factory=list)
    paths: list[tuple[str | int, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, values: list[Value]) -> "Literals":
        found = cls()
        for value in dict.fromkeys(values):
            if isinstance(value, str):
                found.texts.append(value)
                parts = re.findall(r"\d+(?:\.\d+)?", value)[:4] if len(value) <= 40 else []
                found.numbers += [float(part) if "." in part else int(part) for part in parts if len(part) < 12]
            elif value is not None:
                found.numbers.append(value)
        found.texts = found.texts[:16]
        found.numbers = list(dict.fromkeys(found.numbers))[:16]
        return found


def for_column(kind: str, literals: Literals, random: Random) -> list[Value]:
    """Candidates for a column of the kind, NULL among them."""
    made = {"json": documents.documents, "array": documents.arrays}
    source = _moments if kind in MOMENTS else _numbers if kind in NUMBERS else made.get(kind, _texts)
    arguments = (kind, literals, random) if source in (_moments, _numbers) else (literals, random)
    found = list(dict.fromkeys(islice(source(*arguments), 8 * _MOST)))
    first, rest = found[: _MOST // 2], found[_MOST // 2 :]  # the first are nearest to the literals
    return [*first, *random.sample(rest, min(len(rest), _MOST // 2)), None]


def for_columns(kinds: list[str], pools: list[list[Value]], literals: Literals, random: Random) -> Iterator[tuple]:
    """Yield candidates for several columns at once, whose values depend on each other or not.

    `pools`: the candidates of each column alone.
    """
    made = 0
    while made < _PAIRS:
        # The first candidates are nearest to the literals.
        near = random.choice((_NEAREST, 3 * _NEAREST, _MOST))
        row = [random.choice(pool[:near]) for pool in pools]
        if random.random() < 0.75:
            one, other = random.sample(range(len(row)), 2)
            related = _related(row[one], kinds[one], kinds[other], literals, random)
            if related is not None:
                row[one], row[other] = related
        yield tuple(row)
        made += 1


def _related(value: Value, kind: str, other: str, literals: Literals, random: Random) -> tuple[Value, Value] | None:
    """Values of two columns that an operation with one of the literals may link."""
    if kind in MOMENTS and other in MOMENTS and isinstance(value, str):
        return value, _later(value, other, literals, random)
    if kind in NUMBERS and other in NUMBERS and is_number(value):
        number = random.choice([*literals.numbers, 0, 1]) + random.choice((0, 0, 1, -1))
        value = random.choice((value, 1, 2, 4, 5, 10))
        results = [value, value + number, number - value, value - number, value * number]
        results += [number / value, number * value / 100] if value else []
        result = random.choice(results)
        whole = other != "real" or float(result).is_integer()
        return value, round(result) if whole else round(result, 4)
    if isinstance(value, str) and kind not in MOMENTS and other not in (*MOMENTS, *NUMBERS):
        cut = random.choice([len(value) // 2, *(int(n) for n in literals.numbers if 0 < n < 100), 1])
        separators = [one for one in literals.texts if 0 < len(one) <= 3 and one in value]
        if separators and random.random() < 0.7:
            left, _, right = value.partition(random.choice(separators))
            return left, right
        glue = random.choice([one for one in literals.texts if 0 < len(one) <= 3] or [""])
        tail = random.choice((value, value[:cut], value[cut:], value[-cut:], glue + value, value + glue, value.lower()))
        return (value, tail) if random.random() < 0.5 else (value + glue + word(random), tail)
    if isinstance(value, str) and other in NUMBERS:
        digits = re.findall(r"\d+", value)
        return value, int(digits[0][:9]) if digits else len(value)
    if is_number(value) and kind in NUMBERS and other not in MOMENTS:
        return value, random.choice((str(value), f"{word(random)}{value}", f"{value}{word(random)}"))
    return None


def _later(value: str, kind: str, literals: Literals, random: Random) -> str:
    """A moment that differs from `value` by about one of the numbers, of days or other units."""
    number = random.choice([n for n in literals.numbers if 0 <= n < 4000] or [1])
    number = int(number) + random.choice((0, 0, 0, 1, -1))
    if kind == "time" or not _DATE.match(value):
        return value
    start = datetime.fromisoformat(value)
    unit = random.choice((1, 1, 1, 7, 30.44, 365.25, 1 / 24, 1 / 1440))
    sign = random.choice((1, 1, -1))
    try:
        end = start + sign * timedelta(days=number * unit)
    except OverflowError:
        return value
    return end.date().isoformat() if kind == "date" else end.replace(microsecond=0).isoformat(" ")


def _numbers(kind: str, literals: Literals, random: Random) -> Iterator[Value]:
    if kind == "boolean":
        yield from (0, 1)
        return
    real = kind == "real"
    yield from (_rounded(number, real) for number in literals.numbers)
    base = [0, 1, 2, 5, 10, 100, -1, -7, *literals.numbers]
    steps = (0, 1, -1, 0.4, -0.4, 0.5, 0.01, -0.01) if real else (0, 1, -1)
    for number in literals.numbers:
        for factor in (1, -1, 0.5, 2, 0.1, 10, 100, 1 / 3):
            for step in steps:
                yield _rounded(number * factor + step, real)
        for year in (number, _TODAY.year - number):
            yield _rounded(year, real)
        for other in literals.numbers:
            for result in (number + other, number - other, number * other, *((number / other,) if other else ())):
                yield from (_rounded(result + step, real) for step in (0, 1, -1))
    yield from base if real else (_rounded(one, False) for one in base)
    yield from numbers(kind, -20, 200, real, 12, random)
    yield from numbers(kind, -9999, 99999, real, 6, random)
    if real:
        yield from (0.5, 1.5, 2.5, 2.25, 3.14159, -0.75, 12.345, 99.995)


def _rounded(number: float, real: bool) -> int | float:
    number = max(-(2.0**53), min(2.0**53, number))
    return int(number) if float(number).is_integer() else round(number, 4) if real else round(number)


def _texts(literals: Literals, random: Random) -> Iterator[str]:
    yield from literals.texts
    yield from ("", " ", word(random).capitalize(), f" {word(random)}", f"{word(random)} ")
    for text in literals.texts:
        filled = text.replace("_", "q")
        cores = dict.fromkeys(
            (text, filled, _WILD.sub("", text), _WILD.sub("", filled), _WILD.sub(word(random), filled))
        )
        for core in cores:
            yield from (core, core.lower(), core.upper(), core.title())
            before, after = word(random), word(random)
            yield from (before + core, core + after, before + core + after, f"{before} {core}", f"{core} {after}")
            yield from (f"{before} {core} {after}", core[:-1], core[1:], core + "x", f" {core} ", f"  {core}", core * 2)
            for number in literals.numbers:
                if isinstance(number, int) and 0 < number <= 60:
                    yield from ("a" * (number - 1) + core, "b" * number + core, core + "c" * number)
        yield from matching(text, random)
        for old in literals.texts:
            for new in literals.texts:
                if new and old != new and new in text:
                    yield text.replace(new, old)
            if old is not text:
                yield from (text + old, f"{text}{word(random)}{old}", f"{word(random)}{text}{word(random)}{old}")
                yield f"{word(random)}{text}{word(random)}{text}{word(random)}"
    for number in literals.numbers:
        yield from (str(number), f"{number}{word(random)}", f"{word(random)}{number}", f"{word(random)} {number}")
        if isinstance(number, int) and 0 < number <= 300:
            yield from (_long(size, random) for size in (number - 1, number, number + 1, number + 9))
        yield from (str(_rounded(number + step, True)) for step in (1, -1, 0.5))
    yield from (str(random.randrange(1000)), f"{word(random)}-{word(random)}", f"{word(random)} {word(random)}", "12.5")
    yield from texts(8, random)


def _long(size: int, random: Random) -> str:
    text = ""
    while len(text) < size:
        text += word(random)
    return text[:size]


def _moments(kind: str, literals: Literals, random: Random) -> Iterator[str]:
    days = list(dict.fromkeys(_days(literals, random)))
    clocks = list(dict.fromkeys(_clocks(literals)))
    if kind == "time":
        yield from clocks
    elif kind == "date":
        yield from (day.isoformat() for day in days)
    else:
        for number, day in enumerate(days):
            yield f"{day.isoformat()} 00:00:00"
            some = clocks if number < 3 else random.sample(clocks, min(2, len(clocks)))
            yield from (f"{day.isoformat()} {clock}" for clock in some)
        yield from (f"2021-06-15 {clock}" for clock in clocks)
    yield from moments(kind, 12, random)


def _days(literals: Literals, random: Random) -> Iterator[date]:
    """Days at and around the dates, years, months, days and ages that the literals may be."""
    base = []
    for text in literals.texts:
        for found in _DATE.finditer(text):
            base += _valid(int(found[1]), int(found[2]), int(found[3] or 1))
    whole = [int(number) for number in literals.numbers if float(number).is_integer()]
    years = [number for number in whole if 1800 <= number <= 2200]
    months = [number for number in whole if 1 <= number <= 12]
    for year in years:
        for near in (year - 1, year, year + 1):
            base += [*_valid(near, 1, 1), *_valid(near, 12, 31), *_valid(near, random.randint(1, 12), 15)]
        for month in months:
            for near in (month - 1, month, month + 1):
                base += _valid(year, near, random.randint(1, 28)) + _valid(year, near, 1)
    for month in months:
        base += _valid(random.randint(1960, 2025), month, random.randint(1, 28))
        base += _valid(random.randint(1960, 2025), random.randint(1, 12), month)
    for number in whole:
        if 1 <= number <= 31:
            base += _valid(2019, random.randint(1, 12), number)
        if 0 < number < 4000:  # an age: in years, months or days
            anniversary = _valid(_TODAY.year - number, _TODAY.month, _TODAY.day) if number < 130 else []
            for day in [*anniversary, *(_TODAY.date() - timedelta(days=number * unit) for unit in (1, 7, 30, 31))]:
                base += [day + timedelta(days=step) for step in (-1, 0, 1)]
            base += [day for near in (-1, 0, 1) for day in _valid(_TODAY.year - number + near, 3, 14) if number < 130]
    yield from base
    for day in base:
        for step in random.sample((1, -1, 6, 31, -31, 366, -366), 3):
            if 2 < day.year < 9990:
                yield day + timedelta(days=step)
    week = date(2021, 3, 1)
    yield from (week + timedelta(days=step) for step in range(7))
    yield from (date(2022, month, 11) for month in range(1, 13))
    yield from (
        date(2020, 2, 29),
        date(2023, 12, 31),
        date(2024, 1, 1),
        _TODAY.date(),
        _TODAY.date() - timedelta(days=1),
    )


def _valid(year: int, month: int, day: int) -> list[date]:
    if 1 <= year <= 9999 and 1 <= month <= 12:
        return [date(year, month, max(1, min(day, monthrange(year, month)[1])))]
    return []


def _clocks(literals: Literals) -> Iterator[str]:
    yield from ("00:00:00", "12:00:00", "23:59:59", "09:30:00", "13:05:07", "06:45:30")
    for text in literals.texts:
        for found in re.finditer(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", text):
            clock = timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=int(found[3] or 0))
            for step in (0, 1, -1, 60):
                yield str(clock + timedelta(seconds=step)).split(" ")[-1].zfill(8) if int(found[1]) < 24 else "00:00:00"
    for number in literals.numbers:
        if isinstance(number, int):
            yield from (f"{hour:02}:10:20" for hour in (number - 1, number, number + 1) if 0 <= hour < 24)
            yield from (f"07:{number:02}:00", f"07:08:{number:02}") if 0 <= number < 60 else ()
