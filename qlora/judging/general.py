"""Verdicts on the general set (evaluate.general): what tuning on one task cost elsewhere."""

from collections import Counter
from collections.abc import Sequence

from qlora.judging.json_fields import BROKEN, fields, parsed
from qlora.judging.matches import PATTERN_SECONDS, last_number
from qlora.judging.texts import gold, normalised, without_reasoning

import regex


def judge_general(rows: Sequence[dict], answers: Sequence[str]) -> dict:
    """The metric `general`, its value for each kind of task, and the verdicts: a digit a row, 1 for right."""
    right = [is_right(row, answer) for row, answer in zip(rows, answers, strict=True)]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    of_kind = {kind: [one for one, row in zip(right, rows, strict=True) if row["kind"] == kind] for kind in kinds}
    return {
        "general": round(sum(right) / len(right), 4),
        "general_by_kind": {kind: round(sum(found) / len(found), 4) for kind, found in of_kind.items()},
        "general_right": "".join(str(int(one)) for one in right),
    }


def is_right(row: dict, answer: str) -> bool:
    answer = without_reasoning(answer)
    match row["check"]:
        case "number":
            return last_number(answer) is not None and last_number(answer) == last_number(gold(row))
        case "json":
            found = parsed(answer)
            return found is not BROKEN and Counter(fields(found)) == Counter(fields(parsed(gold(row))))
        case "pattern":
            try:
                return regex.search(row["pattern"], answer, timeout=PATTERN_SECONDS) is not None
            except TimeoutError:
                return False
    return normalised(answer) == normalised(gold(row))
