"""Run a sweep's experiments on DVC's queue, with one worker a GPU."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.runtime.machine import gpus
from tools.sweep_grid import Combination, overrides

from dvc.repo import Repo
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from dvc.repo.experiments.queue.remove import remove_tasks
from tqdm import tqdm

OUTPUT = Path("results/sweep")
STOP_SECONDS = 60  # for a stage to unwind
POLL_SECONDS = 0.5


def worker_devices(workers: int | None) -> list[str | None]:
    """For each worker the GPU that it sees; None on a CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [gpu.uuid for gpu in gpus()] if visible is None else visible.split(",")  # CUDA numbers GPUs differently
    devices = list(filter(None, devices)) or [None]
    return list(itertools.islice(itertools.cycle(devices), workers or len(devices)))


def finished() -> dict[str, str]:
    """Name -> commit of the experiments that started from HEAD."""
    with Repo() as repo:
        return {name: revision for found in repo.experiments.ls().values() for name, revision in found}


@dataclass
class Wave:
    """Experiments that run side by side."""

    queue: LocalCeleryQueue
    waiting: dict[str, object]  # revision -> the queue's entry, until it has ended
    bar: tqdm
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason
    started: dict[str, float] = field(default_factory=dict)  # revision -> when

    def collect(self) -> None:
        """Take note of experiments that have started or ended, and show it."""
        for entry in self.queue.iter_active():
            self.started.setdefault(entry.stash_rev, time.monotonic())
        for entry, result in self.queue.iter_done():
            if self.waiting.pop(entry.stash_rev, None) is None:
                continue
            minutes = (time.monotonic() - self.started.get(entry.stash_rev, time.monotonic())) / 60
            if result is None:
                self.fail(entry, failure(self.queue, entry.stash_rev))
            else:
                tqdm.write(f"{entry.name} done in {minutes:.1f} minutes; {len(self.waiting)} left of these")
                self.bar.update()
        running = [entry for entry in self.waiting.values() if entry.stash_rev in self.started]
        stages = (f"{entry.name}: {running_stage(self.queue, entry.stash_rev)}" for entry in running)
        self.bar.set_postfix_str("; ".join(stages))

    def collect_killed(self) -> None:
        """Give up the experiments whose workers have ended without them."""
        for entry in self.queue.iter_active():
            if self.waiting.pop(entry.stash_rev, None):
                self.fail(entry, f"its worker was killed; {failure(self.queue, entry.stash_rev)}")

    def fail(self, entry, reason: str) -> None:
        self.failed[entry.name] = reason
        tqdm.write(f"{entry.name} failed: {reason}; {len(self.waiting)} left of these")
        self.bar.update()


def run_wave(experiments: dict[str, Combination], devices: list[str | None], lock: int, bar: tqdm) -> dict[str, str]:
    """Queue these experiments and run them. An interrupt leaves neither workers nor queued experiments behind.

    Args:
        experiments: By name.
        devices: Of the workers.
        lock: File descriptor of the checkout's lock, which workers inherit.
        bar: Shows the progress.

    Returns:
        Name -> reason of those that failed.

    Raises:
        Refusal: if it was interrupted, or the workers do not work.
    """
    with Repo() as repo:
        queue = repo.experiments.celery_queue
        forget(queue, experiments.keys())
        with contextlib.redirect_stdout(io.StringIO()):
            for name, combination in experiments.items():
                repo.experiments.run(queue=True, name=name, params=overrides(combination))
        entries = {entry.stash_rev: entry for entry in queue.iter_queued() if entry.name in experiments}
        wave, workers, left = Wave(queue, entries, bar), [], len(entries)
        try:
            while wave.waiting:
                if all(worker.poll() is not None for worker in workers):  # there are none yet, or all have ended
                    stop(workers)
                    if workers:
                        wave.collect_killed()
                        if len(wave.waiting) == left:
                            raise Refusal(
                                f"DVC's queue workers end before they run anything; logs: {OUTPUT}/worker-*.log"
                            )
                    left = len(wave.waiting)
                    workers = start_workers(devices[:left], lock)
                time.sleep(POLL_SECONDS)
                wave.collect()
        except KeyboardInterrupt:
            raise Refusal("stopped; the same command resumes with what is left") from None
        finally:
            stop(workers)
            if wave.waiting:
                forget(queue, experiments.keys())
    return wave.failed


def forget(queue: LocalCeleryQueue, names: Collection[str]) -> None:
    """Remove these experiments from the queue: waiting, done, and those that a killed worker left as running."""
    for task, entry in queue._iter_active_tasks():
        if entry.name in names:
            queue.celery.backend.mark_as_failure(task.id, None)
            info = Path(queue.get_infofile_path(entry.stash_rev))
            if info.exists():
                shutil.rmtree(json.loads(info.read_text())["root_dir"], ignore_errors=True)
    known = [*queue.iter_queued(), *(done.entry for done in queue.iter_done())]
    remove_tasks(queue, [entry for entry in known if entry.name in names])


def start_workers(devices: list[str | None], lock: int) -> list[subprocess.Popen]:
    """One of DVC's queue workers for each device; they end when the queue is empty."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    workers = []
    for number, device in enumerate(devices, 1):
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        with (OUTPUT / f"worker-{number}.log").open("w") as log:
            worker = subprocess.Popen(
                ["dvc", "exp", "queue-worker", f"sweep-{os.getpid()}-{number}@localhost"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops the workers
                pass_fds=[lock],
            )
        workers.append(worker)
    return workers


def stop(workers: list[subprocess.Popen]) -> None:
    """End the workers and what they run, including what a killed worker has left running."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, ending)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))


def log_of(queue: LocalCeleryQueue, revision: str) -> Path | None:
    process = queue.proc.get(revision)
    return process and Path(process.stdout)


def running_stage(queue: LocalCeleryQueue, revision: str) -> str:
    log = log_of(queue, revision)
    stages = re.findall(r"Running stage '(.+)':", log.read_text(errors="replace")) if log else []
    return stages[-1] if stages else "starting"


def failure(queue: LocalCeleryQueue, revision: str) -> str:
    """The last error in an experiment's log, and where the log is."""
    log = log_of(queue, revision)
    if log is None:
        return f"it did not start; logs: {OUTPUT}/worker-*.log"
    errors = re.findall(r"^error: (.+)", log.read_text(errors="replace"), re.IGNORECASE | re.MULTILINE)
    return f"{errors[0] if errors else 'no message'}; log: {os.path.relpath(log)}"
