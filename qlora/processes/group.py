"""The processes of a run: their ranks, and values that they exchange. A single process is a group of one."""

from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

T = TypeVar("T")


def state(timeout: timedelta | None = None) -> PartialState:
    """This process's rank and GPU among the processes of the run.

    Args:
        timeout: How long a process waits for the others; only the first call sets it. torch's default is 10 minutes (30
            on a CPU).
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timeout)


def is_first() -> bool:
    """Whether this process is rank 0, which writes the outputs."""
    return state().is_main_process


def in_any(flag: bool) -> bool:
    """Whether `flag` is true in any process. Every process must call this."""
    if state().num_processes == 1:
        return flag
    found = torch.tensor(int(flag), device=state().device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def gathered(value: T) -> list[T]:
    """The `value` of each process, by rank. Every process must call this."""
    return gather_object([value])


def of_first(value: T) -> T:
    """The `value` of rank 0. Every process must call this."""
    return broadcast_object_list([value])[0]
