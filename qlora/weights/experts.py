"""Experts in 4 bits. Where transformers holds all experts of a layer in one 3-D parameter, bitsandbytes' layers do not
reach: they replace linear layers only. Here such a parameter is quantized as it is read, so that no more than one is
ever in memory in 16 bits, and becomes bitsandbytes' own parametrization: an attribute that dequantizes on access.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qlora.runtime.console import Refusal

import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from peft.utils import transformers_weight_conversion
from torch import nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from transformers import Mxfp4Config, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name


def of_model(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold a layer's experts in 3-D parameters, by name."""
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def is_experts(module: nn.Module) -> bool:
    """Whether the module holds all experts of a layer (transformers' `use_experts_implementation` marks it)."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def weights_of(experts: nn.Module) -> tuple[str, str]:
    """Names of its two 3-D parameters, in the order in which tokens pass them."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def parameters_of(model: nn.Module) -> Iterator[str]:
    """Names of all 3-D parameters of experts."""
    for name, module in of_model(model).items():
        yield from (f"{name}.{weight}" for weight in weights_of(module))


def gates(model: nn.Module) -> list[str]:
    """Linear layers beside experts that weight them (a router, the gate of a shared expert); they stay in 16 bits.

    A router decides which weights a token meets, so its rounding would cost more than that of any other tensor.
    """
    found = []
    for name, module in of_model(model).items():
        block = name.rpartition(".")[0]
        for inner, layer in model.get_submodule(block).named_modules():
            if isinstance(layer, nn.Linear) and layer.out_features <= module.num_experts < layer.in_features:
                found.append(f"{block}.{inner}")
    return found


def check_routing(model: PreTrainedModel) -> None:
    """Raise Refusal if llama.cpp would weight the experts otherwise than config.json says.

    It does not read norm_topk_prob, whether the weights of a token's experts are scaled to a sum of 1, for these
    architectures, but has the value of their own repositories built in.
    """
    built_in = {"qwen2_moe": False, "qwen3_moe": True, "olmoe": False}.get(model.config.model_type)
    if built_in is not None and model.config.norm_topk_prob != built_in:
        raise Refusal(
            f"model.id: config.json sets norm_topk_prob to {str(not built_in).lower()}, and llama.cpp computes "
            f"{model.config.model_type} with {str(built_in).lower()} only: a GGUF would answer otherwise than the model"
        )


def quant_state(experts: nn.Module, weight: str) -> QuantState | None:
    """How this parameter is quantized; None if it is not."""
    if not hasattr(experts, "parametrizations") or weight not in experts.parametrizations:
        return None
    return experts.parametrizations[weight][0].quant_state


def quant_states(model: nn.Module) -> dict[str, QuantState]:
    """How the experts' parameters that are in 4 bits are quantized, by name."""
    return {
        f"{name}.{weight}": state
        for name, module in of_model(model).items()
        for weight in weights_of(module)
        if (state := quant_state(module, weight))
    }


def quantize(experts: nn.Module, weight: str, codes: torch.Tensor, state: QuantState) -> None:
    """Make the parameter one of 4-bit codes, as `bitsandbytes.nn.parametrize.replace_parameter_4bit` does."""
    setattr(experts, weight, nn.Parameter(codes, requires_grad=False))
    register_parametrization(experts, weight, Bnb4bitParametrization(state), unsafe=True)


def replace(experts: nn.Module, weight: str, value: torch.Tensor) -> torch.Tensor:
    """Replace a parameter of 4-bit codes by a plain one; return the codes."""
    codes = experts.parametrizations[weight].original.data
    remove_parametrizations(experts, weight, leave_parametrized=False)
    setattr(experts, weight, nn.Parameter(value, requires_grad=False))
    return codes


def dequantize(model: PreTrainedModel, decode: Callable[[torch.Tensor, QuantState], torch.Tensor]) -> None:
    """Replace the experts' 4-bit parameters by plain ones with the weights that `decode` makes of codes and state."""
    for module in of_model(model).values():
        for weight in weights_of(module):
            if state := quant_state(module, weight):
                replace(module, weight, decode(module.parametrizations[weight].original.data, state))
    if of_model(model):
        model.set_experts_implementation(None)  # transformers' default


@contextmanager
def shown_to_peft(model: nn.Module) -> Iterator[None]:
    """Let PEFT add an adapter to `model` inside of this context.

    PEFT names the factors of a parameter by the order in which it finds a module's parameters, and finds 4-bit ones in
    another order than plain ones. Here it finds plain ones without memory. It also takes the names of linear layers for
    those of experts of old releases of transformers, and would adapt other tensors than it was asked for; not here.
    """
    hidden = []
    convert = transformers_weight_conversion.convert_peft_config_for_transformers
    for module in of_model(model).values():
        for weight in weights_of(module):
            if state := quant_state(module, weight):
                device = module.parametrizations[weight].original.device
                blank = torch.empty((), dtype=state.dtype, device=device).expand(state.shape)
                hidden.append((module, weight, replace(module, weight, blank), state))
    if of_model(model):
        transformers_weight_conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = convert
        for hidden_one in hidden:
            quantize(*hidden_one)


# Loading


def is_mxfp4(config: PreTrainedConfig | dict) -> bool:
    """Whether the files hold experts in MXFP4 (gpt-oss): 4-bit floats, and a power of 2 for each 32 of them.

    Such weights are exact in bfloat16, so they are base weights like any others.
    """
    config = config if isinstance(config, dict) else config.to_dict()
    return (config.get("quantization_config") or {}).get("quant_method") == "mxfp4"


def mxfp4_conversions() -> list[WeightConverter]:
    """How transformers makes experts in bfloat16 from MXFP4's codes and scales."""
    return Mxfp4HfQuantizer(Mxfp4Config(dequantize=True)).get_weight_conversions()


class Quantize(ConversionOps):
    """Quantizes a tensor as transformers loads it, when its parts in the files have been joined."""

    def __init__(self, quantizer: "Quantizer"):
        self.quantizer = quantizer
        self.linear = Bnb4BitHfQuantizer.get_quantize_ops(quantizer)

    def convert(self, input_dict: dict, model: PreTrainedModel | None = None, **kwargs) -> dict[str, torch.Tensor]:
        ((name, value),) = input_dict.items()
        if not is_experts(get_module_from_name(model, name)[0]):
            return self.linear.convert(input_dict, model=model, **kwargs)
        config = self.quantizer.quantization_config
        codes, state = quantize_4bit(
            (value[0] if isinstance(value, list) else value).to(config.bnb_4bit_compute_dtype).contiguous(),
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
        self.quantizer.states[name] = state
        return {name: nn.Parameter(codes, requires_grad=False)}


class Quantizer(Bnb4BitHfQuantizer):
    """transformers' loader for bitsandbytes' 4 bits, which also quantizes experts and reads experts in MXFP4."""

    def __init__(self, quantization_config, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self.states: dict[str, QuantState] = {}

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        module, name = get_module_from_name(model, param_name)
        if is_experts(module):
            return name in weights_of(module)
        return super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> Quantize:
        return Quantize(self)

    def get_weight_conversions(self) -> list:
        if self.pre_quantized:
            return super().get_weight_conversions()
        return mxfp4_conversions()  # the loader casts their bytes first: numbers up to 255 are exact in bfloat16

    def _process_model_after_weight_loading(self, model, **kwargs):
        for name, state in self.states.items():
            module, weight = get_module_from_name(model, name)
            quantize(module, weight, getattr(module, weight).data, state)
        self.states.clear()
        return super()._process_model_after_weight_loading(model, **kwargs)


AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = Quantizer
