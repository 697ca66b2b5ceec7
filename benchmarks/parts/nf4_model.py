"""A model of a given shape with random weights in double-quantized NF4, made on its device without a folder."""

from qlora.kernels.nf4_experts import use_fast_experts
from qlora.recipe.schema import Quantization
from qlora.weights import experts
from qlora.weights.loading import quantization_config

import torch
from accelerate import init_empty_weights
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def random_model(
    config: PreTrainedConfig, attention: str, device: torch.device, sharded: bool = False
) -> PreTrainedModel:
    """A model with NF4 linear layers and experts on `device`, equal in every call.

    With `sharded` (FSDP) each layer is made on `device` and moved to the CPU's memory.
    """
    generator = torch.Generator(device).manual_seed(0)
    quantizer = experts.Quantizer(quantization_config(Quantization(), sharded), pre_quantized=False)
    with init_empty_weights():  # buffers are real
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    quantizer.preprocess_model(model, device_map={"": device})
    fused = set(experts.parameters_of(model))
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            value = value.fill_(1) if value.dim() == 1 else value.normal_(0, 0.02, generator=generator)
            if f"{path}.{name}" in fused:
                experts.quantize(module, name, *quantize_4bit(value, quant_type="nf4", compress_statistics=True))
            elif isinstance(module, Linear4bit) and name == "weight":
                storage = module.quant_storage
                quantized = Params4bit(
                    value, requires_grad=False, quant_type="nf4", quant_storage=storage, module=module
                )
                module.weight = quantized._quantize(device)
                if sharded:
                    module.weight.data = module.weight.data.cpu()
            else:
                setattr(module, name, torch.nn.Parameter(value.cpu() if sharded else value))
    model.tie_weights()
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    use_fast_experts(model)
    return model if sharded else model.to(device)
