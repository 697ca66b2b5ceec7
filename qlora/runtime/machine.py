"""This machine: its CPUs, memory and GPUs, this user's cache, and child processes that end with this process."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def cpu_count() -> int:
    """CPUs that this process may use; a container or a scheduler may grant only some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of RAM that this process may still take, within its container's limit."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        available = int(found[1]) * 1024
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            available = min(available, int(text))
    return available


def cache_folder(name: str) -> Path:
    """The folder `name` in this user's cache of the project, outside every repository; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-pipeline" / name


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as the driver sees it; `free` and `used` in bytes."""

    uuid: str
    free: int
    used: int


def gpus() -> list[Gpu]:
    """All GPUs that NVIDIA's driver lists, whatever CUDA_VISIBLE_DEVICES says; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    return [Gpu(uuid, part.free, part.used) for uuid, part in zip(uuids, memory, strict=True)]


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None


def end_with_parent(ending: signal.Signals) -> None:
    """Let Linux send `ending` to this process when its parent dies, so that it does not go on unseen."""
    if sys.platform == "linux":
        LIBC.prctl(SET_PARENT_DEATH_SIGNAL, ending)


def start(command: list[str], environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start `command` as a child that ends with this process, even if this process is killed (Linux).

    Args:
        command: Program and arguments.
        environment: Of the child; by default this process's own.
        options: Further arguments of subprocess.Popen.
    """
    options["env"] = environment or os.environ
    return subprocess.Popen(command, preexec_fn=lambda: end_with_parent(signal.SIGKILL), **options)
