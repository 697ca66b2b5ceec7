"""Dates and times that are read with a format, made of numbers, or listed in steps."""

import json
import re
from datetime import date, datetime, timedelta

from qlora.sql import moments

_MOST = 10_000  # values of a series
# What a directive of strftime reads.
_READS = {
    "%Y": r"(?P<year>\d{1,4})", "%y": r"(?P<short>\d{1,2})", "%m": r"(?P<month>\d{1,2})", "%d": r"(?P<day>\d{1,2})",
    "%H": r"(?P<hour>\d{1,2})", "%I": r"(?P<half>\d{1,2})", "%M": r"(?P<minute>\d{1,2})", "%S": r"(?P<second>\d{1,2})",
    "%f": r"(?P<part>\d{1,6})", "%j": r"(?P<doy>\d{1,3})", "%b": r"(?P<name>[A-Za-z]{3})",
    "%B": r"(?P<name>[A-Za-z]{3,9})", "%p": r"(?P<noon>[AaPp]\.?[Mm]\.?)", "%a": r"[A-Za-z]{3}", "%A": r"[A-Za-z]+",
    "%T": r"(?P<hour>\d{1,2}):(?P<minute>\d{1,2}):(?P<second>\d{1,2})",
}  # fmt: skip
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = ("hour", "half", "minute", "second", "part")


def read(value: object, pattern: str, kind: str) -> str:
    """A text by a format of strftime's directives: a date, a timestamp, or what the format has if `kind` is "".

    Raises ValueError if the text does not start as the format says.
    """
    expected = ""
    for piece in re.findall(r"%-?.|\s+|.", pattern, re.DOTALL):
        directive = piece.replace("-", "") if len(piece) > 1 else piece
        if directive[0] == "%" and len(directive) == 2:
            if directive not in _READS:
                raise ValueError(f"the format {pattern} is not available")
            expected += _READS[directive]
        else:
            expected += r"\s*" if piece.isspace() else re.escape(piece)
    found = re.match(r"\s*" + expected, str(value))
    if not found:
        raise ValueError(f"{value!r} does not match the format")
    parts = {name: text for name, text in found.groupdict().items() if text is not None}
    day = _day(parts)
    hour = int(parts.get("hour", parts.get("half", 0)))
    if "noon" in parts:
        hour = hour % 12 + (12 if parts["noon"][0] in "Pp" else 0)
    micros = int(parts["part"].ljust(6, "0")) if "part" in parts else 0
    moment = datetime(
        day.year, day.month, day.day, hour, int(parts.get("minute", 0)), int(parts.get("second", 0)), micros
    )
    timed = kind == "timestamp" or (not kind and any(name in parts for name in _CLOCK))
    return moment.isoformat(" ") if timed else moment.date().isoformat()


def _day(parts: dict[str, str]) -> date:
    year = int(parts.get("year", 1))
    if "short" in parts:
        year = int(parts["short"]) + (2000 if int(parts["short"]) < 70 else 1900)
    if "doy" in parts:
        return date(year, 1, 1) + timedelta(days=int(parts["doy"]) - 1)
    if "name" in parts:
        return date(year, _MONTHS.index(parts["name"][:3].lower()) + 1, int(parts.get("day", 1)))
    return date(year, int(parts.get("month", 1)), int(parts.get("day", 1)))


def series(start: int, end: int, step: int = 1) -> str:
    """GENERATE_SERIES of numbers, as a JSON array. Raises ValueError for a step of 0 and for too many values."""
    if not step or abs((end - start) / step) > _MOST:
        raise ValueError("no such series")
    found, value = [], start
    while (value <= end) if step > 0 else (value >= end):
        found.append(value)
        value += step
    return json.dumps(found)


def series_of_moments(start: object, end: object, step: object) -> str:
    """GENERATE_SERIES of timestamps, as a JSON array. Raises ValueError as `series` does."""
    months, days, micros = moments.parts(step)
    value, last, count = moments.moment(start), moments.moment(end), 0
    forward = (months, days, micros) > (0, 0, 0)
    if not (months or days or micros):
        raise ValueError("step size cannot be zero")
    found = []
    while (value <= last) if forward else (value >= last):
        found.append(value.isoformat(" "))
        count += 1
        if count > _MOST:
            raise ValueError("too many values")
        value = moments.shift(value.isoformat(" "), step, 1)
    return json.dumps(found)


def clock(seconds: float) -> str:
    """MySQL's SEC_TO_TIME."""
    whole = int(abs(seconds))
    return f"{'-' if seconds < 0 else ''}{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def seconds(value: object) -> int:
    """MySQL's TIME_TO_SEC."""
    found = re.fullmatch(r"(-?)(\d+):(\d\d)(?::(\d\d)(?:\.\d+)?)?", str(value))
    if found:
        total = 3600 * int(found[2]) + 60 * int(found[3]) + int(found[4] or 0)
        return -total if found[1] else total
    one = moments.moment(value)
    return 3600 * one.hour + 60 * one.minute + one.second


def time_between(one: object, other: object) -> str:
    """MySQL's TIMEDIFF."""
    if moments.is_timestamp(one) and moments.is_timestamp(other):
        return clock((moments.moment(one) - moments.moment(other)).total_seconds())
    if moments.is_timestamp(one) or moments.is_timestamp(other):
        raise ValueError("a time and a timestamp have no difference")
    return clock(seconds(one) - seconds(other))


def add_time(value: object, more: object, sign: int) -> str:
    """MySQL's ADDTIME and SUBTIME."""
    if moments.is_timestamp(value):
        return (moments.moment(value) + sign * timedelta(seconds=seconds(more))).isoformat(" ")
    return clock(seconds(value) + sign * seconds(more))


def day_of_year(year: int, day: int) -> str:
    """MySQL's MAKEDATE. Raises ValueError for a day below 1."""
    if day < 1:
        raise ValueError("no such day")
    return (date(year, 1, 1) + timedelta(days=day - 1)).isoformat()


def day_number(value: object) -> int:
    """MySQL's TO_DAYS."""
    return moments.moment(value).toordinal() + 365


def day_of_number(value: int) -> str:
    return date.fromordinal(value - 365).isoformat()


def month_number(period: int) -> int:
    return period // 100 * 12 + period % 100 - 1


def period_add(period: int, months: int) -> int:
    total = month_number(period) + months
    return total // 12 * 100 + total % 12 + 1


def year_week(value: object, mode: int = 0) -> int:
    """MySQL's YEARWEEK in the modes 0 and 3 (and 1, which counts as 3 does here)."""
    one = moments.moment(value).date()
    if mode in (1, 3):
        year, week, _ = one.isocalendar()
        return year * 100 + week
    if mode != 0:
        raise ValueError(f"mode {mode} is not available")
    sunday = one - timedelta(days=(one.weekday() + 1) % 7)
    first = date(sunday.year, 1, 1)
    first += timedelta(days=(6 - first.weekday()) % 7)
    return sunday.year * 100 + (sunday - first).days // 7 + 1


def interval_of(years: int, months: int, weeks: int, days: int, hours: int, minutes: int, seconds_there: float) -> str:
    """PostgreSQL's MAKE_INTERVAL."""
    micros = round((3600 * hours + 60 * minutes + seconds_there) * 1e6)
    return moments.interval(12 * years + months, 7 * weeks + days, micros)
