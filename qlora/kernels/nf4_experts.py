"""Experts in 4 bits, with or without LoRA: the tokens of one expert after another, in grouped matrix products.

transformers' implementations keep the dequantized weights of every layer for the backward pass: the whole model in 16
bits. PEFT adds a LoRA update to the weights of all experts, and needs a gradient as large as these. Here one opaque
operator dequantizes a layer's 3-D weight, multiplies and drops it, in the forward and in the backward pass, and LoRA's
two small products follow the tokens (Hu et al., "LoRA", 2021, arXiv:2106.09685, applied to each expert).
"""

from qlora.kernels.nf4_linear import LIBRARY, dequantize, scales_of
from qlora.weights import experts

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "nf4"
ALIGNED = 8  # columns of a matrix in a grouped product, in 16 bits: its rows start at multiples of 16 bytes


def use_fast_experts(model: nn.Module) -> int:
    """Let the 4-bit experts of `model` compute by the operator. Call it after the adapter is added.

    Parameters, their names and saved files do not change. Experts that are not in 4 bits stay as they are.

    Returns:
        Number of layers that do.
    """
    layers = {}
    for module in experts.of_model(model).values():
        weights = experts.weights_of(module)
        if all(experts.quant_state(module, weight) for weight in weights):
            module.packed = {weight: _packed(module, weight) for weight in weights}
            module.adapters = {}  # of PEFT; in a dictionary, they are not submodules of what they wrap
            module.config._experts_implementation_internal = NAME
            layers[id(module)] = module
    for wrapper in model.modules():
        if isinstance(wrapper, ParamWrapper) and id(wrapper.get_base_layer()) in layers:
            layers[id(wrapper.get_base_layer())].adapters[wrapper.parameter_name] = wrapper
            wrapper.__class__ = FastParamWrapper
    return len(layers)


class FastParamWrapper(ParamWrapper):
    """PEFT's LoRA on a parameter of experts that compute by the operator, which reads its factors."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return self.base_layer(x, *args, **kwargs)


def _packed(module: nn.Module, weight: str) -> list[Tensor]:
    codes = module.parametrizations[weight].original
    return [codes.data, *scales_of(experts.quant_state(module, weight))]


def forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' output (tokens, hidden).

    Args:
        module: The experts.
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, k), the experts of each token.
        top_k_weights: (tokens, k), their weights.
    """
    first, second = experts.weights_of(module)
    tokens, k = top_k_index.shape
    expert, order = torch.sort(top_k_index.reshape(-1), stable=True)
    place = torch.argsort(order)  # of each token's k copies among the sorted ones
    ends = torch.searchsorted(expert, torch.arange(1, module.num_experts + 1, device=expert.device), out_int32=True)
    x = _Spread.apply(hidden_states, order, place, k)
    inner = _product(module, first, x, expert, ends)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    y = _Permute.apply(_product(module, second, inner, expert, ends), place, order)
    return (y.view(tokens, k, -1) * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)


