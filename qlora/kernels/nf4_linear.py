"""The linear layer of compiled layers: one operator for dequantization, the base product and LoRA.

bitsandbytes and PEFT compute a QLoRA layer (Dettmers et al., "QLoRA", 2023, arXiv:2305.14314) as a dozen small
operations. If a decoder layer of these is compiled with activation checkpointing, it still keeps the results of its
4-bit products for the backward pass (measured with torch 2.11: 0.33 GB a layer for 4,096 tokens of an 8B model). Here
the linear layer is one opaque operator with its own backward operator. The caller decides which results are kept, one
kernel dequantizes the weight once a pass, and LoRA's sum is part of the large product. A weight that is not quantized
(quantization.type: none) takes the same operator, which then dequantizes nothing.
"""

from qlora.kernels.nf4_table import OFFSET, OUTER_BLOCK, OUTER_SCALES, SCALE_VALUES

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional


def use_fast_linears(model: nn.Module, sharded: bool = False) -> Tensor:
    """Let each 4-bit layer of `model`, with or without LoRA, and each plain one with LoRA compute by the operator.

    Call it after the adapter is added (by `get_peft_model` or the trainer). Parameters, their names and saved files do
    not change. A LoRA layer with DoRA or several adapters keeps PEFT's forward pass over the fast base layer.

    Args:
        model: With 4-bit layers of bitsandbytes.
        sharded: FSDP will shard the weights, so a layer must read its weight at each call, when it is whole.

    Returns:
        The seeds of the layers with LoRA (64 bits each), which decide what dropout leaves out: the caller draws them
        anew before each forward pass, and not before its backward pass has ended.
    """
    types = (*FAST, *FAST.values())  # the latter by an earlier call
    adapted = [module for module in model.modules() if type(module) in types and _is_plain_lora(module)]
    seeds = torch.zeros(len(adapted), dtype=torch.int64, device=next(model.parameters()).device)
    for module, seed in zip(adapted, seeds, strict=True):
        module.seed = seed
        module.__class__ = FAST.get(type(module), type(module))
    for module in model.modules():
        if type(module) is bnb.nn.Linear4bit:
            module.scales = scales_of(module.weight.quant_state)
            module.codes = None if sharded else module.weight.data.as_subclass(Tensor).view(torch.uint8)
            module.__class__ = FastLinear4bit
    return seeds


def prepare_sharding(model: nn.Module, gpu: torch.device) -> None:
    """Prepare a 4-bit model for FSDP: move its scales, which are not parameters, to the GPU."""
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.quant_state.to(gpu)
    use_fast_linears(model, sharded=True)


class FastLinear4bit(bnb.nn.Linear4bit):
    """A frozen 4-bit layer that computes by the operator.

    Attributes:
        codes: The weight's 4-bit codes, two a byte; None for a sharded weight, whose codes are read at each call.
        scales: The result of `scales_of`.
    """

    @property
    def packed(self) -> list[Tensor]:
        """The quantized weight as the operator takes it: codes, scales, table."""
        return [self.weight if self.codes is None else self.codes, *self.scales]

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features); computes in the layer's compute dtype, returns x's."""
        y = nf4_linear(x.to(self.compute_dtype), self.packed, self.out_features)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(x.dtype)


class FastLoraLinear4bit(LoraLinear4bit):
    """A 4-bit layer with one LoRA adapter."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Map x (..., in_features) to (..., out_features): x W' + scale * dropout(x) A' B' + bias."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        return _with_lora(self, x, self.base_layer.packed, self.base_layer.compute_dtype)


