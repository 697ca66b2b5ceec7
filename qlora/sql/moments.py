"""Dates, timestamps and intervals as text, and what PostgreSQL and MySQL compute with them.

A date is YYYY-MM-DD, a timestamp YYYY-MM-DD HH:MM:SS with microseconds if it has any. An interval is written such that
intervals compare as text as PostgreSQL compares them, by their length with months of 30 days:
"i" + length in microseconds + ":" + months + ":" + days + ":" + microseconds.
"""

import re
from calendar import monthrange
from datetime import date, datetime, time, timedelta

NOW = datetime(2024, 7, 1, 12)  # what the functions that read the clock show: a verdict must not depend on the day
_DAY = 86_400_000_000
_OFFSET = 10**20  # makes negative lengths sort before positive ones
_INTERVAL = re.compile(r"i(\d+):(-?\d+):(-?\d+):(-?\d+)")
_UNITS = {
    # unit -> months, days, microseconds
    "year": (12, 0, 0), "quarter": (3, 0, 0), "month": (1, 0, 0), "mon": (1, 0, 0), "week": (0, 7, 0), "day": (0, 1, 0),
    "hour": (0, 0, 3_600_000_000), "minute": (0, 0, 60_000_000), "min": (0, 0, 60_000_000), "second": (0, 0, 1_000_000),
    "sec": (0, 0, 1_000_000), "millisecond": (0, 0, 1_000), "microsecond": (0, 0, 1), "decade": (120, 0, 0),
    "century": (1200, 0, 0), "y": (12, 0, 0), "yr": (12, 0, 0), "w": (0, 7, 0), "d": (0, 1, 0),
    "h": (0, 0, 3_600_000_000), "hr": (0, 0, 3_600_000_000), "m": (0, 0, 60_000_000), "s": (0, 0, 1_000_000),
}  # fmt: skip


def moment(value: object) -> datetime:
    """The point in time that a date or timestamp stands for. Raises ValueError."""
    text = str(value).strip()
    if re.fullmatch(r"\d{4}-\d{1,2}-\d{1,2}", text):
        return datetime(*map(int, text.split("-")))
    return datetime.fromisoformat(text).replace(tzinfo=None)


