"""Dropout by a seed, in one pass over memory (Triton, NVIDIA and AMD GPUs): the backward pass repeats it from the seed.

An element's random number is the one at its place in a sequence of Philox (Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", 2011), so no mask is kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _drop(x, seed, out, count, dropout, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    kept = tl.rand(tl.load(seed), place) >= dropout
    value = tl.load(x + place, mask=inside).to(tl.float32) / (1 - dropout)
    tl.store(out + place, tl.where(kept, value, 0.0).to(out.dtype.element_ty), mask=inside)


def drop_on_gpu(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """x with a share of its elements set to 0 and the others scaled up; see `qlora.kernels.nf4_linear.nf4_linear`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _drop[(triton.cdiv(x.numel(), BLOCK),)](x, seed, out, x.numel(), dropout, BLOCK=BLOCK)
    return out
