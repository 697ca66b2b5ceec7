"""CSV files as spreadsheets write them."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qlora.runtime.console import Refusal

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD = 1 << 16  # characters that tell the delimiter
RECORDS = 20  # of them, at most
LISTED = 10  # column names in a sentence
LARGEST = 1 << 27  # characters of a value


def delimiter_of(path: Path, codec: str, known: set[str]) -> str:
    """The delimiter: the one that Excel's `sep=` line names, else the one that splits the header into columns.

    Where several do, the one that yields names in `known` and as many values in each record as in the header.

    Raises:
        Refusal: if several do so equally well.
    """
    csv.field_size_limit(LARGEST)
    try:
        with path.open(encoding=codec, newline="") as file:
            head = file.read(HEAD)
    except (UnicodeError, LookupError) as error:
        raise not_decoded(path, error, codec) from None
    if head.startswith("sep=") and head[4:5] in DELIMITERS:
        return head[4]
    merits = {}
    for delimiter in DELIMITERS:
        # The last record may be cut.
        records = [record for record in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if record]
        records = records[:RECORDS] if len(records) > RECORDS or len(head) < HEAD else records[:-1] or records
        if records and len(records[0]) > 1:
            names = {name.strip().lower() for name in records[0]}
            even = all(len(record) == len(records[0]) for record in records)
            merits[delimiter] = (len(names & known), even)
    best = [delimiter for delimiter, merit in merits.items() if merit == max(merits.values())]
    if len(best) > 1:
        kinds = " or ".join(DELIMITERS[delimiter] for delimiter in best)
        raise Refusal(f"{path}: its columns may be separated by {kinds}; put quotes around names that hold the other")
    return best[0] if best else ","


def read(path: Path, codec: str, delimiter: str) -> Iterator[tuple[int, dict]]:
    """Yield (line, row). Every value is text, or None where a row is short; its line breaks become plain ones.

    The rules are RFC 4180's; `strict` refuses what the reader would repair in silence, as text behind a closing quote.

    Raises:
        Refusal: if a row has more values than the header, or the file is not CSV.
    """
    header, line = None, 1  # where the row begins: a value may hold line breaks
    try:
        with path.open(encoding=codec, newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            for values in reader:
                number, line = line, reader.line_num + 1
                if not values or (number == 1 and values[0] == "sep=" and header is None):
                    continue  # a blank line, or Excel's name of the delimiter
                if header is None:
                    header = [name.strip() for name in values]
                    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                        raise Refusal(f"{path}: its header names {listed(twice)} twice; give each column its own name")
                    continue
                if not any(values):  # a spreadsheet's empty row
                    continue
                if len(values) > len(header):
                    raise Refusal(
                        f"{path}, line {number}: has {len(values)} values and the header {len(header)}: put quotes "
                        f"around values that hold {DELIMITERS[delimiter]}"
                    )
                values = [value.replace("\r\n", "\n") for value in values]  # the file's line ends, not the text's
                yield number, dict.fromkeys(header) | dict(zip(header, values, strict=False))
    except (UnicodeError, LookupError) as error:
        raise not_decoded(path, error, codec) from None
    except csv.Error as error:
        raise Refusal(f"{path}, line {line}: not CSV ({error})") from None


def not_decoded(path: Path, error: UnicodeError | LookupError, codec: str) -> Refusal:
    name = "UTF-8" if codec.startswith("utf-8") else codec
    if isinstance(error, UnicodeDecodeError):
        return Refusal(f"{path}: not {name} ({error.reason} at byte {error.start}); save it as UTF-8")
    return Refusal(f"{path}: not {name} ({error}); save it as UTF-8")


def listed(names: list[str]) -> str:
    """At most LISTED names, each shortened: a file of another kind may have a thousand, or one of a megabyte."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(repr(str(name)[:40]) for name in names[:LISTED]) + more
