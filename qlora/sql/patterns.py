"""Texts that a simple regular expression or GLOB pattern matches."""

import re
from collections.abc import Iterator
from random import Random

_SPECIAL = re.compile(r"[\[\]^$+?*.|\\]")
_CLASSES = {"digit": "0-9", "alpha": "a-z", "alnum": "a-z0-9", "upper": "A-Z", "lower": "a-z", "space": " "}
_ESCAPES = {"d": "[0-9]", "w": "[a-z]", "s": " ", "D": "[a-z]", "W": "-", "S": "[a-z]"}
_GROUP = re.compile(r"(?<!\\)\((?:\?:)?((?:\\.|[^()\\])*)\)([*+?]|\{(\d+)(?:,\d*)?\})?", re.DOTALL)
_TOKEN = re.compile(r"(\[[^\]]+\]|\\.|.)([*+?]|\{(\d+)(?:,(\d*))?\})?", re.DOTALL)


def matching(pattern: str, random: Random) -> Iterator[str]:
    """Yield a few texts that `pattern` matches."""
    if not _SPECIAL.search(pattern) or len(pattern) > 100:
        return
    plain = re.sub(r"\[:(\w+):\]", lambda found: _CLASSES.get(found[1], "a-z"), pattern)
    plain = re.sub(r"\(\?i\)|(?<![\[\\])\^|(?<!\\)\$", "", plain)
    for _ in range(3 * min(6, 1 + plain.count("|"))):
        chosen = plain.replace(".", r"\.") if "%" in plain else plain  # the dot of SIMILAR TO is no wildcard
        while group := _GROUP.search(chosen):  # the innermost first
            chosen = chosen[: group.start()] + _options(group, random) + chosen[group.end() :]
        option = random.choice(chosen.split("|"))
        yield "".join(_repeated(token, random) for token in _TOKEN.finditer(option))


def _options(group: re.Match, random: Random) -> str:
    """One of the alternatives of a group, as often as the group is repeated."""
    least, most = {"*": (0, 2), "+": (1, 2), "?": (0, 1)}.get(group[2], (1, 1))
    if group[3]:
        least = most = min(int(group[3]), 20)
    return "".join(random.choice(group[1].split("|")) for _ in range(random.randint(least, most)))


def _repeated(token: re.Match, random: Random) -> str:
    least, most = {"*": (0, 3), "+": (1, 3), "?": (0, 1)}.get(token[2], (1, 1))
    if token[3]:
        least = int(token[3])
        most = int(token[4]) if token[4] else least + 2 if token[4] == "" else least
    return "".join(_one(token[1], random) for _ in range(random.randint(min(least, 50), min(max(least, most), 50))))


def _one(unit: str, random: Random) -> str:
    if unit[0] == "\\":
        if unit[1] not in _ESCAPES:
            return unit[1]
        unit = _ESCAPES[unit[1]]
    if unit in (".", "?"):
        return random.choice("abcxyz")
    if unit in ("*", "%"):  # of GLOB, and of SIMILAR TO
        return random.choice(("", "abc", "xy"))
    if unit[0] != "[" or len(unit) < 3:
        return unit
    inner = unit[1:-1]
    excluded = inner[0] in "^!"
    inner = inner[1:] if excluded else inner
    ranges = re.findall(r"(.)-(.)", inner)
    listed = [chr(code) for low, high in ranges for code in range(ord(low), ord(high) + 1)]
    listed += list(re.sub(r".-.", "", inner))
    if excluded:
        listed = [one for one in "abcxyzAZ0189 -_" if one not in listed]
    return random.choice(listed or ["a"])
