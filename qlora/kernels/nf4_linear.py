"""The 4-bit linear layer of the fast path: one operator for dequantization, the base product and LoRA.

bitsandbytes and PEFT compute a QLoRA layer (Dettmers et al., "QLoRA", 2023, arXiv:2305.14314) as a dozen small
operations. A decoder layer made of these and compiled together with its checkpoint keeps the results of its 4-bit
products for the backward pass all the same (measured with torch 2.11: 0.33 GB a layer for 4,096 tokens of an 8B
model). Here the layer is one opaque operator with a backward operator of its own: what is kept and what is computed
again is for the caller to say, the weight is dequantized once a pass by one kernel, and LoRA's sum is part of the large
product.
"""

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import Tensor, nn
from torch.nn import functional

NESTED_BLOCK = 256  # scales that share one second-level scale: fixed in bitsandbytes' double quantization


def use_fast_linears(model: nn.Module, sharded: bool = False) -> int:
    """Let each 4-bit layer of `model`, with LoRA or without, compute through the one operator. Returns their number.

    Call it when the adapter is in place (after `get_peft_model` or the trainer's constructor). Parameters, names and
    what is saved stay as they are. A LoRA layer that the operator does not cover (dropout, DoRA, several adapters)
    keeps PEFT's own forward pass over the fast base layer. Weights that are to be `sharded` are taken as they are when
    the layer computes: they are whole only then.
    """
    layers = 0
    for module in model.modules():
        if type(module) is LoraLinear4bit and _is_plain_lora(module):
            module.__class__ = FastLoraLinear4bit
        elif type(module) is bnb.nn.Linear4bit:
            module.scales = _scales(module.weight.quant_state)
            module.codes = None if sharded else module.weight.data.as_subclass(Tensor).view(torch.uint8)
            module.__class__ = FastLinear4bit
            layers += 1
    return layers


class FastLinear4bit(bnb.nn.Linear4bit):
    """A frozen 4-bit layer; `packed` is its quantized weight as the operator takes it.

    `codes` is None where the weight is sharded.
    """

    @property
    def packed(self) -> list[Tensor]:
        """The tensors of the quantized weight: codes, scales, and a table as `_scales` makes it."""
        return [self.weight if self.codes is None else self.codes, *self.scales]

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features), in the layer's compute dtype inside and x's outside."""
        y = nf4_linear(x.to(self.compute_dtype), self.packed, self.out_features, None, None, 0.0)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(x.dtype)


class FastLoraLinear4bit(LoraLinear4bit):
    """A 4-bit layer with one LoRA adapter, without dropout."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Map x (..., in_features) to (..., out_features): x W' + scale * x A' B' + bias."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base = self.base_layer
        y = nf4_linear(
            x.to(base.compute_dtype),
            base.packed,
            base.out_features,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return (y if base.bias is None else y + base.bias.to(y.dtype)).to(x.dtype)


def _is_plain_lora(module: LoraLinear4bit) -> bool:
    if type(module.base_layer) not in (bnb.nn.Linear4bit, FastLinear4bit) or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    is_certain = isinstance(module.lora_dropout[name], nn.Identity)
    return name in module.lora_A and is_certain and not module.lora_variant and not module.lora_bias[name]


def _scales(state: QuantState) -> list[Tensor]:
    """What turns the codes of a quantized weight into numbers: the scale of each block of codes, and a table.

    The table has the value of each code. Where the scales are quantized as well (bytes), it goes on with the value of
    each of theirs, their offset, and the scale of each block of theirs. It is one tensor because compiled layers pay
    for the number of their inputs in each pass.
    """
    if not state.nested:
        return [state.absmax, state.code]
    return [state.absmax, torch.cat([state.code, state.state2.code, state.offset.view(1), state.state2.absmax])]


def dequantize(packed: list[Tensor], out_features: int, dtype: torch.dtype) -> Tensor:
    """The (out_features, in_features) weight in `dtype`: the value of each 4-bit code times the scale of its block."""
    codes, scales, table = packed
    codes = codes.view(torch.uint8)  # a sharded weight comes in longer words
    if codes.is_cuda:
        from qlora.kernels.nf4_kernel import dequantize_on_gpu

        return dequantize_on_gpu(codes, scales, table, out_features, dtype)
    if scales.dtype == torch.uint8:
        scale_values, offset, outer_scales = table[16:272], table[272], table[273:]
        outer = outer_scales.repeat_interleave(NESTED_BLOCK)[: scales.numel()]
        scales = scale_values[scales.int()] * outer + offset
    codes = codes.view(-1)
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1)
    blocks = table[pairs.int()].view(scales.numel(), -1)
    return (blocks * scales[:, None]).to(dtype).view(out_features, -1)


