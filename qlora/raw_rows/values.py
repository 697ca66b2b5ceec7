"""Values as tools write them into rows: what stands for a missing one, and lists that became text in a CSV file."""

import ast
import json

ABSENT = {"", "nan", "none", "null", "<noinput>"}  # pandas, Python, JSON and Alpaca for a value that is not there


def is_absent(value: object) -> bool:
    """Whether an optional value is not there."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ABSENT)


def parsed(value: object) -> object:
    """The list or object that `value` holds as text, in JSON or as Python prints it; else `value`."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value
