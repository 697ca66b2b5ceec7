"""The values of literals, and how SQLite compares them with the values of columns."""

import re

from sqlglot import exp

Value = int | float | str | None

_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,6})?")


def literal_value(node: exp.Expression | None) -> Value:
    """The value of a literal, in parentheses, negated or cast; None for NULL and anything else."""
    while isinstance(node, (exp.Paren, exp.Cast)):
        node = node.this
    if isinstance(node, exp.Boolean):
        return int(node.this)
    sign = -1 if isinstance(node, exp.Neg) else 1
    node = node.this if isinstance(node, exp.Neg) else node
    if not isinstance(node, exp.Literal) or len(node.this) > 200:
        return None
    if node.is_string:
        return node.this
    try:
        number = float(node.this)
    except ValueError:
        return None
    if abs(number) > 2**53:  # a float does not hold such an integer exactly
        return None
    return sign * (int(number) if number.is_integer() else number)


def is_number(value: Value) -> bool:
    """Whether SQLite would store `value` as a number in a numeric column."""
    return isinstance(value, (int, float)) or (value is not None and _NUMBER.fullmatch(value) is not None)


def compare(value: Value, operator: str, other: Value | tuple[Value, ...]) -> bool:
    """Whether `value operator other` holds: text without case; numbers, even if written as text, as numbers."""
    if operator == "in":
        return any(compare(value, "=", one) for one in other)
    if operator == "like":
        return _like(str(other).lower(), str(value).lower())
    if is_number(value) and is_number(other):
        left, right = float(value), float(other)
    else:
        left, right = str(value).lower(), str(other).lower()
    if operator in ("=", "glob"):
        return left == right
    if operator == "!=":
        return left != right
    if operator in ("<", "<="):
        return left < right or (operator == "<=" and left == right)
    return left > right or (operator == ">=" and left == right)


def _like(pattern: str, text: str) -> bool:
    """SQL's LIKE. It backtracks to the last % only; a regular expression could take exponential time."""
    at, position, back = 0, 0, None
    while position < len(text):
        if at < len(pattern) and pattern[at] == "%":
            back, at = (at, position), at + 1
        elif at < len(pattern) and pattern[at] in ("_", text[position]):
            at, position = at + 1, position + 1
        elif back:
            back = (back[0], back[1] + 1)
            at, position = back[0] + 1, back[1]
        else:
            return False
    return not pattern[at:].strip("%")
