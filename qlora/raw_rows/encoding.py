"""The encoding of a text file: UTF-8, UTF-16, or what spreadsheets in Western Europe and America write."""

import codecs
import re
from pathlib import Path

from qlora.runtime.console import Refusal

BLOCK = 1 << 20  # bytes
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WESTERN = "cp1252"
# Letters of Western European languages. Others of cp1252, and signs inside of words, tell of another encoding.
LETTERS = set("ÄÖÜßÉÈÊËÀÂÁÃÅÆÇÑÍÌÎÏÓÒÔÕØŒÚÙÛ") | set("äöüéèêëàâáãåæçñíìîïóòôõøœúùûÿ")
ALLOWED = "\u2018\u2019\xb4\xb7\u2013\u2014\xad"  # quotes, dots and dashes, which may stand between two letters
SIGNS = {sign for sign in bytes(range(128, 256)).decode(WESTERN, "ignore") if not sign.isalpha()} - set(ALLOWED)
SIGN_IN_WORD = re.compile(rf"[^\W\d_][{''.join(sorted(SIGNS))}][^\W\d_]|[^\W\d_][\xb9\xb2\xb3]\W")
ACCENTED = 0.4  # of the letters in lines with any, at most
IN_A_ROW = 3  # accented letters, at most


def encoding_of(path: Path, wanted: str = "auto") -> str:
    """The name of the codec for `path`: `wanted` (data.encoding), else by its first bytes, else by all of them.

    Raises:
        Refusal: if the bytes are not UTF-8 and cannot be Western European text.
    """
    if wanted != "auto":
        return "utf-8-sig" if wanted.lower().replace("_", "-") in ("utf-8", "utf8") else wanted
    with path.open("rb") as file:
        start = file.read(4)
        for mark, name in MARKS.items():
            if start.startswith(mark):
                return name
        if len(start) == 4 and start[1::2] == b"\0\0":
            return "utf-16-le"
        if len(start) == 4 and start[::2] == b"\0\0":
            return "utf-16-be"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block := file.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError as error:
            file.seek(0)
            lines = (line for line in file if not line.isascii())
            text = b"".join(line for line, _ in zip(lines, range(1000), strict=False)).decode(WESTERN, "replace")
            if _is_western(text):
                return WESTERN
            raise Refusal(
                f"{path}: not UTF-8 ({error.reason}), and not clearly any other encoding; save it as UTF-8 (in a "
                "spreadsheet: CSV UTF-8), or set data.encoding to its own, such as cp1250, cp1251 or shift_jis"
            ) from None


def _is_western(text: str) -> bool:
    if re.search(f"[{''.join(LETTERS)}]{{{IN_A_ROW + 1}}}", text):
        return False
    letters = [letter for letter in text if letter.isalpha()]
    accented = [letter for letter in letters if not letter.isascii() and letter not in "ºª"]
    return (
        "\ufffd" not in text
        and set(accented) <= LETTERS
        and len(accented) <= ACCENTED * len(letters)
        and not SIGN_IN_WORD.search(text)
    )
