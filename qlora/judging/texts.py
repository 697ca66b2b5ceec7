"""The texts that are compared: a row's gold answer and an artifact's answer."""

import re
import unicodedata
from collections.abc import Mapping

REASONING = re.compile(r"^.*?</think>", re.DOTALL)  # the template may have opened it in the prompt
FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"


def gold(row: Mapping) -> str:
    """The text of a row's last message, without reasoning."""
    return without_reasoning(row["messages"][-1]["content"])


def without_reasoning(text: str) -> str:
    """`text` behind its `<think>` block, stripped; nothing is left of an answer that never ended its reasoning."""
    text = REASONING.sub("", text)
    return text.partition("<think>")[0].strip()


def normalised(text: str) -> str:
    """`text` in the form in which answers are compared: NFKC, case folded, each run of white space one space, without
    quotes around it and a full stop at its end."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(QUOTES).removesuffix(".").strip(QUOTES + " ")


def unfenced(text: str) -> str:
    """The first block between ``` marks; the text itself if there is none."""
    found = FENCED.search(text)
    return (found[1] if found else text).strip()
