"""Answers in JSON: whether they are valid, and how many of their fields are right."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlora.judging.texts import gold, unfenced, without_reasoning
from qlora.runtime.console import Refusal

import jsonschema
import referencing

BROKEN = object()  # in place of a value: the text is not JSON


def json_fields(rows: Sequence[dict], answers: Sequence[str], schema_file: str | None) -> list[dict]:
    """One record a row: json_valid, json_exact and json_fields, whose weighted mean over rows is the micro-F1.

    A field is the path to a value without list positions, and the value: the items of a list have no order. Texts must
    be equal letter by letter, numbers in value. A valid answer is one JSON value, with a ``` block around it or not,
    and follows the schema if there is one. A row whose gold answer is not JSON is not judged.
    """
    follows = _validator(schema_file)
    records = []
    for row, answer in zip(rows, answers, strict=True):
        right, found = parsed(gold(row)), parsed(without_reasoning(answer))
        if right is BROKEN:
            unjudged = dict.fromkeys(("json_fields", "json_exact", "json_valid"))
            records.append(unjudged | {"outcome": "not judged", "reason": "the gold answer is not JSON"})
            continue
        wanted, given = Counter(fields(right)), Counter() if found is BROKEN else Counter(fields(found))
        shared, total = (wanted & given).total(), wanted.total() + given.total()
        valid = found is not BROKEN and follows(found)
        exact = valid and wanted == given
        outcome = "no JSON" if found is BROKEN else "not of the schema" if not valid else "other fields"
        records.append(
            {"json_fields": 2 * shared / total, "json_fields_weight": total, "json_exact": int(exact)}
            | {"json_valid": int(valid), "outcome": "right" if exact else outcome}
        )
    return records


def parsed(text: str) -> object:
    """The value of a JSON text; BROKEN if it is not JSON. NaN and Infinity are not."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(unfenced(text), parse_constant=refuse)
    except (ValueError, RecursionError):
        return BROKEN


def fields(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Each value with its path; an empty object or list is a value, too."""
    waiting = [(path, value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [((*path, key), part) for key, part in value.items()]
        elif isinstance(value, list) and value:
            waiting += [((*path, None), part) for part in value]
        else:
            # 1 and 1.0 are equal, 1 and true are not.
            kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
            yield path, kind, "" if isinstance(value, dict | list) else value


def _validator(schema_file: str | None):
    """A function: whether a value follows the schema. Raises Refusal if the file holds no schema."""
    if schema_file is None:
        return lambda value: True
    schema = json.loads(Path(schema_file).read_text(encoding="utf-8"))
    try:
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise Refusal(f"{schema_file} is no JSON schema: {error.message[:150]}") from None
    validator = kind(schema, registry=referencing.Registry())  # which fetches nothing

    def follows(value: object) -> bool:
        try:
            return validator.is_valid(value)
        except referencing.exceptions.Unresolvable as error:
            raise Refusal(f"{schema_file} refers to {error.ref!r}, which is not in the file: put it there") from None
        except RecursionError:
            return False

    return follows
