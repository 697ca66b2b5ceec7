"""Outputs that appear whole or not at all: written beside their place, then renamed into it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora.runtime.console import Refusal

FULL = 1 << 20  # bytes: less is no room for anything that is written here


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Say that the disk of `folder` is full if that is why the block fails.

    Libraries and tools each fail in their own way when a disk is full, and few name the reason; so the disk is asked.

    Raises:
        Refusal: if the disk is full.
    """
    try:
        yield
    except Exception as error:
        said = os.strerror(errno.ENOSPC) in str(error)  # safetensors', whose file is gone again by now
        if said or shutil.disk_usage(folder).free < FULL:
            raise Refusal(f"the disk is full (while writing {folder}): free some space and run again") from None
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends well and vanishes when it does not.

    What a killed run left half written is removed first.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with room_in(partial):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step; a reader sees the old file or the new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with room_in(path.parent), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a loss of power could leave the new name without the content
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON that a person can read and Git can diff."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
