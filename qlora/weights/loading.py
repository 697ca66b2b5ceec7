"""Load models: as training holds them, for training and for scoring the adapter, or plain."""

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora.kernels.nf4_experts import use_fast_experts
from qlora.recipe.schema import Lora, Quantization
from qlora.runtime.console import Refusal
from qlora.runtime.machine import available_memory
from qlora.weights import experts, quantized, tower
from qlora.weights.architecture import kept_plain, skeleton
from qlora.weights.files import shards, tensor_names

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Mxfp4Config, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

if TYPE_CHECKING:
    from peft import PeftModel


def quantization_config(
    quantization: Quantization, sharded: bool = False, unquantized: Sequence[str] = ()
) -> BitsAndBytesConfig:
    """QLoRA's storage: 4-bit blocks, doubly quantized scales (Dettmers et al. 2023, arXiv:2305.14314, section 3).

    FSDP shards floating point tensors only, so with `sharded` the codes are stored as float32 words. Shorter words
    would be corrupted: FSDP copies them through float32 on a GPU, which turns every word that reads as NaN into the
    same NaN. In bfloat16 that is one word in 1,300, an error half as large as that of quantization.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_quant_storage=torch.float32 if sharded else torch.uint8,
        llm_int8_skip_modules=[*unquantized, "lm_head"] if unquantized else None,  # None: by default the head
    )


def load_base(
    folder: Path,
    quantization: Quantization,
    attention: str | None = None,
    config: PreTrainedConfig | None = None,
    sharded: bool = False,
) -> PreTrainedModel:
    """Load the model in `folder` as training holds it, on this process's GPU if there is one.

    Linear layers and experts are in 4 bits, or in the compute dtype if quantization.type is none.

    PEFT's `prepare_model_for_kbit_training` is left out: it casts norms, embeddings and head to float32, which costs
    gigabytes and time, and is not needed when everything else is bfloat16.

    Args:
        folder: A transformers folder.
        quantization: Type, double quantization and compute dtype.
        attention: The attention implementation; by default the one that suits the model.
        config: Load the layers of this config only, if it has fewer.
        sharded: FSDP will shard the model: keep it in the CPU's memory, so that no GPU ever holds all of it.

    Raises:
        Refusal: if the weights cannot be read.
    """
    on_gpu = torch.cuda.is_available() and not sharded
    options = {
        "dtype": getattr(torch, quantization.compute_dtype),
        "device_map": {"": torch.cuda.current_device() if on_gpu else "cpu"},
    }
    if not quantization.in_4_bits:
        return _load(folder, config, attention, **options)
    unquantized = kept_plain(skeleton(folder, config))
    options["quantization_config"] = quantization_config(quantization, sharded, unquantized)
    model = _load(folder, config, attention, **options)
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            # On some CPUs bitsandbytes repacks the weights for inference and does not undo that for training: after
            # the first validation gradients would be wrong and steps ten times slower.
            layer.support_avx512bf16_for_cpu = False
    use_fast_experts(model)
    return model


def dequantize(model: PreTrainedModel) -> bool:
    """Replace each 4-bit layer of `model` by a plain one with the dequantized weights, if the memory holds them.

    For generating, which reads every weight for every token and would dequantize it every time. If the memory does not
    hold them nothing changes: the model is slower and computes the same numbers.

    Returns:
        Whether the layers were replaced.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
    needed = 0
    for layer in layers.values():
        needed += layer.in_features * layer.out_features * layer.compute_dtype.itemsize
    for state in experts.quant_states(model).values():
        needed += math.prod(state.shape) * state.dtype.itemsize
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory()
    if needed * 1.2 > free:
        return False
    for name, layer in layers.items():
        weight = quantized.dequantize(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    experts.dequantize(model, quantized.dequantize)
    return True


def load_plain(folder: Path, dtype: torch.dtype, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Load the model in `folder` without quantization, on the GPU if it fits there with a tenth to spare.

    With a `config` of fewer layers only those are loaded. Raises Refusal if the weights cannot be read.
    """
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > plain_bytes(folder, dtype, config)
    return _load(folder, config, None, dtype=dtype, device_map={"": torch.cuda.current_device() if fits else "cpu"})


def plain_bytes(folder: Path, dtype: torch.dtype, config: PreTrainedConfig | None = None) -> int:
    """Bytes that the model in `folder` takes in `dtype` without quantization, plus a tenth to spare.

    With a `config` of fewer layers only those are counted.
    """
    return int(1.1 * dtype.itemsize * sum(parameter.numel() for parameter in skeleton(folder, config).parameters()))


def load_adapter(model: PreTrainedModel, adapter: Path, base: Path) -> "PeftModel":
    """The model of the folder `base` with the adapter, cast to the dtype in which training multiplies.

    PEFT's default, float32, would take 1.5 times as long. Raises Refusal if it does not fit.
    """
    from qlora.weights import adapter_names

    from peft import PeftModel  # a second to import, which the plain models do not need

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            names = adapter_names.of_tower(adapter, base)
            with experts.shown_to_peft(model):
                tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False, **names)
    except UserWarning as missing:
        raise Refusal(
            f"{adapter} does not fit this model ({str(missing)[:150]}): run `dvc repro quantize-load-train`"
        ) from None
    use_fast_experts(tuned)
    return tuned


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """The attention implementation that computes what this model defines; None for transformers' default.

    The default, PyTorch's own, silently leaves out the soft cap of Gemma 2's attention scores.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _load(folder: Path, config: PreTrainedConfig | None, attention: str | None, **options) -> PreTrainedModel:
    config = config or tower.config_of(folder)
    if experts.is_mxfp4(config):
        config = copy.deepcopy(config)
        if "quantization_config" in options:
            del config.quantization_config  # `experts.Quantizer` reads MXFP4 itself
        else:
            options["quantization_config"] = Mxfp4Config(dequantize=True)
    options |= {"config": config, "attn_implementation": attention or attention_implementation(config)}
    if tower.is_tower(folder):
        options["key_mapping"] = tower.key_mapping(folder)
        logging.set_verbosity_error()  # or transformers would list the other towers' weights
    try:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    except SafetensorError:  # which does not name the file
        for shard in shards(folder):
            tensor_names(shard)
        raise


def check_target_modules(model: PreTrainedModel, lora: Lora) -> None:
    """Raise Refusal unless each of lora.target_modules names a linear layer of `model`, and lora.experts fits it."""
    if lora.experts and not experts.of_model(model):
        raise Refusal("lora.experts: this model has no experts; set it to false")
    if lora.experts and lora.dropout:
        raise Refusal("lora.dropout: PEFT adapts experts without dropout; set it to 0, or lora.experts to false")
    if lora.target_modules == "all-linear":
        return
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linear.discard("lm_head")  # trl reads its weight directly, so an adapter on it would never be trained
    linear -= {name.split(".")[-1] for name in kept_plain(model)}
    unknown = [name for name in lora.target_modules if name.split(".")[-1] not in linear]
    if unknown:
        raise Refusal(
            f"lora.target_modules: this model has no linear layer {', '.join(unknown)}; it has "
            f"{', '.join(sorted(linear))}{'; lora.experts adapts its experts' if experts.of_model(model) else ''}"
        )
