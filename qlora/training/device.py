"""The device that is there: how much memory is free and how fast it is."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Device:
    """What a run is fitted to: one device, or several of a kind."""

    name: str
    is_gpu: bool
    free: int  # bytes that a run may take, the model included; of each
    rate: float  # floating point operations a second on large bf16 matrix products; of each
    count: int = 1  # devices, which share the rows of a step
    sharded: bool = False  # whether they share the model, too


def gpu() -> Device:
    """The GPU that torch uses, as it is now."""
    return Device(torch.cuda.get_device_name(), True, torch.cuda.mem_get_info()[0], matrix_rate(torch.device("cuda")))


def cpu() -> Device:
    """The CPU, as torch uses it."""
    name = f"CPU, {torch.get_num_threads()} threads"
    return Device(name, False, available_memory(), matrix_rate(torch.device("cpu")))


def available_memory() -> int:
    """Bytes of RAM that this process may still take, in a container also."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        available = int(found[1]) * 1024
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            available = min(available, int(text))
    return available


def matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of `device` on a large bf16 matrix product: the best of a moment, because
    other work on the machine can only slow it down."""
    size, products = (4096, 20) if device.type == "cuda" else (1024, 20)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(products):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
