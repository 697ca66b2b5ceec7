"""torch's settings for training on a GPU: less memory fragmentation, and the same numbers in every run."""

import os

from qlora.kernels import compiled_layers, packed_attention
from qlora.processes import group
from qlora.training.memory import MemoryPlan

import torch


def prepare_gpu() -> None:
    """Set environment variables that torch reads before its first allocation on a GPU."""
    # Packs of different lengths would fragment the memory.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by `be_repeatable`


def be_repeatable(plan: MemoryPlan) -> None:
    """Make the GPU compute the same numbers in every run of this plan.

    By default torch.compile benchmarks several kernels for a reduction and takes the fastest, and FlashAttention's
    backward pass sums in the order in which blocks finish (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    torch.use_deterministic_algorithms(not plan.compiled)
    if plan.compiled:
        torch._inductor.config.deterministic = True
    else:
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would write all memory twice


def attention(plan: MemoryPlan) -> str:
    """The attention implementation to load the model with."""
    if plan.compiled:
        return compiled_layers.attention_implementation(group.state().device)
    return packed_attention.NAME
