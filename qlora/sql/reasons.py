"""Why rows cannot be judged, counted and shown."""

from collections import Counter
from collections.abc import Iterable, Mapping

SHOWN = 160  # characters of an example


def by_reason(rows: Iterable[Mapping], reasons: Iterable[str | None]) -> dict[str, dict]:
    """Reason -> {"rows", "example"} of rows with `id` and `answer`; a row whose reason is None can be judged."""
    counts, examples = Counter(), {}
    for row, reason in zip(rows, reasons, strict=True):
        if reason:
            counts[reason] += 1
            examples.setdefault(
                reason, f"{row['id']}: {shortened(row['answer'])}" if "id" in row else shortened(row["answer"])
            )
    return {reason: {"rows": count, "example": examples[reason]} for reason, count in counts.most_common()}


def shortened(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def in_words(found: Mapping[str, Mapping], total: int) -> str:
    """What `unjudged` found, in a line."""
    count = sum(one["rows"] for one in found.values())
    if not count:
        return f"none of {total} test rows"
    parts = [f"{one['rows']} {reason} ({one['example']})" for reason, one in list(found.items())[:3]]
    return f"{count} of {total} test rows ({count / total:.1%}): " + "; ".join(parts)
