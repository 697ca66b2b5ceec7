"""What an earlier stage wrote, as a later one reads it: what is missing or damaged names the stage that makes it."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from qlora.runtime.console import Refusal

# Whatever a reader raises.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, EOFError, struct.error, BadZipFile)


@contextmanager
def made_by(stage: str, path: Path) -> Iterator[None]:
    """Raise Refusal if the block cannot read `path`, which `stage` writes: it is missing, or holds something else."""
    try:
        yield
    except FileNotFoundError:
        raise Refusal(missing(path, stage)) from None
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0][:100]
        raise Refusal(f"{path} is damaged ({type(error).__name__}: {reason}): {repair(path, stage)}") from None


def missing(path: Path, stage: str) -> str:
    return f"{path} is missing; run `dvc repro {stage}`, which makes it"


def repair(path: Path, stage: str) -> str:
    """How to get `path` back, which `stage` writes, as advice.

    Without --force DVC would take what is there for the stage's new output, if its cache has the same damage: the cache
    holds the same file (a hard link).
    """
    return (
        f"`dvc checkout --force {path}` takes it from DVC's cache, and if it is damaged there, too, "
        f"`dvc repro --force --single-item {stage}` makes it again"
    )


def read_json(path: Path, stage: str) -> dict:
    """The JSON object in `path`, which `stage` writes. Raises Refusal if there is none."""
    with made_by(stage, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__} instead of an object")
        return content
