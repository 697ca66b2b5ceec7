"""Made-up JSON documents and arrays, with the keys and values that conditions name."""

import json
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from qlora.sql.dialect_documents import array
from qlora.sql.kinds import word

from sqlglot import exp

if TYPE_CHECKING:
    from qlora.sql.candidates import Literals

JSON_READERS = (exp.JSONExtract, exp.JSONExtractScalar, exp.JSONBExtract, exp.JSONBExtractScalar)
_MADE = 120


def path_of(node: exp.Expression) -> tuple[str | int, ...]:
    """The keys and positions by which a chain of extractions reads a document; what is computed is left out."""
    inner, path = node.this.unnest(), node.expression
    before = path_of(inner) if isinstance(inner, JSON_READERS) else ()
    if isinstance(path, exp.JSONPath):
        steps = [one.this for one in path.expressions if isinstance(one, (exp.JSONPathKey, exp.JSONPathSubscript))]
        return (*before, *(one for one in steps if isinstance(one, (str, int))))
    if isinstance(path, exp.Literal) and path.this.startswith("{"):
        return (*before, *(int(one) if one.isdigit() else one for one in path.this.strip("{}").split(",")))
    return before


def documents(literals: "Literals", random: Random) -> Iterator[str]:
    """JSON texts in which the paths lead to literals and to other values, and at times to nothing."""
    for text in literals.texts:  # of @> and JSON_CONTAINS
        if _is_container(text):
            yield text
    paths = literals.paths or [(name,) for name in ("name", "value", "kind")]
    for _ in range(_MADE):
        root: object = {}
        for path in paths:
            if random.random() < 0.85:
                root = _put(root, path, _value(literals, random))
        yield json.dumps(root, ensure_ascii=False)
    yield from ("{}", "[]", "null")


def _put(root: object, path: tuple[str | int, ...], value: object) -> object:
    """`root` with `value` at the path."""
    if not path:
        return value
    step, *rest = path
    if isinstance(step, int):
        found = root if isinstance(root, list) else []
        found = found + [None] * (abs(step) + 1 - len(found))
        found[step] = _put(found[step], tuple(rest), value)
        return found
    found = root if isinstance(root, dict) else {}
    return found | {step: _put(found.get(step, {}), tuple(rest), value)}


def _value(literals: "Literals", random: Random) -> object:
    plain = [text for text in literals.texts if not _is_container(text)]
    scalar = [*plain, *literals.numbers, word(random), random.randrange(100), random.randrange(500) / 10, True, None]
    if random.random() < 0.12:
        return random.sample(scalar, min(len(scalar), random.randint(0, 3)))
    return random.choice(scalar)


def _is_container(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False


def arrays(literals: "Literals", random: Random) -> Iterator[str]:
    """Texts of arrays with and without the literals."""
    plain = [one for text in literals.texts for one in (text.strip("{}").split(",") if text[:1] == "{" else [text])]
    for _ in range(_MADE):
        known = [*plain, *map(str, literals.numbers)]
        values = random.sample(known, min(len(known), random.randint(0, 2)))
        values += [word(random) for _ in range(random.randint(0, 3))]
        random.shuffle(values)
        yield array(*values)
