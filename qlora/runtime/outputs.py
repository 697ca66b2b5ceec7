"""Outputs that appear whole or not at all: written beside their place, then renamed. Full disks in one sentence."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.runtime.folders import is_full


def check_disk(what: str, needed: float, folder: Path) -> None:
    """Raise Refusal unless the disk of `folder` has `needed` bytes free for `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refusal(
            f"{what} needs {needed / 1e9:.1f} GB under {folder}, and {free / 1e9:.1f} GB are free; make room "
            "(`make gc` frees what no branch, tag or experiment needs)"
        )


def check_writable(*folders: Path) -> None:
    """Make the folders, and a file in each that is gone at once: a run must not find out at its end that it cannot.

    Raises:
        Refusal: if something else than a folder is there.
        OSError: if this user cannot write there (`folders.explained`).
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refusal(
                f"{folder.absolute()} is to be a folder, and a file or a broken link is in its place: move that away"
            ) from None
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raise Refusal if the block fails because the disk of `folder` is full.

    Libraries fail in many ways on a full disk and few name the reason, so this looks at the free space itself.

    Raises:
        Refusal: if the disk is full.
    """
    try:
        yield
    except Exception as error:
        named = os.strerror(errno.ENOSPC) in str(error)  # by safetensors, which has removed its file by now
        if named or is_full(folder):
            raise Refusal(f"the disk is full (while writing {folder}): free some space and run again") from None
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; rename it to `path` if the block succeeds, else remove it.

    Removes first what a killed run left half written.
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
