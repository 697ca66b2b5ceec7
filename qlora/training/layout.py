"""A training run's layout: chosen before the run starts, and replaced by a lighter one if memory runs out.

Training and `make plan` share this. Layouts differ in memory and speed, never in what a step learns from.
"""

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from qlora.processes.launch import StartAgain
from qlora.recipe.schema import Lora, Quantization, Train
from qlora.runtime.console import Refusal
from qlora.training import memory, packing
from qlora.training.device import Device
from qlora.training.memory import MemoryPlan, Shape

import torch

CPU_PACK_TOKENS = 1024
CPU_EFFICIENCY = 0.2  # of the rate on large matrix products, with the default recipe on 2 cores
LIGHTER = 0.9  # the next plan's limit after memory ran out, as a share of the last plan's predicted peak

T = TypeVar("T")


class TooLarge(Exception):
    """Raised in all DDP processes when one runs out of memory; FSDP uses StartAgain."""


def shape_of(skeleton, lora: Lora, quantization: Quantization) -> Shape:
    """The sizes of a model and its adapter.

    Args:
        skeleton: The model without weights.
        lora: The adapter's parameters.
        quantization: The weights'.
    """
    trainable_bytes = getattr(torch, lora.dtype).itemsize
    weight_bytes = memory.NF4 if quantization.in_4_bits else getattr(torch, quantization.compute_dtype).itemsize
    return memory.shape_of(skeleton, lora.r, lora.target_modules, trainable_bytes, lora.experts, weight_bytes)


def lay_out(shape: Shape, lengths: Sequence[int], train: Train, device: Device) -> MemoryPlan:
    """The fastest layout that fits, with compiled or plain layers.

    Args:
        shape: Of model and adapter.
        lengths: Tokens of each training row.
        train: Batch size, memory, micro_batch_tokens, compile and optimizer.
        device: The run's devices.

    Raises:
        Refusal: if nothing fits on the GPU (a CPU's memory is not checked: it can swap), or a parameter needs a GPU.
    """
    fixed = None if train.micro_batch_tokens == "auto" else train.micro_batch_tokens
    if not device.is_gpu and train.optimizer == "paged_adamw_8bit":
        raise Refusal("train.optimizer: paged_adamw_8bit needs a GPU, and there is none; set it to adamw")
    if shape.routed and device.sharded:
        raise Refusal("train.parallel: fsdp does not shard experts; set it to ddp")
    if shape.alone:
        fixed = max(lengths)
    if not device.is_gpu:
        return memory.predict_on_cpu(shape, fixed or max(CPU_PACK_TOKENS, *lengths), train.optimizer)
    step_tokens = packing.plan(lengths, train).tokens
    largest = max(max(lengths), -(-max(step_tokens) // device.count))
    limits = memory.pack_lengths(max(lengths), largest) if fixed is None else [fixed]
    fitting = functools.partial(
        memory.choose,
        shape,
        device,
        train,
        max(lengths),
        largest,
        lengths=sorted({longest_pack(lengths, train, limit, device.count) for limit in limits}),
    )
    if shape.plain:
        return fitting(compiled=False)
    if train.compile != "auto":
        return fitting(compiled=train.compile)
    fast = fitting(compiled=True)
    try:
        plain = fitting(compiled=False)
    except Refusal:
        return fast
    return min(fast, plain, key=lambda plan: seconds(shape, plan, step_tokens, device))


def longest_pack(lengths: Sequence[int], train: Train, limit: int, processes: int) -> int:
    """Tokens of a run's longest pack if packs hold at most `limit` tokens, which whole rows may not fill."""
    return max(packing.plan(lengths, train, limit, processes).pack_tokens)


def seconds(shape: Shape, plan: MemoryPlan, step_tokens: Sequence[int], device: Device) -> float:
    """Expected seconds of training, compilation included."""
    tokens = sum(step_tokens) / device.count
    if device.is_gpu:
        packs = sum(math.ceil(step / device.count / plan.pack_tokens) for step in step_tokens)
        return memory.seconds(shape, plan, tokens, packs, device.rate)
    return tokens * 2 * (shape.met or shape.quantized) * 2 / (device.rate * CPU_EFFICIENCY)


def describe(shape: Shape, plan: MemoryPlan, step_tokens: Sequence[int], device: Device) -> dict[str, str]:
    """The layout, the time and the memory of a run, for people."""
    expected = seconds(shape, plan, step_tokens, device)
    time = f"{expected / 60:.1f} minutes" if expected >= 60 else f"{expected:.0f} seconds"
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts.items())
    each = " on each" if device.count > 1 else ""
    return {
        "layout": packs(shape, plan) if device.is_gpu else micro_batches(shape, plan),
        "time": f"about {time} for {sum(step_tokens):,} tokens"
        + (f", {memory.COMPILE_SECONDS:.0f} seconds of it for compilation" if plan.compiled else ""),
        "memory": f"about {plan.peak / 1e9:.1f} GB of {device.free / 1e9:.1f} GB free{each} ({parts})",
    }


def packs(shape: Shape, plan: MemoryPlan) -> str:
    """A GPU's layout, for people."""
    kind = "compiled layers" if plan.compiled else "plain layers"
    if shape.plain:
        kind += f" ({shape.plain} has no compiled form)"
    return f"{micro_batches(shape, plan)}, {kind}, {plan.recomputed_layers} of {shape.layers} recomputed"


def micro_batches(shape: Shape, plan: MemoryPlan) -> str:
    """What goes through the model at once, for people."""
    if shape.alone:
        return f"one row at a time, because {shape.alone} would mix rows, of at most {plan.pack_tokens:,} tokens"
    return f"packs of at most {plan.pack_tokens:,} tokens"


def run_fitted(
    attempt: Callable[[MemoryPlan], T], shape: Shape, lengths: Sequence[int], train: Train, device: Device
) -> T:
    """Call `attempt` with the fastest plan, then with lighter ones until one fits; return its result.

    A lighter plan is the fastest one with a tenth less memory: more checkpointed layers first, then shorter packs.
    `attempt` raises torch.OutOfMemoryError when memory runs out. With several DDP processes it must raise TooLarge in
    all of them, because one cannot start over while the others wait for it. With FSDP the others cannot be told, so all
    processes are restarted.

    Raises:
        Refusal: if there is no lighter plan.
        StartAgain: with FSDP, for `launch.start`.
    """
    plan = lay_out(shape, lengths, train, device)
    too_large = torch.OutOfMemoryError if device.count == 1 else TooLarge
    while True:
        try:
            return attempt(plan)
        except too_large:
            pass  # leaving the handler frees the model, which the traceback holds
        lighter = int(plan.peak * LIGHTER / memory.USABLE)
        if device.sharded:
            raise StartAgain(lighter)
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        tried = packs(shape, plan)
        try:
            plan = lay_out(shape, lengths, train, replace(device, free=lighter))
        except Refusal as refusal:
            raise Refusal(f"the GPU's memory ran out in the lightest layout: {refusal}") from None
        print(f"the GPU's memory ran out with {tried}; trying a lighter layout", flush=True)
