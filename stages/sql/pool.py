"""Worker processes that judge predictions, and may die without losing a row.

A worker is a fresh interpreter that imports this package and nothing of the program that asks for it (which may hold a
model and a GPU): started by `subprocess`, because multiprocessing's spawn would import that program's main module. They
talk in JSON, a line a message, over the worker's pipes.
"""

import json
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from stages.sql.judge import Judge, Verdict
from stages.sql.sandbox import confine_process

_ROOT = Path(__file__).resolve().parents[2]


def judge_in_workers(
    tasks: Mapping[tuple[str, str], Sequence[int]], predictions: Sequence[str], settings: Mapping, processes: int
) -> Iterator[tuple[int, Verdict]]:
    """Yield (index, verdict) for every prediction of `tasks`, (context, answer) -> indices, in the order of completion.

    `settings` are the keyword arguments of `Judge`. A prediction on which its worker ends has the error "timeout" (the
    worker's own timer ended it) or "crashed"; a gold query that does so is invalid.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for (context, answer), indices in tasks.items():
        waiting.put((context, answer, list(indices)))
    finished: queue.SimpleQueue = queue.SimpleQueue()
    threads = [Thread(target=_serve, args=(waiting, finished, predictions, settings)) for _ in range(processes)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for _ in range(sum(map(len, tasks.values()))):
        item = finished.get()
        if isinstance(item, Exception):
            raise item
        yield item


def _serve(
    waiting: queue.SimpleQueue, finished: queue.SimpleQueue, predictions: Sequence[str], settings: Mapping
) -> None:
    """Have one worker (after another) judge what is waiting, until nothing is."""
    worker = None
    try:
        while True:
            context, answer, indices = waiting.get_nowait()
            while indices:
                worker = worker or _start()
                request = {"context": context, "answer": answer, "settings": dict(settings)}
                request["predictions"] = [predictions[index] for index in indices]
                ready = False
                try:
                    worker.stdin.write(json.dumps(request) + "\n")
                    worker.stdin.flush()
                    ready = worker.stdout.readline() == "ready\n"
                    while ready and indices and (line := worker.stdout.readline()):
                        finished.put((indices.pop(0), Verdict(**json.loads(line))))
                except BrokenPipeError:
                    pass
                if indices:  # the worker is gone: it fell over the next prediction, or over the gold query itself
                    lost = Verdict(False, False, False, False, _death(worker), None if ready else "invalid")
                    for index in [indices.pop(0)] if ready else indices:
                        finished.put((index, lost))
                    indices = indices if ready else []
                    worker = None
    except queue.Empty:
        pass
    except Exception as error:  # a defect: raised where the results are read
        finished.put(error)
    finally:
        if worker:
            worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def _start() -> subprocess.Popen:
    command = [sys.executable, "-B", "-m", "stages.sql.pool"]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def _death(worker: subprocess.Popen) -> str:
    """The error class of the prediction on which `worker` ended."""
    worker.stdout.close()
    return "timeout" if worker.wait() == -signal.SIGPROF else "crashed"


def _work() -> None:
    """A worker's life: a request a line, answered by "ready" and then by one verdict a line."""
    confine_process()
    for line in sys.stdin:
        request = json.loads(line)
        judge = Judge(request["context"], request["answer"], **request["settings"])
        print("ready", flush=True)
        for prediction in request["predictions"]:
            print(json.dumps(asdict(judge.judge(prediction))), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes our pipe
    _work()