class FastLoraLinear(LoraLinear):
    """A layer that is not quantized with one LoRA adapter."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Map x (..., in_features) to (..., out_features): x W' + scale * dropout(x) A' B' + bias."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        return _with_lora(self, x, [self.base_layer.weight], self.base_layer.weight.dtype)


def _with_lora(module: LoraLinear4bit | LoraLinear, x: Tensor, packed: list[Tensor], dtype: torch.dtype) -> Tensor:
    (name,) = module.active_adapters
    base, a, b = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    dropout = getattr(module.lora_dropout[name], "p", 0.0) if module.training else 0.0  # nn.Identity without dropout
    seed = module.seed if dropout else None
    y = nf4_linear(x.to(dtype), packed, base.out_features, a, b, module.scaling[name], dropout, seed)
    return (y if base.bias is None else y + base.bias.to(y.dtype)).to(x.dtype)


FAST = {LoraLinear4bit: FastLoraLinear4bit, LoraLinear: FastLoraLinear}


def _is_plain_lora(module: LoraLinear4bit | LoraLinear) -> bool:
    if type(module.base_layer) not in (bnb.nn.Linear4bit, FastLinear4bit, nn.Linear):
        return False
    if len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    return name in module.lora_A and not module.lora_variant and not module.lora_bias[name]


def scales_of(state: QuantState) -> list[Tensor]:
    """The scale of each block of a weight's codes (float32, or 8-bit codes), and the table (`nf4_table`).

    The table is one tensor because every input of a compiled layer costs time in each pass.
    """
    if not state.nested:
        return [state.absmax, state.code]
    return [state.absmax, torch.cat([state.code, state.state2.code, state.offset.view(1), state.state2.absmax])]


def dequantize(packed: list[Tensor], out_features: int, dtype: torch.dtype) -> Tensor:
    """The (out_features, in_features) weight in `dtype`: each code's value times its block's scale.

    Args:
        packed: Codes, scales, table; or only the weight, if it is not quantized.
        out_features: Rows of the weight.
        dtype: Of the result.
    """
    if len(packed) == 1:
        return packed[0].to(dtype)
    codes, scales, table = packed
    codes = codes.view(torch.uint8)  # a sharded weight is stored as float32 words
    if codes.is_cuda:
        from qlora.kernels.nf4_kernel import dequantize_on_gpu

        return dequantize_on_gpu(codes, scales, table, out_features, dtype)
    if scales.dtype == torch.uint8:
        outer = table[OUTER_SCALES:].repeat_interleave(OUTER_BLOCK)[: scales.numel()]
        scales = table[SCALE_VALUES:OFFSET][scales.int()] * outer + table[OFFSET]
    codes = codes.view(-1)
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1)
    blocks = table[pairs.int()].view(scales.numel(), -1)
    return (blocks * scales[:, None]).to(dtype).view(out_features, -1)


def nf4_linear(
    x: Tensor,
    packed: list[Tensor],
    out_features: int,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scale: float = 0.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """x W' + scale * dropout(x) A' B'.

    Args:
        x: (..., in).
        packed: W (out, in), as `dequantize` takes it.
        out_features: Rows of W.
        lora_a: A (r, in); None without LoRA.
        lora_b: B (out, r).
        scale: LoRA's factor.
        dropout: Share of x's elements that LoRA does not see.
        seed: A 64-bit scalar that decides which, if there are any. Recomputing the layer must find the same one.
    """
    # Reshaping and casting here, outside the operator, costs nothing once compiled.
    rows = x.flatten(0, -2)
    low = None
    if lora_a is not None:
        lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        # x A' is computed outside the operator, so recomputation can repeat it without the large product. It is
        # detached because the operator's backward pass includes its gradients.
        seen = rows.detach() if seed is None else torch.ops.qlora.dropped(rows.detach(), seed, dropout)
        low = functional.linear(seen, lora_a.detach())
    y = torch.ops.qlora.nf4_linear(rows, low, packed, out_features, lora_a, lora_b, scale, dropout, seed)
    return y.view(*x.shape[:-1], out_features)


# Not registered by `torch.library.custom_op`, because its checks at each call slow short packs down.
LIBRARY = torch.library.Library("qlora", "DEF")
LORA = "Tensor? lora_a, Tensor? lora_b, float scale, float dropout, Tensor? seed"
LIBRARY.define(f"nf4_linear(Tensor x, Tensor? low, Tensor[] packed, int out_features, {LORA}) -> Tensor")
LIBRARY.define(f"nf4_linear_backward(Tensor grad, Tensor x, Tensor? low, Tensor[] packed, {LORA}) -> Tensor[]")
LIBRARY.define("dropped(Tensor x, Tensor seed, float dropout) -> Tensor")


def _linear(x, low, packed, out_features, lora_a, lora_b, scale, dropout, seed):
    weight = dequantize(packed, out_features, x.dtype)
    if low is None:
        return x @ weight.t()
    # The large product is added in place to LoRA's, in its epilogue, which saves a separate sum.
    return _scaled_product(scale, low, lora_b.t()).addmm_(x, weight.t())


def _linear_backward(grad, x, low, packed, lora_a, lora_b, scale, dropout, seed):
    weight = dequantize(packed, grad.shape[1], grad.dtype)
    if low is None:
        return [grad @ weight]
    grad_low = _scaled_product(scale, grad, lora_b)
    grad_b = _scaled_product(scale, grad.t(), low)
    grad_seen = grad_low @ lora_a
    if seed is not None:  # the same elements as in the forward pass, which need not be kept
        x, grad_seen = _dropped(x, seed, dropout), _dropped(grad_seen, seed, dropout)
    grad_a = grad_low.t() @ x
    return [grad_seen.addmm_(grad, weight), grad_a, grad_b]


def _dropped(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """x with a share of its elements set to 0 and the others scaled up (Srivastava et al., "Dropout", 2014)."""
    if x.is_cuda:
        from qlora.kernels.dropout_kernel import drop_on_gpu

        return drop_on_gpu(x, seed, dropout)
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(int(seed))) >= dropout
    return x * kept / (1 - dropout)


def _scaled_product(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """scale * a b; the product's epilogue applies the factor."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


