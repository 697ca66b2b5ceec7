"""Values near the literal of a comparison, which tell it from similar ones."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from random import Random

from qlora.sql.kinds import word
from qlora.sql.literals import Value, is_number

_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})(.*)", re.DOTALL)


def neighbours(operator: str, value: Value, random: Random) -> Iterator[Value]:
    """Yield `value` and values near it, which distinguish `column operator value` from similar comparisons."""
    if is_number(value):
        yield value  # as written: '19.30' is not '19.3' in a text column
        number = float(value)
        steps = (1, -1, 2, -3, 10, -10) if number.is_integer() else (0.1, -0.1, 1, -1, 10, -10)
        for step in steps:
            near = int(number) + step if number.is_integer() else round(number + step, 6)
            yield near if isinstance(value, (int, float)) else str(near)
        return
    found = _DATE.fullmatch(value)
    if operator == "like":
        core = value.replace("%", "").replace("_", "z")
        before, after = word(random), word(random)
        filled = value.replace("_", "q")
        yield from (filled.replace("%", after), core, before + core, core + after, before + core + after, core[:-1], "")
        return
    yield value
    if found:
        try:
            day = date(int(found[1]), int(found[2]), int(found[3]))
            for step in (1, -1, 40, -40, 366, -366):
                yield (day + timedelta(days=step)).isoformat() + found[4]
            return
        except (ValueError, OverflowError):
            pass
    # Just above and just below in text order, then texts that LIKE '%...%' would also find.
    yield from (value + "x", value[:-1] or "!", f"{word(random)} {value}", f"{value} {word(random)}", "zz" + value)
