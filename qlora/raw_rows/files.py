"""Read the rows of a file under data/raw: JSON Lines, a JSON array, CSV or Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

from qlora.raw_rows import csv_file
from qlora.raw_rows.encoding import WESTERN, encoding_of
from qlora.recipe.checks import FILES
from qlora.rows import jsonl
from qlora.runtime.console import Refusal

import pyarrow
import pyarrow.parquet as parquet

CHUNK = 1000  # rows of a Parquet file in memory
BLOCK = 1 << 20  # characters of a JSON file that are read at a time
LARGEST = 1 << 27  # characters of a row
NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", WESTERN: "Windows-1252"}


def read(path: Path, encoding: str, known: set[str]) -> tuple[str, Iterator[tuple[int, dict]]]:
    """What the file is (its kind, encoding and delimiter), and its rows as (number, row).

    A row is a dictionary. The number is the line in a JSON Lines or CSV file, as editors count, else that of the row.

    Args:
        encoding: data.encoding.
        known: Names of columns that the rows may have, which tell the delimiter of a CSV file.

    Raises:
        Refusal: if the file is missing, of another kind, or unreadable; of the rows, as they are read.
    """
    if not path.is_file():
        raise Refusal(f"{path} is missing; put the file there (or `dvc pull` it), or change data.source")
    if path.suffix not in FILES:
        raise Refusal(f"{path}: must end in {', '.join(FILES)}")
    if path.suffix == ".parquet":
        return "Parquet", _read_parquet(path)
    if path.suffix in (".csv", ".tsv"):
        codec = encoding_of(path, encoding)
        delimiter = csv_file.delimiter_of(path, codec, known)
        kind = f"CSV with {csv_file.DELIMITERS[delimiter]} in {_name(codec)}"
        return kind, csv_file.read(path, codec, delimiter)
    codec = _json_encoding(path, encoding)
    rows, kind = _rows_of_array(path, codec), "JSON array"
    if rows is None:
        rows, kind = jsonl.read(path, codec), "JSON Lines"
    return kind if codec.startswith("utf-8") else f"{kind} in {_name(codec)}", rows


def _name(codec: str) -> str:
    return NAMES.get(codec, codec.upper())


def _json_encoding(path: Path, wanted: str) -> str:
    """JSON is UTF-8 by its standard; some tools write UTF-16, which shows in the first bytes."""
    if wanted != "auto":
        return wanted
    with path.open("rb") as file:
        start = file.read(4)
    return encoding_of(path) if b"\0" in start or start.startswith((b"\xff", b"\xfe")) else "utf-8-sig"


def _rows_of_array(path: Path, codec: str) -> Iterator[tuple[int, dict]] | None:
    """The rows of a file that holds one JSON array; None if it holds one object a line.

    Raises:
        Refusal: if it holds one object that spans lines: its rows could be anywhere in it.
    """
    try:
        with path.open(encoding=codec) as file:
            start = file.read(BLOCK).lstrip(" \t\r\n")
    except UnicodeError as error:
        raise csv_file.not_decoded(path, error, codec) from None
    first_line = start.partition("\n")[0]
    if start.startswith("[") and (path.suffix == ".json" or not _is_json(first_line)):
        return _read_array(path, codec)
    if path.suffix == ".json" and start.startswith("{") and len(first_line) < len(start) and not _is_json(first_line):
        raise Refusal(f"{path}: holds one JSON object; it must hold an array of rows, or one row a line")
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_array(path: Path, codec: str) -> Iterator[tuple[int, dict]]:
    """The objects of an array, one at a time, with their numbers: a file of gigabytes does not fit in memory."""
    decoder, number, line = json.JSONDecoder(), 0, 1
    try:
        with path.open(encoding=codec) as file:
            text, at, wanted = file.read(BLOCK), 0, "["
            while True:
                behind = at
                while behind < len(text) and text[behind] in " \t\r\n":
                    behind += 1
                line += text.count("\n", at, behind)
                at = behind
                if at == len(text):
                    if not (more := file.read(BLOCK)):
                        raise Refusal(f"{path}: ends inside of its array")
                    text, at = more, 0
                    continue
                if wanted == "{" and number == 0 and text[at] == "]":
                    return
                if wanted == "{":
                    try:
                        value, end = decoder.raw_decode(text, at)
                    except json.JSONDecodeError as error:
                        if len(text) - at < LARGEST and (more := file.read(max(BLOCK, len(text) - at))):
                            text, at = text[at:] + more, 0
                            continue
                        raise Refusal(f"{path}, row {number + 1}, line {line}: not JSON ({error.msg})") from None
                    except (RecursionError, ValueError) as error:
                        raise Refusal(f"{path}, row {number + 1}: cannot be read ({error})") from None
                    number += 1
                    if not isinstance(value, dict):
                        raise Refusal(
                            f"{path}, row {number}, line {line}: must be a JSON object with named columns, not "
                            f"{type(value).__name__}"
                        )
                    yield number, value
                    line += text.count("\n", at, end)
                    at, wanted = end, ","
                elif text[at] == wanted:
                    at, wanted = at + 1, "{"
                elif text[at] == "]" and wanted == ",":
                    return
                else:
                    raise Refusal(f"{path}, line {line}: not JSON (a comma or the array's end is expected)")
    except UnicodeError as error:
        raise csv_file.not_decoded(path, error, codec) from None


def without_nulls(row: dict) -> dict:
    """The row without the nulls inside of its values: Arrow gives each object the keys of all rows' objects."""
    return {column: _inside(value) for column, value in row.items()}


def _inside(value: object) -> object:
    if isinstance(value, dict):
        return {key: _inside(item) for key, item in value.items() if item is not None}
    return [_inside(item) for item in value] if isinstance(value, list) else value


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        batches = parquet.ParquetFile(path).iter_batches(CHUNK)
        yield from enumerate((without_nulls(row) for batch in batches for row in batch.to_pylist()), 1)
    except pyarrow.ArrowException as error:
        raise Refusal(f"{path}: not a Parquet file ({error})") from None