def _linear_fake(x, low, packed, out_features, lora_a, lora_b, scale, dropout, seed):
    return x.new_empty(x.shape[0], out_features)


def _linear_backward_fake(grad, x, low, packed, lora_a, lora_b, scale, dropout, seed):
    return [given.new_empty(given.shape) for given in ([x] if low is None else [x, lora_a, lora_b])]


def _keep(ctx, inputs, output):
    x, low, packed, _, lora_a, lora_b, ctx.scale, ctx.dropout, seed = inputs
    ctx.has_lora, ctx.has_seed = low is not None, seed is not None
    ctx.save_for_backward(
        x, *([low, lora_a, lora_b] if ctx.has_lora else []), *([seed] if ctx.has_seed else []), *packed
    )


def _autograd(ctx, grad):
    x, *rest = ctx.saved_tensors
    low, lora_a, lora_b, *rest = rest if ctx.has_lora else [None, None, None, *rest]
    seed, *packed = rest if ctx.has_seed else [None, *rest]
    grads = torch.ops.qlora.nf4_linear_backward(grad, x, low, packed, lora_a, lora_b, ctx.scale, ctx.dropout, seed)
    grad_x, grad_a, grad_b = grads if ctx.has_lora else [*grads, None, None]
    return grad_x, None, [None] * len(packed), None, grad_a, grad_b, None, None, None


LIBRARY.impl("nf4_linear", _linear, "CompositeExplicitAutograd")
LIBRARY.impl("nf4_linear_backward", _linear_backward, "CompositeExplicitAutograd")
LIBRARY.impl("dropped", _dropped, "CompositeExplicitAutograd")
torch.library.register_fake("qlora::dropped", lambda x, seed, dropout: x.new_empty(x.shape), lib=LIBRARY)
torch.library.register_fake("qlora::nf4_linear", _linear_fake, lib=LIBRARY)
torch.library.register_fake("qlora::nf4_linear_backward", _linear_backward_fake, lib=LIBRARY)
torch.library.register_autograd("qlora::nf4_linear", _autograd, setup_context=_keep, lib=LIBRARY)
