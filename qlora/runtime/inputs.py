"""What an earlier stage wrote, as a later one reads it: what is missing or damaged names the stage that makes it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from qlora.runtime.console import Refusal

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile)  # whatever a reader raises


@contextmanager
def made_by(stage: str, path: Path) -> Iterator[None]:
    """Raise Refusal if the block cannot read `path`, which `stage` writes: it is missing, or holds something else."""
    try:
        yield
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run `dvc repro {stage}`, which makes it") from None
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0][:100]
        raise Refusal(
            f"{path} is damaged ({type(error).__name__}: {reason}); run `dvc repro {stage}`, which makes it again"
        ) from None


def read_json(path: Path, stage: str) -> dict:
    """The JSON object in `path`, which `stage` writes. Raises Refusal if there is none."""
    with made_by(stage, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__} instead of an object")
        return content
