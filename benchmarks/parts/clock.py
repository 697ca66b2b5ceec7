"""The clock of a training benchmark: seconds, peak memory and GPU kernels of each step, and the figures of a run."""

import re
import statistics
import time
from collections import Counter

from qlora.training.record import peak_memory

import torch
from transformers import Trainer, TrainerCallback

WARM_UP = 2  # steps that compile and allocate, and are not timed
PROFILED = 4  # the step, counted from 0, that is profiled
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
    """Measures seconds and peak memory of each step; with `profile` also the GPU kernels of step PROFILED."""

    def __init__(self, profile: bool):
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if profile else None

    def on_step_begin(self, *args, **kwargs):
        if torch.cuda.is_available():  # not in a rehearsal
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        if self.profiler and len(self.seconds) == PROFILED:
            self.profiler.start()
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)
        self.peaks.append(peak_memory())
        if self.profiler and len(self.seconds) == PROFILED + 1:
            self.profiler.stop()

    def profile(self) -> dict[str, float]:
        """Milliseconds of the profiled step by kind of kernel; `idle` is the time without any."""
        spent: Counter[str] = Counter()
        for event in self.profiler.key_averages():
            kind = next((kind for kind, pattern in KERNELS.items() if re.search(pattern, event.key)), "others")
            spent[kind] += event.self_device_time_total / 1000
        idle = self.seconds[PROFILED] * 1000 - sum(spent.values())
        return {kind: round(time, 1) for kind, time in [*spent.most_common(), ("idle", idle)]}


def figures(trainer: Trainer, clock: Clock, tokens: list[int]) -> dict:
    """The figures of a finished training; warm-up steps and the profiled one are not timed.

    Args:
        trainer: After training.
        clock: Its callback.
        tokens: Of each step.
    """
    timed = [step for step in range(WARM_UP, len(tokens)) if not (clock.profiler and step == PROFILED)]
    return {
        "tokens_per_second": round(sum(tokens[step] for step in timed) / sum(clock.seconds[step] for step in timed)),
        "step_seconds": round(statistics.median(clock.seconds[step] for step in timed), 3),
        "warm_up_seconds": round(sum(clock.seconds[:WARM_UP]), 1),
        "peak_gb": round(max(clock.peaks) / 1e9, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
