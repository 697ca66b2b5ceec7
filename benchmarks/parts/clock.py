"""The clock of a training benchmark: seconds, peak memory and GPU kernels of each step, and the figures of a run."""

import itertools
import re
import statistics
import time
from collections import Counter

from qlora.training.record import peak_memory

import torch
from transformers import Trainer, TrainerCallback

WARM_UP = 2  # steps that compile and allocate, and are not timed
PROFILED = range(3, 5)  # the steps, counted from 0, that are profiled
KERNELS = {  # kind -> pattern of the kernels' names
    "dequantization": "_dequantize|kDequantize",
    "attention": "flex_attention|flash|fmha",
    "matrix products": "gemm|nvjet|cutlass|splitK",
    "loss": "^_(forward|backward)_kernel",
    "norms, rotations, activations": "^triton_",
    "optimizer": "multi_tensor|[Aa]dam",
    "copies": "[Mm]em(cpy|set)|copy",
}


class Clock(TrainerCallback):
    """Measures seconds and peak memory of each step; with `profile` also the GPU kernels of the steps PROFILED.

    A step ends when the GPU has done its work. Python waits for that only before and after the profiled steps: waiting
    in each would hide that a step's kernels are launched while the GPU still computes the one before.
    """

    def __init__(self, profile: bool):
        self.ends: list[float | torch.cuda.Event] = []
        self.peak = 0
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if profile else None

    def on_step_begin(self, *args, **kwargs):
        step = len(self.ends)
        if step == 0:
            self._end_step()
        if self.profiler and step == PROFILED.start + 1:
            torch.cuda.synchronize()
            self.profiler.start()

    def on_step_end(self, *args, **kwargs):
        if self.profiler and len(self.ends) == PROFILED.stop:
            torch.cuda.synchronize()
            self.profiler.stop()
        self._end_step()
        self.peak = max(self.peak, peak_memory())

    def _end_step(self) -> None:
        if torch.cuda.is_available():
            self.ends.append(torch.cuda.Event(enable_timing=True))
            self.ends[-1].record()
        else:  # in a rehearsal
            self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each step, after the last."""
        if not torch.cuda.is_available():
            return [end - begin for begin, end in itertools.pairwise(self.ends)]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in itertools.pairwise(self.ends)]

    def profile(self) -> dict[str, float]:
        """Milliseconds of a profiled step by kind of kernel; `idle` is the time between the first and the last kernel
        of these steps in which none ran."""
        kernels = [event for event in self.profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        spent: Counter[str] = Counter()
        for event in kernels:
            kind = next((kind for kind, pattern in KERNELS.items() if re.search(pattern, event.name)), "others")
            spent[kind] += event.time_range.elapsed_us() / 1000
        ends = [time for event in kernels for time in (event.time_range.start, event.time_range.end)]
        idle = (max(ends) - min(ends)) / 1000 - sum(spent.values())
        return {kind: round(time / len(PROFILED), 1) for kind, time in [*spent.most_common(), ("idle", idle)]}


def figures(trainer: Trainer, clock: Clock, tokens: list[int]) -> dict:
    """The figures of a finished training; warm-up steps, the profiled ones and the one behind them are not timed.

    Args:
        trainer: After training.
        clock: Its callback.
        tokens: Of each step.
    """
    seconds = clock.seconds
    timed = [
        step for step in range(WARM_UP, len(tokens)) if not (clock.profiler and step in (*PROFILED, PROFILED.stop))
    ]
    return {
        "tokens_per_second": round(sum(tokens[step] for step in timed) / sum(seconds[step] for step in timed)),
        "step_seconds": round(statistics.median(seconds[step] for step in timed), 3),
        "warm_up_seconds": round(sum(seconds[:WARM_UP]), 1),
        "peak_gb": round(clock.peak / 1e9, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
