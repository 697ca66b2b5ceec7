"""Run a command and measure it and its child processes: seconds, RAM, GPU memory and disk."""

import os
import resource
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from qlora.runtime.machine import gpus

import psutil

REPO = Path(__file__).parents[2]


@dataclass
class Usage:
    """What a command used.

    Attributes:
        seconds: From its start to its end.
        cpu: CPU seconds, which other work on the machine does not change.
        ram: Peak of the allocated memory, in bytes.
        mapped: Peak of the resident pages of files, in bytes; the system reclaims these when memory is short.
        gpu: Peak of the first GPU's used memory above its value at the start, in bytes.
        disk: The same for the disk of the working folder.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    ram: int = 0
    mapped: int = 0
    gpu: int = 0
    disk: int = 0


def run(command: list, folder: Path, log: Path) -> tuple[int, Usage]:
    """Run `command` in `folder` and append its output to `log`; return its exit status and its usage.

    PYTHONPATH holds this repository, so that `python -m stages.NAME` works in any folder.
    """
    usage, ended = Usage(), threading.Event()
    path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
    free, gpu = shutil.disk_usage(folder).free, _gpu_used()
    with log.open("a") as file:
        begin, cpu = time.monotonic(), _cpu_of_ended()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=file, stderr=subprocess.STDOUT
        )
        watchers = [
            threading.Thread(target=_watch, args=(usage, ended, psutil.Process(process.pid), folder, free)),
            threading.Thread(target=_watch_gpu, args=(usage, ended, gpu)),
        ]
        for watcher in watchers:
            watcher.start()
        try:
            status = process.wait()
        finally:
            process.kill()
            ended.set()
        usage.seconds, usage.cpu = time.monotonic() - begin, _cpu_of_ended() - cpu
        for watcher in watchers:
            watcher.join()
    return status, usage


def _cpu_of_ended() -> float:
    """CPU seconds of all child processes that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _watch(usage: Usage, ended: threading.Event, process: psutil.Process, folder: Path, free: int) -> None:
    while not ended.wait(0.1):
        try:
            processes = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        pages = [_pages(each.pid) for each in processes]
        usage.ram = max(usage.ram, sum(own for own, _ in pages))
        usage.mapped = max(usage.mapped, sum(mapped for _, mapped in pages))
        usage.disk = max(usage.disk, free - shutil.disk_usage(folder).free)


def _pages(pid: int) -> tuple[int, int]:
    """Resident bytes of one process: allocated ones, and those of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0, 0
    fields = (line.partition(":") for line in lines)
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in fields if name.startswith("Rss")}
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("RssFile", 0)


def _watch_gpu(usage: Usage, ended: threading.Event, before: int) -> None:
    while not ended.wait(0.5):
        usage.gpu = max(usage.gpu, _gpu_used() - before)


def _gpu_used() -> int:
    """Used bytes of the first GPU; 0 without one."""
    return sum(gpu.used for gpu in gpus()[:1])
