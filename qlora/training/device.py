"""The devices of a training run: their free memory and their speed."""

import time
from dataclasses import dataclass, replace

from qlora.processes import group, launch
from qlora.recipe.schema import Train
from qlora.runtime.machine import available_memory

import torch


@dataclass(frozen=True)
class Device:
    """One device, or several equal ones that share the rows of each step.

    Attributes:
        name: For people.
        is_gpu: Whether it is a GPU.
        free: Bytes on each that the run may use, for the model and all else.
        rate: Floating point operations a second of each on large bf16 matrix products.
        count: Number of devices.
        sharded: Whether they share the model as well (FSDP).
    """

    name: str
    is_gpu: bool
    free: int
    rate: float
    count: int = 1
    sharded: bool = False


def gpu() -> Device:
    """The GPU that torch uses, with its present free memory."""
    return Device(torch.cuda.get_device_name(), True, torch.cuda.mem_get_info()[0], matrix_rate(torch.device("cuda")))


def cpu() -> Device:
    """The CPU, with torch's number of threads."""
    name = f"CPU, {torch.get_num_threads()} threads"
    return Device(name, False, available_memory(), matrix_rate(torch.device("cpu")))


def matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of `device` on a large bf16 matrix product.

    The best of several products, because other work on the machine can only slow a product down.
    """
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


def planned_devices(train: Train) -> Device:
    """The devices that training would use, known before any process starts. Machines are assumed to be equal.

    Raises:
        Refusal: if this machine does not have them (`launch.wanted`, `launch.machines`).
    """
    count = launch.wanted(train) * launch.machines()
    one = gpu() if torch.cuda.is_available() else cpu()
    if count == 1:
        return one
    free = one.free if one.is_gpu else one.free // count
    return replace(one, name=f"{count} x {one.name}", free=free, count=count, sharded=train.parallel == "fsdp")


def devices_of_run(train: Train) -> Device:
    """The devices of all processes, with the least memory and rate of any. Every process must call this."""
    state = group.state()  # each process takes its own GPU
    here = gpu() if torch.cuda.is_available() else cpu()
    count = state.num_processes
    if count == 1:
        return here
    free = here.free if here.is_gpu else here.free // count
    free, rate = (min(values) for values in zip(*group.gathered((free, here.rate)), strict=True))
    free = int(min(free, launch.memory_limit()))
    return Device(f"{count} x {here.name}", here.is_gpu, free, rate, count, train.parallel == "fsdp")
