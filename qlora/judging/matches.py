"""Metrics by equality: of the whole answer, of a number, of what a pattern finds.

Each function takes rows and answers and returns one record a row, as `judging.verdicts` describes them.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from qlora.judging.texts import gold, normalised, without_reasoning

import regex

PATTERN_SECONDS = 1.0  # for one answer; a pattern may take exponential time
# A number as people write it: 1,234.5 or -3e-5. A comma is read only between groups of three digits.
NUMBER = regex.compile(
    r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?",
)


def exact_match(rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """Whether the answer is the gold answer, after `texts.normalised`."""
    return [
        _verdict("exact_match", normalised(without_reasoning(answer)) == normalised(gold(row)), "another answer")
        for row, answer in zip(rows, answers, strict=True)
    ]


def number_match(rows: Sequence[dict], answers: Sequence[str], tolerance: float) -> list[dict]:
    """Whether the last number of the answer is that of the gold answer.

    It may differ by `tolerance` times the gold number's size (by `tolerance`, if that is 0). A row whose gold answer
    has no number is not judged.
    """
    records = []
    for row, answer in zip(rows, answers, strict=True):
        right, found = last_number(gold(row)), last_number(without_reasoning(answer))
        if right is None:
            records.append(_unjudged("number_match", "the gold answer has no number"))
        elif found is None:
            records.append(_verdict("number_match", False, "no number"))
        else:
            near = abs(found - right) <= Decimal(str(tolerance)) * (abs(right) or 1)
            records.append(_verdict("number_match", near, "another number"))
    return records


def last_number(text: str) -> Decimal | None:
    """The last number in `text`; None if there is none."""
    found = NUMBER.findall(text[-100_000:])
    try:
        return Decimal(found[-1].replace(",", "").replace("\N{MINUS SIGN}", "-")) if found else None
    except InvalidOperation:
        return None


def regex_match(rows: Sequence[dict], answers: Sequence[str], pattern: str) -> list[dict]:
    """Whether what `pattern` finds last in the answer is what it finds last in the gold answer, after normalising.

    Its first group counts, or all of it if it has none. A row in whose gold answer it finds nothing is not judged.
    """
    compiled = regex.compile(pattern)

    def find(text: str) -> str | None:
        found = list(compiled.finditer(text, timeout=PATTERN_SECONDS))
        return normalised((found[-1][1] if compiled.groups else found[-1][0]) or "") if found else None

    records = []
    for row, answer in zip(rows, answers, strict=True):
        try:
            right, answered = find(gold(row)), find(without_reasoning(answer))
        except TimeoutError:
            records.append(_verdict("regex_match", False, "the pattern took too long"))
            continue
        if right is None:
            records.append(_unjudged("regex_match", "the pattern finds nothing in the gold answer"))
        else:
            wrong = "nothing found" if answered is None else "something else"
            records.append(_verdict("regex_match", answered == right, wrong))
    return records


def _verdict(metric: str, right: bool, wrong: str) -> dict:
    return {metric: int(right), "outcome": "right" if right else wrong}


def _unjudged(metric: str, reason: str) -> dict:
    return {metric: None, "outcome": "not judged", "reason": reason}
