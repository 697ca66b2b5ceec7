"""JSON Lines files: one JSON object on each line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.runtime.inputs import missing, repair
from qlora.runtime.outputs import write_text


def read(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of each line that is not blank.

    Raises:
        Refusal: if the file is missing or in another encoding, or a line is no JSON object.
    """
    try:
        # Not str.splitlines, which also splits at separators that JSON allows inside a string.
        with path.open(encoding=encoding, newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(path, number, line)
    except FileNotFoundError:
        raise Refusal(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise Refusal(f"{path}: not {name} ({error.reason} at byte {error.start}); save it as UTF-8") from None


def write(path: Path, records: Iterable[dict]) -> None:
    """Write one object a line, all of them or none."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_made(path: Path, stage: str) -> list[dict]:
    """All objects in `path`, which `stage` writes. Raises Refusal as `iterate_made`."""
    return list(iterate_made(path, stage))


def iterate_made(path: Path, stage: str) -> Iterator[dict]:
    """The objects in `path`, which `stage` writes. Raises Refusal if it is missing or damaged, or holds none."""
    if not path.is_file():
        raise Refusal(missing(path, stage))
    empty = True
    try:
        for _, record in read(path):
            empty = False
            yield record
    except Refusal as refusal:
        raise Refusal(f"{refusal}: {repair(path, stage)}") from None
    if empty:
        raise Refusal(f"{path} is empty: {repair(path, stage)}")


def _object(path: Path, number: int, line: str) -> dict:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise Refusal(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise Refusal(f"{path}, line {number}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path}, line {number}: must be a JSON object with named columns, not {type(value).__name__}")
    return value
