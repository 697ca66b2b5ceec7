"""Why a row cannot be used."""

EXAMPLE = 80  # characters of a row that are shown


class Rejected(ValueError):
    """A row that cannot be used.

    The message is the reason that rejected.jsonl gives: a kind of fault, the same for each row that has it. What is
    this row's own goes into `example`.
    """

    def __init__(self, reason: str, example: str = ""):
        super().__init__(reason)
        self.example = example[:EXAMPLE]


def valid_text(text: str) -> str:
    """Return `text`.

    Raises:
        Rejected: if it holds an unpaired surrogate, which JSON's escapes can express and UTF-8 cannot, or a NUL, which
            ends a text for programs in C, such as llama.cpp and SQLite.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("a character is cut in half (an unpaired surrogate)") from None
    if "\0" in text:
        raise Rejected("a NUL character", text)
    return text