def nf4_linear(
    x: Tensor, packed: list[Tensor], out_features: int, lora_a: Tensor | None, lora_b: Tensor | None, scale: float
) -> Tensor:
    """x W' + scale * x A' B' for x (..., in), W (out, in) 4-bit, A (r, in), B (out, r); A and B may both be None."""
    # Shapes and types are settled here, where it costs nothing once compiled.
    rows = x.flatten(0, -2)
    low = None
    if lora_a is not None:
        lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        # x A' is computed apart, so that a layer that is recomputed can repeat it without the large product; its part
        # in the gradients of x and A is in the operator's backward pass.
        low = functional.linear(rows.detach(), lora_a.detach())
    y = torch.ops.qlora.nf4_linear(rows, low, packed, out_features, lora_a, lora_b, scale)
    return y.view(*x.shape[:-1], out_features)


# Registered by hand and not with `torch.library.custom_op`, whose checks at each call would show in short packs.
LIBRARY = torch.library.Library("qlora", "DEF")
LIBRARY.define(
    "nf4_linear(Tensor x, Tensor? low, Tensor[] packed, int out_features, Tensor? lora_a, Tensor? lora_b, float scale)"
    " -> Tensor"
)
LIBRARY.define(
    "nf4_linear_backward(Tensor grad, Tensor x, Tensor? low, Tensor[] packed, Tensor? lora_a, Tensor? lora_b,"
    " float scale) -> Tensor[]"
)


def _linear(x, low, packed, out_features, lora_a, lora_b, scale):
    weight = dequantize(packed, out_features, x.dtype)
    if low is None:
        return x @ weight.t()
    # LoRA goes first and the large product is added in place: its epilogue reads what a separate sum would.
    return _scaled_product(scale, low, lora_b.t()).addmm_(x, weight.t())


def _linear_backward(grad, x, low, packed, lora_a, lora_b, scale):
    weight = dequantize(packed, grad.shape[1], grad.dtype)
    if low is None:
        return [grad @ weight]
    grad_low = _scaled_product(scale, grad, lora_b)
    grad_a = grad_low.t() @ x
    grad_b = _scaled_product(scale, grad.t(), low)
    return [(grad_low @ lora_a).addmm_(grad, weight), grad_a, grad_b]


def _scaled_product(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """scale * a b, the factor applied where the product is written."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


def _linear_fake(x, low, packed, out_features, lora_a, lora_b, scale):
    return x.new_empty(x.shape[0], out_features)


def _linear_backward_fake(grad, x, low, packed, lora_a, lora_b, scale):
    return [given.new_empty(given.shape) for given in ([x] if low is None else [x, lora_a, lora_b])]


def _keep(ctx, inputs, output):
    x, low, packed, _, lora_a, lora_b, ctx.scale = inputs
    ctx.has_lora = low is not None
    ctx.save_for_backward(x, *([low, lora_a, lora_b] if ctx.has_lora else []), *packed)


def _autograd(ctx, grad):
    x, *rest = ctx.saved_tensors
    low, lora_a, lora_b, *packed = rest if ctx.has_lora else [None, None, None, *rest]
    grads = torch.ops.qlora.nf4_linear_backward(grad, x, low, packed, lora_a, lora_b, ctx.scale)
    grad_x, grad_a, grad_b = grads if ctx.has_lora else [*grads, None, None]
    return grad_x, None, [None] * len(packed), None, grad_a, grad_b, None


LIBRARY.impl("nf4_linear", _linear, "CompositeExplicitAutograd")
LIBRARY.impl("nf4_linear_backward", _linear_backward, "CompositeExplicitAutograd")
torch.library.register_fake("qlora::nf4_linear", _linear_fake, lib=LIBRARY)
torch.library.register_fake("qlora::nf4_linear_backward", _linear_backward_fake, lib=LIBRARY)
torch.library.register_autograd("qlora::nf4_linear", _autograd, setup_context=_keep, lib=LIBRARY)
