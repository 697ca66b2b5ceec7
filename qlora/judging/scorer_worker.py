"""The process in which a scorer file runs: python -m qlora.judging.scorer_worker FILE DESCRIPTOR

Reads requests from standard input and writes its results to the descriptor, one JSON object a line each.
"""

import importlib.util
import inspect
import json
import math
import os
import signal
import sys
from pathlib import Path

from qlora.runtime.machine import end_with_parent

REASON = 300  # characters of a reason that are kept


def work(path: Path, results: int) -> None:
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the file reads is not a request
    write = os.fdopen(results, "w")
    try:
        score = load(path)
    except BaseException as error:
        send(write, error=in_words(error))
        return
    send(write, ready=True)
    for line in requests:
        request = json.loads(line)
        try:
            value, reason = checked(score(request["row"], request["answer"]))
        except BaseException as error:  # SystemExit, too
            value, reason = None, in_words(error)
        send(write, value=value, reason=reason and reason[:REASON])


def load(path: Path):
    """The file's function `score`. Raises whatever keeps it from being used."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    inspect.signature(module.score).bind({}, "")
    return module.score


def checked(result: object) -> tuple[float, str | None]:
    """The number and the reason in what `score` returned. Raises ValueError if there is no finite number."""
    value, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if value is None or isinstance(value, str | bytes):
        raise ValueError(f"score returned {value!r}, which is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"score returned {number}")
    return number, None if reason is None else str(reason)


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def send(write, **content) -> None:
    write.write(json.dumps(content) + "\n")
    write.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    end_with_parent(signal.SIGKILL)
    work(Path(sys.argv[1]), int(sys.argv[2]))
