"""How the rows of a source hold conversations: found from their columns and first rows, never guessed in silence.

The formats are those that other training tools read: lists of messages (OpenAI's `messages`, ShareGPT's
`conversations`), a prompt and its completion (with Alpaca's `input` between them), and one flattened text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qlora.raw_rows.csv_file import listed
from qlora.raw_rows.values import is_absent, parsed
from qlora.recipe.schema import Rows
from qlora.runtime.console import Refusal

# The names, in lower case, under which rows have what a format needs.
NAMES = {
    "messages": ("messages", "conversations", "conversation", "contents", "dialogue", "dialog", "turns"),
    "prompt": ("prompt", "instruction", "question", "query", "problem", "user", "human"),
    "completion": ("completion", "response", "answer", "output", "solution", "reply", "assistant"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
    "text": ("text",),
}
DOCUMENT_NAMES = {"text": ("text", "content", "document", "body", "article", "passage")}
SQL_NAMES = {
    "question": ("question", "sql_prompt", "utterance", "prompt", "instruction"),
    "context": ("context", "sql_context", "schema", "ddl", "input"),
    "answer": ("answer", "sql", "query", "response", "output", "completion"),
}
KNOWN = {name for names in (*NAMES.values(), *SQL_NAMES.values(), *DOCUMENT_NAMES.values()) for name in names}
CHAT_MARKS = ("[INST]", "### Human:")  # of conversations that were flattened into one text


@dataclass(frozen=True)
class Layout:
    """How the rows of a source hold conversations.

    Attributes:
        format: One of the names in data.format, or text-to-sql, or documents.
        columns: The column for each part of the format.
        unread: The source's other columns.
        group: The column of data.columns.group, if any.
        others: How rows are read that have none of its columns, where a source mixes several formats.
    """

    format: str
    columns: dict[str, str]
    unread: Sequence[str] = ()
    group: str | None = None
    others: Sequence["Layout"] = ()

    def __str__(self) -> str:
        """The format, and for each part its column if it is named otherwise."""
        parts = [part if part == name else f"{part} from {name!r}" for part, name in self.columns.items()]
        return " and ".join([f"{self.format} ({', '.join(parts)})", *map(str, self.others)])

    def names(self, part: str) -> list[str]:
        """The columns of a part, of this layout and the others."""
        layouts = [self, *self.others]
        return list(dict.fromkeys(layout.columns[part] for layout in layouts if part in layout.columns))

    def is_in(self, row: dict) -> bool:
        """Whether the row has the first column."""
        return not is_absent(row.get(next(iter(self.columns.values()))))

    def of_row(self, row: dict) -> "Layout":
        """The first layout among this one and the others that is in the row."""
        return next((layout for layout in (self, *self.others) if layout.is_in(row)), self) if self.others else self


@dataclass
class _Source:
    name: str
    settings: Rows
    task: str
    rows: Sequence[dict]
    columns: list[str] = field(init=False)

    def __post_init__(self):
        self.columns = list(dict.fromkeys(column for row in self.rows for column in row))
        parts = {"group", *{"text-to-sql": SQL_NAMES, "chat": NAMES, "text": DOCUMENT_NAMES}[self.task]}
        wanted = [column for part, column in self.settings.columns if column and part in parts]
        if missing := [column for column in wanted if column not in self.columns]:
            raise self.lacks(missing)

    def lacks(self, missing: list[str]) -> Refusal:
        return Refusal(
            f"{self.name}: has no column {listed(missing)}; it has {listed(self.columns)}: set data.columns to the "
            "names that the file uses"
        )

    def options(self, part: str, names: dict[str, tuple[str, ...]]) -> list[str]:
        """The columns that may hold `part`: the one of data.columns, else all that have one of its usual names."""
        if column := getattr(self.settings.columns, part):
            return [column]
        return [column for column in self.columns if str(column).strip().lower() in names[part]]

    def first(self, column: str) -> object:
        """The first value of a column that is there."""
        return next((row[column] for row in self.rows if not is_absent(row.get(column))), None)


def detect(name: str, settings: Rows, task: str, rows: Sequence[dict]) -> list[Layout]:
    """The layouts that the source's first rows may have, the most explicit one first.

    Raises:
        Refusal: if there is none, with the columns that the rows have.
    """
    source = _Source(name, settings, task, rows)
    found = list({"text-to-sql": _sql, "chat": _chat, "text": _documents}[task](source))
    return [
        Layout(
            layout.format,
            layout.columns,
            [c for c in source.columns if c not in layout.columns.values() and c != settings.columns.group],
            settings.columns.group,
        )
        for layout in found
    ]


def _sql(source: _Source) -> Iterator[Layout]:
    columns = {}
    for part in SQL_NAMES:
        options = source.options(part, SQL_NAMES)
        if part not in options and len(options) > 1:
            raise Refusal(
                f"{source.name}: its {part} may be {listed(options)}; set data.columns.{part} to one of these columns"
            )
        if options:
            columns[part] = part if part in options else options[0]
    if missing := [part for part in SQL_NAMES if part not in columns]:
        raise source.lacks(missing)
    yield Layout("text-to-sql", columns)


def _documents(source: _Source) -> Iterator[Layout]:
    columns = source.options("text", DOCUMENT_NAMES)
    if len(columns) != 1:
        raise Refusal(
            f"{source.name}: its documents may be in {listed(columns)}; set data.columns.text to one of these columns"
            if columns
            else f"{source.name}: has no column of documents; it has {listed(source.columns)}: set data.columns.text"
        )
    yield Layout("documents", {"text": columns[0]})


def _chat(source: _Source) -> Iterator[Layout]:
    wanted, named = source.settings.format, source.settings.columns
    found = list(_messages(source)) + list(_pairs(source)) + list(_texts(source))
    if named.messages:
        found = [layout for layout in found if "messages" in layout.columns]
    elif named.text:
        found = [layout for layout in found if "text" in layout.columns]
    elif named.prompt or named.completion or named.input or named.history:
        found = [layout for layout in found if "prompt" in layout.columns]
    if wanted in ("messages", "sharegpt"):  # both are lists of messages, whatever their keys are called
        found = [layout for layout in found if "messages" in layout.columns]
    elif wanted == "alpaca":
        found = [layout for layout in found if layout.format == wanted or "prompt" in layout.columns]
    elif wanted == "prompt-completion":
        found = [_without_input(layout) for layout in found if "prompt" in layout.columns]
    elif wanted == "text":
        found = [layout for layout in found if layout.format == wanted]
    if not found:
        raise Refusal(f"{source.name}: {_why_none(source)}")
    yield from found


def _messages(source: _Source) -> Iterator[Layout]:
    optional = _optional(source, "system", "tools")
    for column in source.options("messages", NAMES):
        value = parsed(source.first(column))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            kind = "sharegpt" if "from" in value[0] else "messages"
            yield Layout(kind, {"messages": column} | optional)
        elif source.settings.columns.messages or source.settings.format in ("messages", "sharegpt"):
            yield Layout("messages", {"messages": column} | optional)  # each row's reason says what is there


def _pairs(source: _Source) -> Iterator[Layout]:
    prompts, inputs = source.options("prompt", NAMES), source.options("input", NAMES)
    if not prompts:  # input and output alone
        prompts, inputs = [column for column in inputs if column.strip().lower() == "input"], []
    for prompt in prompts:
        for completion in source.options("completion", NAMES):
            for between in inputs or [None]:
                columns = {"prompt": prompt} | ({"input": between} if between else {}) | {"completion": completion}
                columns |= _optional(source, "system", "history", "tools")
                if len(set(columns.values())) == len(columns):
                    alpaca = between or prompt.strip().lower() == "instruction"
                    yield Layout("alpaca" if alpaca else "prompt-completion", columns)


def _texts(source: _Source) -> Iterator[Layout]:
    explicit = source.settings.columns.text or source.settings.format == "text"
    for column in source.options("text", NAMES):
        if explicit or any(mark in str(source.first(column)) for mark in CHAT_MARKS):
            yield Layout("text", {"text": column})


def _optional(source: _Source, *parts: str) -> dict[str, str]:
    return {part: options[0] for part in parts if len(options := source.options(part, NAMES)) == 1}


def _without_input(layout: Layout) -> Layout:
    return Layout("prompt-completion", {part: name for part, name in layout.columns.items() if part != "input"})


def _why_none(source: _Source) -> str:
    has = f"it has {listed(source.columns)}"
    if {"chosen", "rejected"} <= set(source.columns):
        part = "messages" if isinstance(parsed(source.first("chosen")), list) else "completion"
        return f"holds preference pairs; one answer a row is learned: set data.columns.{part} to chosen"
    if source.options("text", NAMES):
        return (
            "its text has no turns ([INST] or ### Human:), so there is no answer to learn: set data.task to text to "
            f"learn whole documents; {has}"
        )
    return (
        "no format is known by these columns (messages, conversations, instruction and output, prompt and completion, "
        f"text); {has}: set data.columns"
    )
