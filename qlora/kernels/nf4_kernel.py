"""Dequantization of a 4-bit weight in one pass over memory (Triton, NVIDIA and AMD GPUs).

bitsandbytes needs three kernels for a double-quantized weight (scales, offset, weight) and reaches a third of the
memory bandwidth of an H200; this one reads half a byte and writes two for each weight and does nothing else.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _dequantize(
    codes, scales, table, out, blocks,
    HALF: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = block < blocks
    scale = tl.load(scales + block, mask=inside)
    if NESTED:
        outer = tl.load(table + 273 + block // 256, mask=inside)
        scale = tl.load(table + 16 + scale.to(tl.int32), mask=inside) * outer + tl.load(table + 272)
    pair = block[:, None] * HALF + tl.arange(0, HALF)[None, :]
    code = tl.load(codes + pair, mask=inside[:, None]).to(tl.int32)
    first = tl.load(table + (code >> 4)) * scale[:, None]
    second = tl.load(table + (code & 15)) * scale[:, None]
    weight = tl.interleave(first, second).to(out.dtype.element_ty)
    at = block[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out + at, weight, mask=inside[:, None])


COMPILED: dict[tuple, tuple] = {}


def dequantize_on_gpu(codes: Tensor, scales: Tensor, table: Tensor, out_features: int, dtype: torch.dtype) -> Tensor:
    """The (out_features, in_features) weight in `dtype`; see `qlora.kernels.nf4_linear.dequantize`."""
    nested = scales.dtype == torch.uint8
    out = torch.empty(out_features, 2 * codes.numel() // out_features, dtype=dtype, device=codes.device)
    arguments = (codes, scales, table, out)
    # A fast GPU waits for Python in short packs, and half of a launch is Triton finding out which compiled kernel fits
    # these arguments. That depends on nothing but this key, so each kernel is looked up once and then called directly.
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
