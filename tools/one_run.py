"""One run at a time in a checkout: what `make repro` and `make sweep` hold while they work."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from qlora.runtime.console import Refusal

LOCK = Path(".dvc/tmp/run.lock")


def hold(what: str) -> TextIO:
    """Lock the checkout for `what`, until this process and those that inherit the returned file have ended.

    DVC's own locks are per stage: a second run would start on the stages that the first has not reached yet.

    Raises:
        Refusal: if another run holds it; with its name and process.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = LOCK.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it, even if the process is killed
    except BlockingIOError:
        file.seek(0)
        raise Refusal(
            f"{file.read()} is running in this checkout; wait until it has ended, or work in another clone"
        ) from None
    file.truncate(0)
    file.write(f"`{what}` (process {os.getpid()})")
    file.flush()
    os.set_inheritable(file.fileno(), True)
    return file
