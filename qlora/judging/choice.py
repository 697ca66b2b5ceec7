"""evaluate.metrics: auto: which metrics the test rows' gold answers call for."""

from collections.abc import Sequence

from qlora.judging.json_fields import parsed
from qlora.judging.labels import labels
from qlora.judging.matches import NUMBER
from qlora.judging.texts import gold, normalised

LABEL_CHARACTERS = 40
MOST_LABELS = 50
ROWS_PER_LABEL = 3  # at least, on average, or answers that are merely short would be a closed set


def choose(rows: Sequence[dict]) -> tuple[list[str], str]:
    """The metrics for rows that chat, the headline first, and why."""
    golds = [gold(row) for row in rows]
    count = len(golds)
    if any(row["messages"][-1].get("tool_calls") for row in rows):
        return ["tool_call"], "gold answers call tools"
    if all(isinstance(parsed(text), dict | list) for text in golds):
        return ["json_fields"], "the gold answers are JSON"
    closed = labels(rows)
    if 1 < len(closed) <= min(MOST_LABELS, count // ROWS_PER_LABEL) and max(map(len, closed)) <= LABEL_CHARACTERS:
        return ["label_accuracy"], f"the {count} gold answers are {len(closed)} labels"
    if all(NUMBER.fullmatch(normalised(text)) for text in golds):
        return ["number_match"], "the gold answers are numbers"
    return ["rouge_l", "exact_match"], "the gold answers are free text"
