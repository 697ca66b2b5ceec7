"""Read people's rows, one dictionary at a time, from a JSONL, CSV or Parquet file or from a data set on the hub."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from qlora.recipe.checks import FILES
from qlora.recipe.schema import Data
from qlora.rows import jsonl
from qlora.runtime.console import Refusal
from qlora.source import hub

import pandas
import pyarrow
import pyarrow.parquet as parquet

CHUNK = 1000  # rows of a file in memory


def read(source: str, data: Data) -> Iterator[dict]:
    """Yield the rows of a file under data/raw, or of a hub data set at its pinned commit, as dictionaries.

    Raises:
        Refusal: if the source is missing, of another kind, empty, unreadable, or lacks a column that the task needs.
    """
    rows = _read_file(Path(source)) if source.startswith("data/raw/") else _read_hub(source, data)
    needed = _needed_columns(data)
    number = 0
    for number, row in enumerate(rows, 1):
        if number == 1 and (missing := [column for column in needed if column not in row]):
            raise Refusal(
                f"{source}: has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}: "
                "set data.columns to the names that the file uses"
            )
        yield row
    if number == 0:
        raise Refusal(f"{source}: is empty; it must hold at least one row")


def _needed_columns(data: Data) -> list[str]:
    columns = data.columns
    if data.task == "text-to-sql":
        needed = [columns.question, columns.context, columns.answer]
    else:
        needed = [columns.text or columns.messages]
    return needed + ([columns.group] if columns.group else [])


def _read_file(path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise Refusal(f"{path} is missing; put the file there (or `dvc pull` it), or change data.source")
    if path.suffix not in FILES:
        raise Refusal(f"{path}: must end in {', '.join(FILES)}")
    if path.suffix == ".jsonl":
        yield from (row for _, row in jsonl.read(path))
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    else:
        yield from _read_parquet(path)


def _read_csv(path: Path) -> Iterator[dict]:
    """Every value is text, or None where a row is short. A row with more fields than the header is refused."""
    csv.field_size_limit(1 << 27)
    # The header is read as a row: otherwise pandas silently takes the first field of longer rows for an index.
    # The Python engine refuses what the C engine repairs, such as text behind a closing quote.
    settings = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "engine": "python"}
    header = None
    try:
        with pandas.read_csv(path, chunksize=CHUNK, **settings) as chunks:
            for chunk in chunks:
                for values in chunk.itertuples(index=False, name=None):
                    if header is None:
                        header = values
                        continue
                    pairs = zip(header, values, strict=True)
                    yield {name: value if isinstance(value, str) else None for name, value in pairs}
    except pandas.errors.EmptyDataError:
        return
    except UnicodeDecodeError as error:
        raise Refusal(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (pandas.errors.ParserError, csv.Error) as error:
        if found := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error)):
            raise Refusal(
                f"{path}: row {int(found[2]) - 1} has {found[3]} values and the header {found[1]}: put quotes around "
                "values that hold a comma"
            ) from None
        raise Refusal(f"{path}: not CSV ({error})") from None


def _read_parquet(path: Path) -> Iterator[dict]:
    try:
        for batch in parquet.ParquetFile(path).iter_batches(CHUNK):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise Refusal(f"{path}: not a Parquet file ({error})") from None


def _read_hub(name: str, data: Data) -> Iterator[dict]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    # From the files of this commit: by name, load_dataset may find another commit in its cache if the hub is away.
    folder = hub.download("dataset", name, data.revision)
    try:
        yield from load_dataset(str(folder), split=data.split)
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Of a file that cannot be parsed, the cause says more than "An error occurred while generating the dataset".
        reason = str(error.__cause__ or error).splitlines()[0]
        raise Refusal(f"data.source: {name}: {reason}") from None
