"""What must never be uploaded: files that hold keys by their name, and texts in which a key stands."""

import re
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20  # bytes of a text that are searched at once
LONGEST = 4096  # bytes of the longest key
HEADER = 1 << 26  # bytes of a file with weights that are searched: more than any header has

NAMES = re.compile(r"\.env(\..+)?|\.netrc|.*\.(pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519)|credentials(\.json)?", re.I)
PATTERNS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a Google API key": rb"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": rb"\bxox[abeprs]-[0-9A-Za-z-]{20,}",
    "a password in an address": rb"\b[a-z][a-z0-9+.-]*://[\w.%!*+~-]+:[\w.%!*+~#&=?,;-]+@[\w.-]+",
}
KEY = re.compile(b"|".join(b"(?P<k%d>%s)" % (at, pattern) for at, pattern in enumerate(PATTERNS.values())))


def of_name(path: Path) -> str | None:
    """What is wrong with a file's name, if anything."""
    return "is a file for keys by its name" if NAMES.fullmatch(path.name) else None


def of_content(content: bytes) -> str | None:
    """The first key in `content`: its kind and line."""
    found = KEY.search(content)
    if not found:
        return None
    kind, line = list(PATTERNS)[int(found.lastgroup[1:])], content[: found.start()].count(b"\n") + 1
    return f"line {line} holds what looks like {kind}"


def of_file(path: Path) -> str | None:
    """What is wrong with a file, if anything. Of weights, only the header is a text."""
    if wrong := of_name(path):
        return wrong
    most = HEADER if path.suffix in (".gguf", ".safetensors") else path.stat().st_size
    before = b""
    for block in _blocks(path, most):
        if KEY.search(before + block):
            with path.open("rb") as file:
                return of_content(file.read(most))
        before = block[-LONGEST:]
    return None


def _blocks(path: Path, most: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while most > 0 and (block := file.read(min(BLOCK, most))):
            most -= len(block)
            yield block
