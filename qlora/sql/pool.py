"""Worker processes that judge predictions, and may die without losing a row.

A worker is a fresh interpreter that imports this package and nothing of the program that asks for it (which may hold a
model and a GPU): started by `subprocess`, because multiprocessing's spawn would import that program's main module. They
talk in JSON, a line a message, over the worker's pipes.
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
from qlora.sql.sandbox import confine_process

# For all that a worker does for one prediction, or for one gold query; `sandbox.clock` stops a statement much sooner.
PREDICTION_SECONDS = 30

_ROOT = Path(__file__).resolve().parents[2]


def judge_in_workers(
    tasks: Mapping[tuple[str, str], Sequence[int]], predictions: Sequence[str], settings: Mapping, processes: int
) -> Iterator[tuple[int, Verdict]]:
    """Yield (index, verdict) for every prediction of `tasks`, (context, answer) -> indices, in the order of completion.

    `settings` are the keyword arguments of `Judge`. A prediction on which its worker ends has the error "timeout" (the
    worker's own timers ended it) or "crashed"; a gold query that does so is invalid.
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
    """Have one worker (after another) judge what is waiting, until nothing is."""
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
                # The worker is gone: it fell over the next prediction, or before it was ready over the gold query.
                error, worker = _death(worker), None
                if error == "crashed" and not retried:  # it may have been killed for another's fault
                    retried = True
                    continue
                for index in indices[:1] if ready else list(indices):
                    gold = None if ready else "invalid"
                    finished.put((index, Verdict(False, False, False, False, error, gold)))
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
    """Yield the worker's answers: None once its databases are ready, then the verdicts; fewer if it ends before."""
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
    """A worker's life: a request a line, answered by a null when its databases are ready, and by one verdict a line."""
    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what it cannot translate; SQLite will tell
    confine_process()
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(PREDICTION_SECONDS)
        judge = Judge(request["context"], request["answer"], **request["settings"])
        print("null", flush=True)
        for prediction in request["predictions"]:
            signal.alarm(PREDICTION_SECONDS)
            print(json.dumps(asdict(judge.judge(prediction))), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes our pipe
    _work()
