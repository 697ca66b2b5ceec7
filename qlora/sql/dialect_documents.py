"""JSON and arrays of PostgreSQL and MySQL: a document is its JSON text, an array PostgreSQL's text of it, {a,b}."""

import json
import re

from qlora.sql.dialect_numbers import text

_MISSING = object()
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^",{}]+)')
_PLAIN = re.compile(r'[^\s",{}\\]+')


def _found(document: object, path: tuple) -> object:
    """What lies at a path of keys and positions; _MISSING if nothing does. Raises ValueError for what is no JSON."""
    value = json.loads(text(document))
    for step in path:
        if isinstance(value, dict) and str(step) in value:
            value = value[str(step)]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", str(step)) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return _MISSING
    return value


def written(value: object) -> str:
    """A value as JSON, its keys in the order of both servers: by length, then by letters."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key))
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {written(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def document(value: object) -> str:
    return written(json.loads(text(value)))


def get(value: object, *path: object) -> str | None:
    found = _found(value, path)
    return None if found is _MISSING else written(found)


def get_text(value: object, *path: object) -> str | None:
    """PostgreSQL's ->>: the text of a scalar, and NULL for null."""
    found = _found(value, path)
    return None if found is _MISSING or found is None else found if isinstance(found, str) else written(found)


def mysql_get_text(value: object, *path: object) -> str | None:
    """MySQL's ->>: the text of a scalar, also of null."""
    found = _found(value, path)
    return None if found is _MISSING else found if isinstance(found, str) else written(found)


def mysql_get_value(value: object, *path: object) -> object:
    """What MySQL compares: a number of JSON as a number, a string as a text."""
    found = _found(value, path)
    if found is _MISSING:
        return None
    number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return found if number or isinstance(found, str) else written(found)


def contains(one: object, other: object) -> int:
    """PostgreSQL's @>: an array holds a plain value at the top only."""
    found, wanted = _found(one, ()), json.loads(text(other))
    if isinstance(found, list) and not isinstance(wanted, (list, dict)):
        wanted = [wanted]
    return int(_holds(found, wanted, loose=False))


def mysql_contains(one: object, other: object, *path: object) -> int | None:
    """MySQL's JSON_CONTAINS: an array holds what an element holds."""
    found = _found(one, path)
    return None if found is _MISSING else int(_holds(found, json.loads(text(other)), loose=True))


def _holds(one: object, other: object, *, loose: bool) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return all(key in one and _holds(one[key], value, loose=loose) for key, value in other.items())
    if isinstance(one, list) and (loose or isinstance(other, list)):
        wanted = other if isinstance(other, list) else [other]
        return all(any(_holds(each, value, loose=loose) for each in one) for value in wanted)
    return (type(one) is type(other) and one == other) or (_number(one) and _number(other) and one == other)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def has_key(value: object, key: object) -> int:
    found = _found(value, ())
    return int(key in found) if isinstance(found, (dict, list)) else int(found == key)


def size(value: object, *path: object) -> int | None:
    found = _found(value, path)
    return None if found is _MISSING else len(found) if isinstance(found, (dict, list)) else 1


def list_size(value: object) -> int:
    """PostgreSQL's jsonb_array_length. Raises ValueError for what is no array."""
    found = _found(value, ())
    if not isinstance(found, list):
        raise ValueError("cannot get array length of a non-array")
    return len(found)


def type_name(value: object) -> str:
    found = _found(value, ())
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(found), "number")


def elements(value: object) -> list[str | None]:
    """The elements of an array, as text. Raises ValueError for what is none, and for arrays of arrays."""
    inner = text(value).strip()
    if not (inner.startswith("{") and inner.endswith("}")) or "{" in inner[1:]:
        raise ValueError("malformed array literal")
    found = []
    for quoted, plain in _ELEMENT.findall(inner[1:-1]):
        bare = plain.strip()
        found.append(re.sub(r"\\(.)", r"\1", quoted) if not bare else None if bare.upper() == "NULL" else bare)
    return found


def array(*values: object) -> str:
    """The text of an array."""

    def one(value: object) -> str:
        if value is None:
            return "NULL"
        shown = text(value)
        plain = _PLAIN.fullmatch(shown) and shown.upper() != "NULL"
        return shown if plain else '"' + re.sub(r'(["\\])', r"\\\1", shown) + '"'

    return "{" + ",".join(map(one, values)) + "}"


def has_element(value: object, wanted: object) -> int | None:
    """= ANY: NULL if no element is equal, and one is NULL."""
    found = elements(value)
    return 1 if text(wanted) in found else None if None in found else 0


def contains_all(one: object, other: object) -> int:
    """@> of arrays or of JSON."""
    if text(one).strip()[:1] != "{" or (re.match(r'\s*\{\s*("[^"]*"\s*:|\}$)', text(other)) and ":" in text(one)):
        return contains(one, other)
    return int(set(elements(other)) <= set(elements(one)))


def overlaps(one: object, other: object) -> int:
    return int(bool(set(elements(one)) & set(elements(other)) - {None}))


def length(value: object, dimension: int = 1) -> int | None:
    return len(elements(value)) or None if dimension == 1 else None


def cardinality(value: object) -> int:
    return len(elements(value))


def joined(value: object, separator: str, missing: str | None = None) -> str:
    parts = [missing if one is None else one for one in elements(value)]
    return separator.join(one for one in parts if one is not None)


def element(value: object, index: int) -> str | None:
    """The element at an index from 0."""
    found = elements(value)
    return found[index] if 0 <= index < len(found) else None


def place(value: object, wanted: object) -> int | None:
    found = elements(value)
    return found.index(text(wanted)) + 1 if text(wanted) in found else None


def without(value: object, unwanted: object) -> str:
    return array(*(one for one in elements(value) if one != text(unwanted)))


def with_element(value: object, more: object) -> str:
    """PostgreSQL's array_append: NULL counts as an array without elements."""
    return array(*(elements(value) if value is not None else ()), more)


def is_valid(value: object) -> int:
    try:
        json.loads(text(value))
    except ValueError:
        return 0
    return 1


def split(value: object, separator: str) -> str:
    shown = text(value)
    return array(*(shown.split(separator) if separator else [shown]) if shown else ())


def as_list(value: object) -> str:
    """The elements of an array as a JSON array, for SQLite's json_each."""
    return json.dumps([_typed(one) for one in elements(value)])


def _typed(value: str | None) -> object:
    number = value is not None and re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d{1,6})?", value)
    return json.loads(value) if number else value


def list_elements(value: object, as_text: int) -> str:
    """The elements of a JSON array as a JSON array, for json_each; `as_text`: what is no text is written as JSON."""
    found = _found(value, ())
    if not isinstance(found, list):
        raise ValueError("cannot extract elements from a scalar")
    shown = [one if isinstance(one, str) or one is None else written(one) for one in found]
    return json.dumps(shown if as_text else [written(one) for one in found])


def keys(value: object) -> str:
    """The keys of an object as a JSON array, for json_each."""
    found = _found(value, ())
    if not isinstance(found, dict):
        raise ValueError("cannot call json_object_keys on a scalar")
    return json.dumps(sorted(found, key=lambda key: (len(key.encode()), key)))