def _product(module: nn.Module, weight: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
    """x (rows, in), sorted by expert, times each row's expert's weight, plus its LoRA and bias: (rows, out)."""
    state = experts.quant_state(module, weight)
    x = x.to(state.dtype)
    y = torch.ops.qlora.nf4_grouped(x, ends, module.packed[weight], list(state.shape), module.is_transposed)
    wrapper = module.adapters.get(weight)
    if wrapper is not None and not wrapper.disable_adapters:
        (name,) = wrapper.active_adapters
        low = grouped(x, _down(wrapper.lora_A[name].weight, module.num_experts).to(x.dtype), ends)
        up = _up(wrapper.lora_B[name].weight.to(x.dtype), module.num_experts, low.shape[1])
        y = y + wrapper.scaling[name] * grouped(low, up, ends)
    if module.has_bias:
        y = y + getattr(module, f"{weight}_bias")[expert]
    return y


def _down(a: Tensor, count: int) -> Tensor:
    """PEFT's A of all experts, (count r, in), as (count, in, r), with r filled up with zeros to be aligned."""
    a = a.view(count, -1, a.shape[1])
    return functional.pad(a, (0, 0, 0, -a.shape[1] % ALIGNED)).mT


def _up(b: Tensor, count: int, aligned: int) -> Tensor:
    """PEFT's B of all experts, (out, r count), as (count, aligned, out), filled up with zeros."""
    b = b.view(len(b), -1, count).permute(2, 1, 0)
    return functional.pad(b, (0, 0, 0, aligned - b.shape[1])).contiguous()


class _Spread(torch.autograd.Function):
    """k copies of each row of x (tokens, width), sorted: x[order // k]. Its gradient is a sum in a fixed order."""

    @staticmethod
    def forward(ctx, x, order, place, k):
        ctx.save_for_backward(place)
        ctx.k = k
        return x[order // k]

    @staticmethod
    def backward(ctx, grad):
        (place,) = ctx.saved_tensors
        return grad[place].view(-1, ctx.k, grad.shape[1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """x[place], where x[place][order] is x."""

    @staticmethod
    def forward(ctx, x, place, order):
        ctx.save_for_backward(order)
        return x[place]

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        return grad[order], None, None


# Operators

LIBRARY.define("grouped(Tensor x, Tensor weight, Tensor ends) -> Tensor")
LIBRARY.define("grouped_weight_grad(Tensor x, Tensor grad, Tensor ends) -> Tensor")
WEIGHT = "Tensor ends, Tensor[] packed, int[] shape, bool transposed"
LIBRARY.define(f"nf4_grouped(Tensor x, {WEIGHT}) -> Tensor")
LIBRARY.define(f"nf4_grouped_backward(Tensor grad, {WEIGHT}) -> Tensor")


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """(rows, out): rows ends[e - 1] to ends[e] of x (rows, in), times weight[e] of (experts, in, out)."""
    return torch.ops.qlora.grouped(x, weight, ends)


def _is_native(x: Tensor) -> bool:
    """Whether torch has the product of these: in bfloat16, on an Ampere GPU or later."""
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] >= 8


def _grouped(x, weight, ends):
    if _is_native(x):
        return functional.grouped_mm(x, weight, offs=ends)
    y, begin = x.new_empty(x.shape[0], weight.shape[2]), 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(x[begin:end], weight[expert], out=y[begin:end])
        begin = end
    return y


def _grouped_weight_grad(x, grad, ends):
    if _is_native(x):
        result = functional.grouped_mm(x.t(), grad, offs=ends)
        counts = ends.diff(prepend=ends.new_zeros(1))
        return result.masked_fill_((counts == 0)[:, None, None], 0)
    result, begin = x.new_empty(len(ends), x.shape[1], grad.shape[1]), 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(x[begin:end].t(), grad[begin:end], out=result[expert])
        begin = end
    return result


def _weight(packed, shape, transposed, dtype) -> Tensor:
    """The dequantized weight, (experts, in, out)."""
    weight = dequantize(packed, shape[0] * shape[1], dtype).view(shape)
    return weight if transposed else weight.mT


def _nf4_grouped(x, ends, packed, shape, transposed):
    return _grouped(x, _weight(packed, shape, transposed, x.dtype), ends)


def _nf4_grouped_backward(grad, ends, packed, shape, transposed):
    return _grouped(grad.contiguous(), _weight(packed, shape, transposed, grad.dtype).mT, ends)


def _keep_nf4(ctx, inputs, output):
    _, ends, packed, ctx.shape, ctx.transposed = inputs
    ctx.save_for_backward(ends, *packed)


def _autograd_nf4(ctx, grad):
    ends, *packed = ctx.saved_tensors
    grad_x = torch.ops.qlora.nf4_grouped_backward(grad, ends, packed, ctx.shape, ctx.transposed)
    return grad_x, None, [None] * len(packed), None, None


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _autograd(ctx, grad):
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    return grouped(grad, weight.mT, ends), torch.ops.qlora.grouped_weight_grad(x, grad, ends), None


for name, function in (
    ("grouped", _grouped),
    ("grouped_weight_grad", _grouped_weight_grad),
    ("nf4_grouped", _nf4_grouped),
    ("nf4_grouped_backward", _nf4_grouped_backward),
):
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")


@torch.library.register_fake("qlora::grouped", lib=LIBRARY)
def _(x, weight, ends):
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.register_fake("qlora::grouped_weight_grad", lib=LIBRARY)
def _(x, grad, ends):
    return x.new_empty(ends.shape[0], x.shape[1], grad.shape[1])


@torch.library.register_fake("qlora::nf4_grouped", lib=LIBRARY)
def _(x, ends, packed, shape, transposed):
    return x.new_empty(x.shape[0], shape[2] if transposed else shape[1])


@torch.library.register_fake("qlora::nf4_grouped_backward", lib=LIBRARY)
def _(grad, ends, packed, shape, transposed):
    return grad.new_empty(grad.shape[0], shape[1] if transposed else shape[2])


torch.library.register_autograd("qlora::grouped", _autograd, setup_context=_keep, lib=LIBRARY)
torch.library.register_autograd("qlora::nf4_grouped", _autograd_nf4, setup_context=_keep_nf4, lib=LIBRARY)
ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
