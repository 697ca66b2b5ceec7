"""The folders that a run writes to, and a sentence for each way in which one of them fails."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from qlora.runtime.machine import cache_folder

FULL = 1 << 20  # bytes; a disk with less free counts as full


def explained(error: OSError) -> str | None:
    """What is wrong with which folder, and what to do about it; None if the error is about something else."""
    if "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written (TMPDIR, /tmp): set TMPDIR to one that can"
    path = Path(os.fsdecode(error.filename)).absolute() if error.filename is not None else None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and path:
        way = mover(path) or "give this user access to it (`ls -ld` shows whose it is)"
        return f"{path} cannot be opened or written ({error.strerror}): {way}"
    if error.errno == errno.ENOSPC:
        where = [path] if path else [folder for folder in written() if is_full(folder)]
        named = " and ".join(map(str, where)) or "while writing"
        ways = [way for way in map(mover, where) if way]
        return f"the disk is full ({named}): free some space{', or ' + ways[0] if ways else ''} and run again"
    return None


def mover(path: Path) -> str | None:
    """The variable that moves the folder in which `path` lies, as advice; None if there is none."""
    around = {folder: variable for variable, folder in movable().items() if path.is_relative_to(folder)}
    if not around:
        return None
    nearest = max(around, key=lambda folder: len(folder.parts))
    return f"set {around[nearest]} to a folder that this user can write"


def movable() -> dict[str, Path]:
    """The folders outside the repository, by the variable that moves each."""
    hub = (
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub"
    )
    found = {"HF_HOME": Path(hub), "XDG_CACHE_HOME": cache_folder("").parent}
    return {"TMPDIR": Path(os.environ.get("TMPDIR") or "/tmp")} | found


def written() -> list[Path]:
    """The folders that a run writes to, as far as they are there, each once."""
    folders = (Path.cwd(), Path(tempfile.gettempdir()), *movable().values())
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < FULL
