"""Judge predictions in worker processes. A worker may die without losing a row.

A worker is a fresh interpreter that imports this package alone, as the calling program may hold a model and a GPU.
`subprocess` starts it: multiprocessing's spawn would import the main module of that program. Messages are lines of JSON
over the worker's pipes.
"""

import json
import logging
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from qlora.sql.judge import Judge, Verdict
from qlora.sql.sandbox import MEMORY_BYTES, confine_process

# Wall-clock limit for one prediction or one gold query. `sandbox.clock` ends a statement much sooner.
PREDICTION_SECONDS = 30
# DuckDB reserves far more addresses than it fills: its own limit is what counts.
EMBEDDED_BYTES = 8 * 2**30

_ROOT = Path(__file__).resolve().parents[2]


def judge_in_workers(
    tasks: Mapping[tuple[str, str], Sequence[int]], predictions: Sequence[str], settings: Mapping, processes: int
) -> Iterator[tuple[int, Verdict]]:
    """Yield (index, verdict) for every prediction, in the order of completion.

    `tasks`: (context, gold query) -> indices of its predictions. `settings`: keyword arguments of `Judge`. A prediction
    that ends its worker has the error "timeout" (a timer of the worker ended it) or "crashed". A gold query that ends
    its worker is invalid.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for (context, answer), indices in tasks.items():
        waiting.put((context, answer, list(indices)))
    finished: queue.SimpleQueue = queue.SimpleQueue()
    threads = [Thread(target=_serve, args=(waiting, finished, predictions, settings)) for _ in range(processes)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    try:
        for _ in range(sum(map(len, tasks.values()))):
            item = finished.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:  # the caller may have stopped early
        while not waiting.empty():
            waiting.get()


def _serve(
    waiting: queue.SimpleQueue, finished: queue.SimpleQueue, predictions: Sequence[str], settings: Mapping
) -> None:
    """Judge the waiting tasks with one worker, started anew whenever it dies."""
    worker, retried = None, False
    try:
        while True:
            context, answer, indices = waiting.get_nowait()
            while indices:
                worker = worker or _start()
                ready = False
                request = {"context": context, "answer": answer, "settings": dict(settings)}
                for message in _ask(worker, {**request, "predictions": [predictions[index] for index in indices]}):
                    if message is None:
                        ready = True
                    else:
                        finished.put((indices.pop(0), Verdict(**message)))
                        retried = False
                if not indices:
                    break
                # The worker died on the next prediction or, if it was not ready, on the gold query.
                error, worker = _death(worker), None
                if error == "crashed" and not retried:  # perhaps the kernel killed it to free memory
                    retried = True
                    continue
                for index in indices[:1] if ready else list(indices):
                    gold = (None, None) if ready else ("invalid", f"the gold query ends its process: {error}")
                    finished.put((index, Verdict(False, False, False, False, error, *gold)))
                    indices.remove(index)
    except queue.Empty:
        pass
    except Exception as error:  # a defect: raised where the results are read
        finished.put(error)
    finally:
        if worker:
            worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def _ask(worker: subprocess.Popen, request: dict) -> Iterator[dict | None]:
    """Yield the worker's answers: None when its databases are ready, then the verdicts. Fewer if it dies."""
    try:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return
    for _ in range(1 + len(request["predictions"])):
        line = worker.stdout.readline()
        if not line.endswith("\n"):
            return
        yield json.loads(line)


def _start() -> subprocess.Popen:
    command = [sys.executable, "-m", "qlora.sql.pool"]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def _death(worker: subprocess.Popen) -> str:
    """The error class of the prediction on which `worker` ended."""
    worker.stdout.close()
    with suppress(BrokenPipeError):  # the request may still be in its buffer
        worker.stdin.close()
    return "timeout" if worker.wait() in (-signal.SIGPROF, -signal.SIGALRM) else "crashed"


def _work() -> None:
    """Answer requests, one a line: write null when the databases are ready, then one verdict a line."""
    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what SQLite refuses later
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        if number == 0:
            confine_process(EMBEDDED_BYTES if request["settings"].get("engine") == "duckdb" else MEMORY_BYTES)
        signal.alarm(PREDICTION_SECONDS)
        judge = Judge(request["context"], request["answer"], **request["settings"])
        print("null", flush=True)
        for place, prediction in enumerate(request["predictions"], start=1):
            signal.alarm(PREDICTION_SECONDS)
            line = json.dumps(asdict(judge.judge(prediction)))
            if place == len(request["predictions"]):
                judge.engine.end_row()  # before the answer with which the run may end
            print(line, flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    _work()
