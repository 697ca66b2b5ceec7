"""JSON Lines files: one JSON object on each line."""

import json
from collections.abc import Iterator
from pathlib import Path

from qlora.runtime.console import Refusal


def read(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of each line that is not blank.

    Raises:
        Refusal: if the file is missing or not UTF-8, or a line is no JSON object.
    """
    try:
        # Not str.splitlines, which also splits at separators that JSON allows inside a string.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(path, number, line)
    except FileNotFoundError:
        raise Refusal(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise Refusal(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _object(path: Path, number: int, line: str) -> dict:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise Refusal(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path}, line {number}: must be a JSON object with named columns, not {type(value).__name__}")
    return value
