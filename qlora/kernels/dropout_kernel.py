"""Dropout by a seed, in one pass over memory (Triton, NVIDIA and AMD GPUs): the backward pass repeats it from the seed.

An element's random number is the one at its place in a sequence of Philox (Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", 2011), so no mask is kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
PARTS = tl.constexpr(8)  # elements that share one call of Philox, which is most of the work: 16 bits decide on each


@triton.jit
def _drop(x, seed, out, count, dropout, BLOCK: tl.constexpr):
    part: tl.constexpr = BLOCK // PARTS
    first = tl.program_id(0) * BLOCK + tl.arange(0, part)
    draws = tl.randint4x(tl.load(seed), tl.program_id(0) * part + tl.arange(0, part))
    for number in tl.static_range(PARTS):
        bits = (draws[number // 2].to(tl.uint32, bitcast=True) >> (16 * (number % 2))) & 0xFFFF
        place = first + number * part
        inside = place < count
        value = tl.load(x + place, mask=inside).to(tl.float32) / (1 - dropout)
        value = tl.where(bits.to(tl.float32) >= dropout * 65536, value, 0.0)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def drop_on_gpu(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """x with a share of its elements set to 0 and the others scaled up; see `qlora.kernels.nf4_linear.nf4_linear`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _drop[(triton.cdiv(x.numel(), BLOCK),)](x, seed, out, x.numel(), dropout, BLOCK=BLOCK)
    return out
