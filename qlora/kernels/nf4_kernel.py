"""Dequantization of a 4-bit weight in one pass over memory (Triton, NVIDIA and AMD GPUs).

bitsandbytes launches three kernels for a double-quantized weight (scales, offset, weight) and reaches a third of an
H200's memory bandwidth. This kernel reads half a byte and writes two bytes for each weight.
"""

from qlora.kernels import nf4_table

import torch
import triton
import triton.language as tl
from torch import Tensor

# As Triton takes constants.
SCALE_VALUES = tl.constexpr(nf4_table.SCALE_VALUES)
OFFSET = tl.constexpr(nf4_table.OFFSET)
OUTER_SCALES = tl.constexpr(nf4_table.OUTER_SCALES)
OUTER_BLOCK = tl.constexpr(nf4_table.OUTER_BLOCK)


@triton.jit
def _dequantize(
    codes, scales, table, out, blocks,
    HALF: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = block < blocks
    scale = tl.load(scales + block, mask=inside)
    if NESTED:
        outer = tl.load(table + OUTER_SCALES + block // OUTER_BLOCK, mask=inside)
        scale = tl.load(table + SCALE_VALUES + scale.to(tl.int32), mask=inside) * outer + tl.load(table + OFFSET)
    pair = block[:, None] * HALF + tl.arange(0, HALF)[None, :]
    code = tl.load(codes + pair, mask=inside[:, None]).to(tl.int32)
    first = tl.load(table + (code >> 4)) * scale[:, None]
    second = tl.load(table + (code & 15)) * scale[:, None]
    weight = tl.interleave(first, second).to(out.dtype.element_ty)
    place = block[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out + place, weight, mask=inside[:, None])


COMPILED: dict[tuple, tuple] = {}


def dequantize_on_gpu(codes: Tensor, scales: Tensor, table: Tensor, out_features: int, dtype: torch.dtype) -> Tensor:
    """The (out_features, in_features) weight in `dtype`; see `qlora.kernels.nf4_linear.dequantize`."""
    nested = scales.dtype == torch.uint8
    out = torch.empty(out_features, 2 * codes.numel() // out_features, dtype=dtype, device=codes.device)
    arguments = (codes, scales, table, out)
    # In short packs a fast GPU waits for Python, and half of a launch is Triton's search for the compiled kernel that
    # fits the arguments. This key determines the kernel, so it is looked up once and then called directly.
    key = (codes.numel(), scales.numel(), dtype, nested, codes.device)
    if key not in COMPILED:
        blocks = scales.numel()
        half = codes.numel() // blocks
        rows = max(1, 2048 // half)
        grid = (triton.cdiv(blocks, rows), 1, 1)
        kernel = _dequantize[grid](*arguments, blocks, HALF=half, ROWS=rows, NESTED=nested, num_warps=4)
        COMPILED[key] = kernel[grid], (blocks, half, rows, nested)
    else:
        launch, constants = COMPILED[key]
        launch(*arguments, *constants)
    return out
