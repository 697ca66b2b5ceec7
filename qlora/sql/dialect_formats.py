"""Functions of PostgreSQL and MySQL that write values in another form: formats, codes, bases, digests."""

import hashlib
import re
from decimal import ROUND_HALF_UP, Decimal

from qlora.sql.dialect_numbers import leading_number, number, text


def number_to_char(value: object, pattern: str) -> str:
    """PostgreSQL's TO_CHAR of a number, with the patterns 9 0 , G . D $ L % FM and S or MI at an end."""
    shape = pattern.upper()
    fill = shape.startswith("FM")
    shape = shape.removeprefix("FM")
    sign_mark = next((mark for mark in ("MI", "S") if shape.startswith(mark) or shape.endswith(mark)), "")
    after = sign_mark and shape.endswith(sign_mark)
    shape = shape.removesuffix(sign_mark) if after else shape.removeprefix(sign_mark)
    if re.search(r"[^90,G.D$L%]", shape):
        raise ValueError(f"the format {pattern} is not available")
    whole, _, part = shape.replace("D", ".").replace("G", ",").partition(".")
    places = sum(one in "90" for one in part)
    exact = Decimal(text(number(value))).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    digits, _, decimals = f"{abs(exact):f}".partition(".")
    room = sum(one in "90" for one in whole)
    digits = "" if digits == "0" else digits
    if len(digits) > room:
        digits, decimals = "#" * room, "#" * places
    forced = min((place for place, one in enumerate(one for one in whole if one in "90") if one == "0"), default=room)
    padded = digits.rjust(room)
    padded = padded[:forced] + padded[forced:].replace(" ", "0")
    if not padded.strip() and (not places or "0" in whole):
        padded = padded[:-1] + "0" if room else padded
    out, at = [], 0
    for one in whole:
        if one in "90":
            out.append(padded[at])
            at += 1
        elif one == ",":
            out.append("," if padded[:at].strip() else " ")
        else:
            out.append({"L": "$"}.get(one, one))
    shown = "".join(out) + (f".{decimals}" if "." in shape.replace("D", ".") else "")
    shown += "".join(one for one in part if one in "%")
    minus = exact < 0
    if sign_mark:
        mark = "-" if minus else "+" if sign_mark == "S" else " "
        bare = shown.lstrip()
        shown = shown + mark if after else mark + bare
        return shown.strip() if fill else shown
    blanks = len(shown) - len(shown.lstrip())
    shown = " " * blanks + ("-" if minus else " ") + shown[blanks:]
    shown = shown.strip() if fill else shown
    return shown.rstrip("0") if fill and part.count("9") and "0" not in part and "." in shown else shown


def format_text(pattern: str, *values: object) -> str:
    """PostgreSQL's FORMAT with %s, %I and %L. Raises ValueError for widths."""
    rest = iter(values)

    def one(found: re.Match) -> str:
        if found[1] == "%":
            return "%"
        value = next(rest, None)
        if found[1] == "s":
            return "" if value is None else text(value)
        if found[1] == "L":
            return "NULL" if value is None else quoted(value)
        raise ValueError(f"format with {found[0]} is not available")

    return re.sub(r"%(.)", one, pattern)


def quoted(value: object) -> str:
    return "'" + text(value).replace("'", "''") + "'"


def soundex(value: object) -> str:
    """MySQL's SOUNDEX: vowels are dropped before repeats, and the result may be longer than four."""
    codes = {**dict.fromkeys("BFPV", "1"), **dict.fromkeys("CGJKQSXZ", "2"), **dict.fromkeys("DT", "3"), "L": "4",
             **dict.fromkeys("MN", "5"), "R": "6"}  # fmt: skip
    letters = [one for one in text(value).upper() if "A" <= one <= "Z"]
    if not letters:
        return ""
    found, last = letters[0], codes.get(letters[0], "")
    for one in letters[1:]:
        code = codes.get(one, "")
        if code and code != last:
            found += code
        last = code or last
    return found.ljust(4, "0")


def hexadecimal(value: object) -> str:
    return f"{value & (2**64 - 1):X}" if isinstance(value, int) else text(value).encode().hex().upper()


def to_base(value: object, given: int, wanted: int) -> str:
    """MySQL's CONV."""
    if not (2 <= given <= 36 and 2 <= wanted <= 36):
        raise ValueError("no such base")
    digits = re.match(r"\s*-?[0-9a-zA-Z]+", text(value))
    number_there = int(digits[0], given) if digits else 0
    number_there, shown = number_there & (2**64 - 1), ""
    while number_there or not shown:
        number_there, digit = divmod(number_there, wanted)
        shown = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + shown
    return shown


def digest(value: object, bits: int) -> str:
    """The hexadecimal digest: SHA-1 for 1, else SHA-2 of that many bits, 256 for 0."""
    names = {1: "sha1", 0: "sha256", 224: "sha224", 256: "sha256", 384: "sha384", 512: "sha512"}
    return hashlib.new(names[bits], text(value).encode(), usedforsecurity=False).hexdigest()


def address_number(value: object) -> int:
    parts = [int(one) for one in text(value).split(".")]
    if len(parts) != 4 or any(not 0 <= one < 256 for one in parts):
        raise ValueError("no address")
    return int.from_bytes(bytes(parts), "big")


def replaced_part(value: object, start: int, length: int, new: str) -> str:
    """MySQL's INSERT."""
    shown = text(value)
    if not 1 <= start <= len(shown):
        return shown
    end = len(shown) if length < 0 else min(len(shown), start - 1 + length)
    return shown[: start - 1] + new + shown[end:]


def order(one: object, other: object) -> int:
    """MySQL's STRCMP."""
    left, right = text(one).lower(), text(other).lower()
    return (left > right) - (left < right)


def bucket(value: object, low: float, high: float, count: int) -> int:
    """PostgreSQL's WIDTH_BUCKET. Raises ValueError."""
    if count <= 0 or low == high:
        raise ValueError("no buckets")
    place = (number(value) - low) / (high - low)
    return 0 if place < 0 else count + 1 if place >= 1 else int(place * count) + 1


def like_exactly(value: object, pattern: str) -> int:
    """LIKE with case, and a backslash as its escape."""
    parts = re.findall(r"\\.|.", text(pattern), re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return int(
        re.fullmatch("".join(wild.get(one, re.escape(one[-1])) for one in parts), text(value), re.DOTALL) is not None
    )


def bits(value: object) -> int:
    return (int(leading_number(value)) & (2**64 - 1)).bit_count()
