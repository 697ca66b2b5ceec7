"""Documents of raw text (data.task: text): each is learned with its end, in pieces of train.max_length tokens."""

import re
from bisect import bisect_left
from collections.abc import Iterator

from qlora.rows.chat import Chat, Messages

SPACE = re.compile(r"\s+")


def pieces(chat: Chat, messages: Messages, limit: int) -> Iterator[Messages]:
    """The document in pieces of at most `limit` tokens, the BOS and the document's end included; together they are its
    text. A piece ends before white space where its second half has any. All but the last one "continue": no end of the
    document is behind them.
    """
    (document,) = messages
    text = document["content"]
    begins = [begin for begin, _ in chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets]
    start, room = 0, limit - len(chat.ids(chat.render([document | {"content": ""}])))
    while start < len(text):
        at = bisect_left(begins, start) + room
        end = begins[at] if at < len(begins) else len(text)
        while True:
            end = max(start + 1, end if end == len(text) else _before_space(text, start, end))
            piece = document | {"content": text[start:end]} | ({"continues": True} if end < len(text) else {})
            if end == start + 1 or len(chat.ids(chat.render([piece]))) <= limit:
                break
            end -= max(1, (end - start) // 8)  # a text may have more tokens alone than inside of a longer one
        yield [piece]
        start = end


def _before_space(text: str, start: int, end: int) -> int:
    """Where the last white space in the second half of text[start:end] begins, or else `end`."""
    spaces = [space.start() for space in SPACE.finditer(text, (start + end) // 2, end)]
    return spaces[-1] if spaces else end
