"""Open a source of people's rows: a file under data/raw, or a data set on the hub."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora.raw_rows import files
from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.csv_file import listed
from qlora.raw_rows.layouts import KNOWN, Layout, detect
from qlora.raw_rows.rejected import Rejected
from qlora.recipe.schema import Data, Rows
from qlora.rows.chat import Messages
from qlora.runtime.console import Refusal
from qlora.source import hub

SAMPLE = 100  # first rows that tell the format


@dataclass(frozen=True)
class Source:
    """An open source.

    Attributes:
        name: As the recipe names it.
        kind: What the file is, for people: its format, delimiter and encoding.
        layout: How its rows hold conversations.
        rows: (number, row) of each row; the number is the line in a JSON Lines or CSV file, as editors count.
    """

    name: str
    kind: str
    layout: Layout
    rows: Iterator[tuple[int, dict]]

    def described(self) -> dict:
        """What was found, for the report."""
        layouts = [self.layout, *self.layout.others]
        parts = dict.fromkeys(part for layout in layouts for part in layout.columns)
        return {
            "kind": self.kind,
            "format": " and ".join(dict.fromkeys(layout.format for layout in layouts)),
            "columns": {part: ", ".join(self.layout.names(part)) for part in parts},
            "unread": list(self.layout.unread),
        }

    def in_short(self, rows: dict[str, int]) -> str:
        """What was found, and its rows in each split, in one line."""
        unread = f"; not read: {listed(self.layout.unread)}" if self.layout.unread else ""
        used = ", ".join(f"{count} {split}" for split, count in rows.items() if count)
        return f"{self.kind}; {self.layout}{unread}; {used or 'no row'} of it"


def open_source(settings: Rows, data: Data) -> Source:
    """Open a source, and find the format of its rows.

    Raises:
        Refusal: if the source is missing, empty or unreadable, lacks what the task needs, or can be read in two ways
            that give different conversations; of later rows, as they are read.
    """
    name = settings.source
    if settings.is_local:
        known = KNOWN | {str(column).lower() for column in settings.columns.model_dump(exclude_none=True).values()}
        kind, rows = files.read(Path(name), settings.encoding, known)
    else:
        kind, rows = "hub data set", _read_hub(settings)
    first = list(itertools.islice(rows, SAMPLE))
    if not first:
        raise Refusal(f"{name}: is empty; it must hold at least one row")
    sample = [row for _, row in first]
    layouts = detect(name, settings, data.task, sample)
    return Source(name, kind, _chosen(name, layouts, sample, data), itertools.chain(first, rows))


def _chosen(name: str, layouts: Sequence[Layout], rows: Sequence[dict], data: Data) -> Layout:
    """The first layout, and with it the others that read rows that it does not.

    Raises:
        Refusal: if a row can be read in two ways that give different conversations.
    """
    first, *others = layouts
    chosen = first
    for other in others:
        for row in rows:
            one, two = _reading(row, chosen, data), _reading(row, other, data)
            if one and two and one != two:
                raise Refusal(
                    f"{name}: its rows can be read as {chosen.of_row(row)} or as {other}, which differ: set "
                    "data.columns to the columns to learn from, or data.format"
                )
            if two and not chosen.of_row(row).is_in(row):
                unread = [column for column in chosen.unread if column in other.unread]
                chosen = replace(chosen, unread=unread, others=[*chosen.others, other])
    return chosen


def _reading(row: dict, layout: Layout, data: Data) -> Messages | None:
    try:
        return conversation(row, layout, data)
    except Rejected:
        return None


def _read_hub(settings: Rows) -> Iterator[tuple[int, dict]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    # From the files of this commit: by name, load_dataset may find another commit in its cache if the hub is away.
    folder = hub.download("dataset", settings.source, settings.revision)
    try:
        rows = load_dataset(str(folder), settings.subset, split=settings.split)
        yield from enumerate(map(files.without_nulls, rows), 1)
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Of a file that cannot be parsed, the cause says more than "An error occurred while generating the dataset".
        reason = str(error.__cause__ or error).splitlines()[0]
        raise Refusal(f"data.source: {settings.source}: {reason}") from None
