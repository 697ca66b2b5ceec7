"""Files of people's rows, and the conversations that are read from them; the current folder has data/raw."""

import json

from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.rejected import Rejected
from qlora.raw_rows.sources import open_source
from qlora.recipe.schema import Data


def pair(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def chat(name: str, **settings) -> Data:
    return Data(source=f"data/raw/{name}", dialect="sqlite", task="chat", **settings)


def opened(data: Data):
    return open_source(data, data)


def conversations(data: Data) -> list[list[dict] | str]:
    """The conversation of each row, or the reason why there is none."""
    source, found = opened(data), []
    for _, row in source.rows:
        try:
            found.append(conversation(row, source.layout, data))
        except Rejected as reason:
            found.append(str(reason))
    return found


def lines(rows: list[dict], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
