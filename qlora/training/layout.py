"""How a training run goes through the device that is there: laid out before it, and made lighter if that is too much.

Training and the plan before it (`make plan`) share this. What is decided here changes memory and speed, never what a
step learns from.
"""

import functools
import gc
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from qlora.processes import several
from qlora.recipe.params import Lora, Train
from qlora.runtime.console import Refusal
from qlora.training import memory_plan, packing
from qlora.training.device import Device
from qlora.training.memory_plan import MemoryPlan, Shape

CPU_PACK_TOKENS = 1024
CPU_EFFICIENCY = 0.7  # of the rate on large matrix products, with the default recipe on 2 cores
LIGHTER = 0.9  # what a plan that did not fit may take at the next try, as a share of what it was predicted to take

T = TypeVar("T")


class TooLarge(Exception):
    """In one of several processes the memory did not suffice; all of them raise it, but where they share the model."""


def shape_of(skeleton, lora: Lora) -> Shape:
    """What the memory of a run with this adapter depends on, read off the model without weights."""
    return memory_plan.shape_of(skeleton, lora.r, lora.target_modules, getattr(torch, lora.dtype).itemsize)


def lay_out(shape: Shape, lengths: Sequence[int], train: Train, device: Device, free: int | None = None) -> MemoryPlan:
    """The fastest layout that fits, compiled or plain.

    Args:
        shape: of model and adapter.
        lengths: tokens of each training row.
        train: the parameters that have a say.
        device: what to fit the run to.
        free: bytes that it may take, if not all that `device` has.

    Raises:
        Refusal: if nothing fits on the GPU (a CPU is not asked: its memory can be swapped), or there has to be one.
    """
    fixed = None if train.micro_batch_tokens == "auto" else train.micro_batch_tokens
    if not device.is_gpu and train.optimizer == "paged_adamw_8bit":
        raise Refusal("train.optimizer: paged_adamw_8bit needs a GPU, and there is none; set it to adamw")
    if not device.is_gpu:
        return memory_plan.predict_on_cpu(shape, fixed or max(CPU_PACK_TOKENS, *lengths), train.optimizer)
    steps = step_tokens(lengths, train)
    largest = max(max(lengths), -(-max(steps) // device.count))
    limits = memory_plan.pack_lengths(max(lengths), largest) if fixed is None else [fixed]
    fitting = functools.partial(
        memory_plan.choose,
        shape,
        device.free if free is None else free,
        train.memory,
        max(lengths),
        largest,
        train.optimizer,
        device.rate,
        lengths=sorted({longest_pack(lengths, train, limit, device.count) for limit in limits}),
        shards=device.count if device.sharded else 1,
    )
    if train.compile != "auto":
        return fitting(compiled=train.compile)
    fast = fitting(compiled=True)
    try:
        plain = fitting(compiled=False)
    except Refusal:
        return fast
    return min(fast, plain, key=lambda plan: seconds(shape, plan, steps, device))


def longest_pack(lengths: Sequence[int], train: Train, limit: int, processes: int) -> int:
    """Tokens of the longest pack of a run whose packs are to have at most `limit`; rows may not fill them."""
    steps = packing.plan(lengths, train.batch_size, limit, train.epochs, train.max_steps, train.seed, processes)
    return max(sum(lengths[row] for row in pack) for step in steps for pack in step)


def step_tokens(lengths: Sequence[int], train: Train) -> list[int]:
    """Tokens of each optimizer step of a run."""
    whole = packing.plan(lengths, train.batch_size, sum(lengths), train.epochs, train.max_steps, train.seed)
    return [sum(lengths[row] for pack in step for row in pack) for step in whole]


def seconds(shape: Shape, plan: MemoryPlan, steps: Sequence[int], device: Device) -> float:
    """Seconds that training takes, compilation included; `steps` are the tokens of each."""
    tokens = sum(steps) / device.count
    if device.is_gpu:
        packs = sum(math.ceil(step / device.count / plan.pack_tokens) for step in steps)
        return memory_plan.seconds(shape, plan, tokens, packs, device.rate)
    return tokens * 2 * shape.quantized * 2 / (device.rate * CPU_EFFICIENCY)


def describe(shape: Shape, plan: MemoryPlan, steps: Sequence[int], device: Device) -> dict[str, str]:
    """The plan in words: how the run goes, how long, and what memory it takes; `steps` are the tokens of each."""
    expected = seconds(shape, plan, steps, device)
    time = f"{expected / 60:.1f} minutes" if expected >= 60 else f"{expected:.0f} seconds"
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.parts.items())
    each = " on each" if device.count > 1 else ""
    return {
        "layout": packs(shape, plan) if device.is_gpu else f"packs of at most {plan.pack_tokens:,} tokens",
        "time": f"about {time} for {sum(steps):,} tokens"
        + (f", {memory_plan.COMPILE_SECONDS:.0f} seconds of it for compilation" if plan.compiled else ""),
        "memory": f"about {plan.peak / 1e9:.1f} GB of {device.free / 1e9:.1f} GB free{each} ({parts})",
    }


def packs(shape: Shape, plan: MemoryPlan) -> str:
    """How the rows go through a GPU, in words."""
    kind = "compiled" if plan.compiled else "plain"
    return (
        f"packs of at most {plan.pack_tokens:,} tokens, {kind} layers, {plan.recomputed_layers} of {shape.layers} "
        "recomputed"
    )


def run_fitted(
    attempt: Callable[[MemoryPlan], T], shape: Shape, lengths: Sequence[int], train: Train, device: Device
) -> T:
    """What `attempt` returns for the first plan whose memory suffices.

    Where it raises torch.OutOfMemoryError it is called again with a lighter plan: what is the fastest within a tenth
    less memory, which is more recomputation first and shorter packs then. On several devices it has to raise TooLarge,
    in every process: one alone cannot begin again while the others wait for it. Where they share the model the others
    do not come to know of it, and all processes have to be started again.

    Raises:
        Refusal: if there is no lighter plan.
        StartAgain: for `several.start`.
    """
    plan = lay_out(shape, lengths, train, device)
    too_large = torch.OutOfMemoryError if device.count == 1 else TooLarge
    while True:
        try:
            return attempt(plan)
        except too_large:
            pass  # its traceback holds the model; it must be gone before the next one comes
        lighter = int(plan.peak * LIGHTER / memory_plan.USABLE)
        if device.sharded:
            raise several.StartAgain(lighter)
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        tried = packs(shape, plan)
        try:
            plan = lay_out(shape, lengths, train, device, lighter)
        except Refusal as refusal:
            raise Refusal(f"the GPU's memory ran out in the lightest layout: {refusal}") from None
        print(
            f"the GPU's memory ran out with {tried}; trying a lighter layout",
            flush=True,
        )