def is_date(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None


def is_timestamp(value: object) -> bool:
    return isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[ T]\d", value) is not None


def is_interval(value: object) -> bool:
    return isinstance(value, str) and _INTERVAL.fullmatch(value) is not None


def as_date(value: object) -> str:
    return moment(value).date().isoformat()


def as_timestamp(value: object) -> str:
    return moment(value).isoformat(" ")


def interval(months: int, days: int, micros: int) -> str:
    """The text of an interval."""
    return f"i{(months * 30 + days) * _DAY + micros + _OFFSET:021d}:{months}:{days}:{micros}"


def parts(value: str) -> tuple[int, int, int]:
    """Months, days and microseconds of an interval. Raises ValueError."""
    found = _INTERVAL.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return parse_interval(value)
    return int(found[2]), int(found[3]), int(found[4])


def parse_interval(text: object, unit: str = "") -> tuple[int, int, int]:
    """Months, days and microseconds of an interval as queries write it: '1 month 2 days', '01:30', or '3' of `unit`."""
    if unit:
        return _scaled(float(text), unit)
    total = [0, 0, 0]
    sign = -1 if str(text).strip().lower().endswith("ago") else 1
    found = re.findall(
        r"([+-]?)(\d+):(\d+)(?::(\d+(?:\.\d+)?))?|([+-]?\d+(?:\.\d+)?)\s*([a-z]+)|(ago)", str(text).lower()
    )
    if not found:
        raise ValueError(f"{text!r} is no interval")
    for minus, hours, minutes, seconds, number, name, _ in found:
        if hours:
            micros = int(hours) * 3_600_000_000 + int(minutes) * 60_000_000 + round(float(seconds or 0) * 1e6)
            total[2] += -micros if minus == "-" else micros
        elif number:
            total = [one + more for one, more in zip(total, _scaled(float(number), name), strict=True)]
    return sign * total[0], sign * total[1], sign * total[2]


def _scaled(number: float, unit: str) -> tuple[int, int, int]:
    name = unit.lower().rstrip("s") if unit.lower() not in ("s",) else "s"
    if name not in _UNITS:
        raise ValueError(f"{unit!r} is no unit of time")
    months, days, micros = _UNITS[name]
    whole = int(number * months)
    rest_days = (number * months - whole) * 30 + number * days
    return whole, int(rest_days), round(number * micros + (rest_days - int(rest_days)) * _DAY)


def add_months(value: datetime, months: int) -> datetime:
    """`value` some months later, at most on that month's last day."""
    year, month = divmod(value.year * 12 + value.month - 1 + months, 12)
    return value.replace(year=year, month=month + 1, day=min(value.day, monthrange(year, month + 1)[1]))


def shift(value: object, amount: object, sign: int) -> datetime:
    """The moment of `value` plus (or minus) an interval."""
    months, days, micros = parts(amount)
    moved = add_months(moment(value), sign * months) if months else moment(value)
    return moved + timedelta(days=sign * days, microseconds=sign * micros)


def between(later: object, earlier: object) -> str:
    """The interval from one timestamp to another, in days and microseconds."""
    micros = round((moment(later) - moment(earlier)) / timedelta(microseconds=1))
    days = int(micros / _DAY)
    return interval(0, days, micros - days * _DAY)


def age(later: object, earlier: object) -> str:
    """PostgreSQL's AGE: years, months and days, as a calendar counts them."""
    one, other = moment(later), moment(earlier)
    if one < other:
        months, days, micros = parts(age(earlier, later))
        return interval(-months, -days, -micros)
    months = (one.year - other.year) * 12 + one.month - other.month
    days = one.day - other.day
    micros = round((one - one.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(microseconds=1))
    micros -= round((other - other.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(microseconds=1))
    if micros < 0:
        micros, days = micros + _DAY, days - 1
    if days < 0:
        days, months = days + monthrange(other.year, other.month)[1], months - 1
    return interval(months, days, micros)


def truncate(field: str, value: object) -> str:
    """DATE_TRUNC of a date or timestamp."""
    one = moment(value)
    field = field.lower().rstrip("s") if field.lower() != "s" else field
    day = one.replace(hour=0, minute=0, second=0, microsecond=0)
    result = {
        "microsecond": lambda: one,
        "millisecond": lambda: one.replace(microsecond=one.microsecond // 1000 * 1000),
        "second": lambda: one.replace(microsecond=0),
        "minute": lambda: one.replace(second=0, microsecond=0),
        "hour": lambda: one.replace(minute=0, second=0, microsecond=0),
        "day": lambda: day,
        "week": lambda: day - timedelta(days=day.weekday()),
        "month": lambda: day.replace(day=1),
        "quarter": lambda: day.replace(day=1, month=(day.month - 1) // 3 * 3 + 1),
        "year": lambda: day.replace(day=1, month=1),
        "decade": lambda: day.replace(day=1, month=1, year=day.year // 10 * 10),
        "century": lambda: day.replace(day=1, month=1, year=(day.year - 1) // 100 * 100 + 1),
    }
    return result[field]().isoformat(" ")


def extract(field: str, value: object) -> float | int:
    """EXTRACT and DATE_PART of a date, timestamp, time or interval."""
    field = field.lower()
    if field not in ("dow", "epoch", "doy", "isodow") and field.endswith("s"):
        field = field[:-1]
    if is_interval(value):
        return _extract_interval(field, *parts(value))
    if isinstance(value, str) and re.match(r"\d\d:\d\d", value):
        value = f"1970-01-01 {value}"
    one = moment(value)
    seconds = one.second + one.microsecond / 1e6
    found = {
        "year": one.year, "month": one.month, "day": one.day, "hour": one.hour, "minute": one.minute,
        "second": int(seconds) if seconds.is_integer() else seconds, "quarter": (one.month + 2) // 3,
        "week": one.isocalendar()[1], "isoyear": one.isocalendar()[0], "dow": one.isoweekday() % 7,
        "isodow": one.isoweekday(), "doy": one.timetuple().tm_yday, "decade": one.year // 10,
        "century": (one.year + 99) // 100, "millennium": (one.year + 999) // 1000,
        "millisecond": round(seconds * 1e3, 3), "microsecond": round(seconds * 1e6),
        "epoch": (one - datetime(1970, 1, 1)).total_seconds(),
        "year_month": one.year * 100 + one.month,
    }  # fmt: skip
    return found[field]


def _extract_interval(field: str, months: int, days: int, micros: int) -> float | int:
    sign = -1 if micros < 0 else 1
    hours, rest = divmod(abs(micros), 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    years = int(months / 12)
    seconds = sign * rest / 1e6
    found = {
        "year": years, "month": months - years * 12, "day": days, "hour": sign * hours, "minute": sign * minutes,
        "second": seconds, "quarter": abs(months - years * 12) // 3 + 1, "decade": int(years / 10),
        # a year of 365.25 days, as PostgreSQL counts it
        "epoch": years * 31_557_600 + (months - years * 12) * 30 * 86_400 + days * 86_400 + micros / 1e6,
    }  # fmt: skip
    return found[field]


def interval_text(value: str) -> str:
    """An interval as PostgreSQL shows it: 1 year 2 mons 3 days 04:05:06."""
    months, days, micros = parts(value)
    years = int(months / 12)
    shown = [
        f"{number} {name}{'' if number == 1 else 's'}"
        for number, name in ((years, "year"), (months - years * 12, "mon"), (days, "day"))
        if number
    ]
    if micros or not shown:
        hours, rest = divmod(abs(micros), 3_600_000_000)
        minutes, rest = divmod(rest, 60_000_000)
        seconds = f"{rest // 1_000_000:02}" + (f".{rest % 1_000_000:06}".rstrip("0") if rest % 1_000_000 else "")
        shown.append(f"{'-' if micros < 0 else ''}{hours:02}:{minutes:02}:{seconds}")
    return " ".join(shown)


_PATTERN = re.compile(
    r'"[^"]*"|HH24|HH12|HH|MI|SS|MS|US|AM|PM|am|pm|A\.M\.|P\.M\.|(?:FM|TM)?(?:MONTH|Month|month|DAY|Day|day)'
    r"|(?:TM)?(?:MON|Mon|mon|DY|Dy|dy)|Y,YYY|YYYY|YYY|YY|IYYY|IY|FMMM|MM|FMDD|DDD|DD|IW|WW|ID|D|Q|CC|J|W|Y|FM|TH|th",
)


def to_char(value: object, pattern: str) -> str:
    """PostgreSQL's TO_CHAR of a date or timestamp."""
    one = moment(value) if not is_interval(value) else datetime(1, 1, 1) + timedelta(microseconds=parts(value)[2])
    out = []
    position = 0
    for found in _PATTERN.finditer(pattern):
        out.append(pattern[position : found.start()])
        out.append(_piece(found[0], one))
        position = found.end()
    return "".join([*out, pattern[position:]])


def _piece(name: str, one: datetime) -> str:
    if name.startswith('"'):
        return name[1:-1]
    bare = name.removeprefix("FM").removeprefix("TM")
    padded = bare == name
    if bare.lower() in ("month", "day"):
        text = one.strftime("%B" if bare.lower() == "month" else "%A")
        return _cased(text.ljust(9) if padded else text, bare)
    if bare.lower() in ("mon", "dy"):
        return _cased(one.strftime("%b" if bare.lower() == "mon" else "%a"), bare)
    if bare in ("AM", "PM", "am", "pm", "A.M.", "P.M."):
        text = "PM" if one.hour >= 12 else "AM"
        text = f"{text[0]}.M." if "." in bare else text
        return text.lower() if bare.islower() else text
    width = {"YYYY": 4, "YYY": 3, "YY": 2, "Y": 1, "IYYY": 4, "IY": 2, "MM": 2, "DD": 2, "DDD": 3, "HH24": 2, "HH12": 2,
             "HH": 2, "MI": 2, "SS": 2, "MS": 3, "US": 6, "IW": 2, "WW": 2, "CC": 2}.get(bare, 1)  # fmt: skip
    number = {
        "YYYY": one.year, "YYY": one.year % 1000, "YY": one.year % 100, "Y": one.year % 10,
        "IYYY": one.isocalendar()[0], "IY": one.isocalendar()[0] % 100, "MM": one.month, "DD": one.day,
        "DDD": one.timetuple().tm_yday, "HH24": one.hour,
        "HH12": (one.hour - 1) % 12 + 1, "HH": (one.hour - 1) % 12 + 1,
        "MI": one.minute, "SS": one.second, "MS": one.microsecond // 1000, "US": one.microsecond,
        "IW": one.isocalendar()[1], "WW": (one.timetuple().tm_yday - 1) // 7 + 1, "D": one.isoweekday() % 7 + 1,
        "ID": one.isoweekday(), "Q": (one.month + 2) // 3, "CC": (one.year + 99) // 100, "W": (one.day - 1) // 7 + 1,
        "J": one.toordinal() + 1_721_425,
    }.get(bare)  # fmt: skip
    if number is None:
        return ""
    return str(number).rjust(width, "0") if padded else str(number)


def _cased(text: str, like: str) -> str:
    return text.upper() if like.isupper() else text.lower() if like.islower() else text


_MYSQL_FORMATS = {
    "%i": "%M", "%s": "%S", "%S": "%S", "%k": "%-H", "%l": "%-I", "%h": "%I", "%M": "%B", "%W": "%A", "%c": "%-m",
    "%e": "%-d", "%r": "%I:%M:%S %p", "%T": "%H:%M:%S", "%f": "%f", "%x": "%G", "%v": "%V",
}  # fmt: skip


def date_format(value: object, pattern: str) -> str:
    """MySQL's DATE_FORMAT."""
    one = moment(value)
    out = []
    for found in re.finditer(r"%(.)|[^%]+", pattern, re.DOTALL):
        if not found[1]:
            out.append(found[0])
        elif found[1] == "D":
            ending = "th" if one.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(one.day % 10, "th")
            out.append(f"{one.day}{ending}")
        elif found[1] in "YymdHIjpabwivshkWMlcerTfxS":
            out.append(one.strftime(_MYSQL_FORMATS.get(found[0], found[0])))
        elif found[1] in "uUVX":
            raise ValueError(f"{found[0]} is not available")
        else:
            out.append(found[1])
    return "".join(out)


def difference(unit: str, earlier: object, later: object) -> int:
    """MySQL's TIMESTAMPDIFF: whole units from one moment to another."""
    one, other = moment(earlier), moment(later)
    unit = unit.lower()
    if unit in ("year", "quarter", "month"):
        months = (other.year - one.year) * 12 + other.month - one.month
        if months > 0 and (other.day, other.time()) < (one.day, one.time()):
            months -= 1
        elif months < 0 and (other.day, other.time()) > (one.day, one.time()):
            months += 1
        return int(months / {"year": 12, "quarter": 3, "month": 1}[unit])
    _, days, micros = _UNITS[unit]
    return int((other - one) / timedelta(days=days, microseconds=micros))


def last_day(value: object) -> str:
    one = moment(value)
    return date(one.year, one.month, monthrange(one.year, one.month)[1]).isoformat()


def time_of(value: object) -> str:
    return (
        moment(value).time().isoformat()
        if not re.match(r"\d\d:", str(value))
        else time.fromisoformat(value).isoformat()
    )


def week(value: object, mode: int = 0) -> int:
    """MySQL's WEEK in the modes 0 (weeks start on Sunday), 1 (as ISO 8601, but 0 and 53 for days of another year's
    weeks) and 3 (ISO 8601). Raises ValueError for another mode."""
    if mode not in (0, 1, 3):
        raise ValueError(f"mode {mode} is not available")
    one = moment(value)
    year, number, _ = one.isocalendar()
    if mode == 1:
        return number if year == one.year else 0 if year < one.year else 53
    return number if mode == 3 else int(one.strftime("%U"))
