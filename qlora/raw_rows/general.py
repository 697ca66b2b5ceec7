"""evaluate.general: tasks beside the one that is trained, from the built-in set or a file."""

from pathlib import Path

from qlora.raw_rows import general_items
from qlora.rows import jsonl
from qlora.runtime.console import Refusal

import regex

CHECKS = ("exact", "number", "json", "pattern")


def general_rows(name: str | None) -> list[dict]:
    """The rows of evaluate.general: id, kind, messages, check, pattern. None of them for null.

    A file has a JSON object a line: prompt, answer, and if need be check (one of CHECKS; exact if it is left out),
    pattern (which an answer must have, for the check of that name) and kind (by which the report sums up).

    Raises:
        Refusal: if the file is missing, or a line lacks something.
    """
    if name is None:
        return []
    items = general_items.items() if name == "builtin" else _read(Path(name))
    return [
        {
            "id": item["id"],
            "kind": item.get("kind", "general"),
            "messages": [
                {"role": "user", "content": item["prompt"]},
                {"role": "assistant", "content": item["answer"]},
            ],
            "check": item.get("check", "exact"),
            "pattern": item.get("pattern"),
        }
        for item in items
    ]


def _read(path: Path) -> list[dict]:
    items = []
    for number, item in jsonl.read(path):
        place = f"{path}, line {number}"
        for key in ("prompt", "answer", "kind", "check", "pattern"):
            value = item.get(key, "" if key not in ("prompt", "answer") else None)
            if not isinstance(value, str) or (key in ("prompt", "answer") and not value.strip()):
                raise Refusal(f"{place}: {key} must be a text (a line has prompt and answer; docs/metrics.md)")
        check = item.get("check", "exact")
        if check not in CHECKS:
            raise Refusal(f"{place}: check is {check!r}; it may be {', '.join(CHECKS)}")
        if (check == "pattern") != ("pattern" in item):
            raise Refusal(f"{place}: a pattern belongs to check: pattern, and this needs one")
        try:
            regex.compile(item.get("pattern", ""))
        except regex.error as error:
            raise Refusal(f"{place}: pattern is no regular expression ({error})") from None
        items.append({"id": f"{path.name}:{number}"} | item)
    if not items:
        raise Refusal(f"{path} is empty (evaluate.general)")
    return items
