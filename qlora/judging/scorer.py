"""evaluate.scorer: a metric of one's own, in a process of its own that may fail on a row without ending the run."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qlora.judging import scorer_worker
from qlora.runtime.console import Refusal

from tqdm import tqdm

ROW_SECONDS = 10.0  # for one row
START_SECONDS = 120.0  # for the imports of the file
MOST_HANGS = 10  # rows in a row without an answer, before all of it is called off


def scorer(rows: Sequence[dict], answers: Sequence[str], path: Path) -> list[dict]:
    """One record a row: what the file's `score(row, answer)` returns, and its reason if it gives one.

    A row on which it raises, ends its process, takes longer than ROW_SECONDS, or returns no number counts as 0 and has
    the outcome "failed" with the reason. What it prints goes to this program's standard error.

    Raises:
        Refusal: if the file cannot be imported, or hangs on MOST_HANGS rows one after the other.
    """
    records, worker, hangs = [], None, 0
    try:
        for row, answer in tqdm(zip(rows, answers, strict=True), total=len(rows), desc=str(path), unit=" rows"):
            worker = worker or _Worker(path)
            value, reason = worker.ask({"row": row, "answer": answer})
            if value is None and worker.ended:
                hangs = hangs + 1 if worker.hung else 0
                worker = None
            else:
                hangs = 0
            if hangs == MOST_HANGS:
                raise Refusal(
                    f"{path} took longer than {ROW_SECONDS:.0f} s on each of {hangs} rows: {row['id']} and before"
                )
            failed = {"outcome": "failed"} if value is None else {}
            records.append({"scorer": value or 0.0} | failed | ({"reason": reason} if reason else {}))
    finally:
        if worker:
            worker.end()
    return records


class _Worker:
    """A process that has imported the file and answers one request at a time."""

    def __init__(self, path: Path):
        self.path, self.ended, self.hung = path, False, False
        self.results, child_end = os.pipe()
        command = [sys.executable, "-m", scorer_worker.__name__, str(path), str(child_end)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), pass_fds=[child_end], start_new_session=True
        )
        os.close(child_end)
        started = self._line(START_SECONDS)
        if started is None or "error" in started:
            reason = started["error"] if started else f"it {self._end_in_words(START_SECONDS)}"
            self.end()
            raise Refusal(f"{path} cannot be used: {reason}")

    def ask(self, request: dict) -> tuple[float | None, str | None]:
        """The score and its reason; no score if it failed."""
        with suppress(BrokenPipeError):  # it has ended: no line comes
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        line = self._line(ROW_SECONDS)
        if line is None:
            reason = self._end_in_words(ROW_SECONDS)
            self.end()
            return None, reason
        return line["value"], line["reason"]

    def _line(self, seconds: float) -> dict | None:
        """The next line that the process writes; None if it ends, or does not write one in time."""
        read = b""
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([self.results], [], [], seconds)
            part = os.read(self.results, 65536) if ready else b""
            if not part:
                self.ended, self.hung = True, not ready
                return None
            read += part
        return json.loads(read)

    def _end_in_words(self, seconds: float) -> str:
        if self.hung:
            return f"took longer than {seconds:.0f} s"
        status = self.process.wait()
        return f"ended its process ({signal.Signals(-status).name if status < 0 else f'status {status}'})"

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        os.close(self.results)
