"""The base model without weights, and whether it is built as this pipeline trains models."""

from pathlib import Path

from qlora.runtime.console import Refusal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

LAYERS = "model.layers"  # where the decoder layers are
FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
QUANTIZED = 0.5  # of the layers' weights, at least: all but 1 to 2 % where there are no experts


def skeleton(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """The model without weights (on the meta device): its layers' names and shapes, in a second and no memory.

    A `config` of fewer layers has just those.

    Raises:
        Refusal: if transformers does not know the architecture.
    """
    try:
        config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise Refusal(f"{folder}: transformers cannot build this model: {str(error).splitlines()[0]}") from None


def check(model: PreTrainedModel) -> None:
    """Raise Refusal unless `model` (its skeleton will do) is a stack of decoder layers that are linear layers mostly.

    What is counted before training and compiled for it are such layers, and 4 bits are for linear layers only: experts
    in tensors of their own would stay in 16.
    """
    name = type(model).__name__
    advice = "choose a model built as Llama is (Mistral, Qwen, Gemma, Phi-3, SmolLM)"
    absent = [field for field in FIELDS if not isinstance(getattr(model.config, field, None), int)]
    if absent:
        raise Refusal(f"model.id: {name} cannot be trained here: its config has no single {absent[0]}; {advice}")
    try:
        layers = model.get_submodule(LAYERS)
    except AttributeError:
        raise Refusal(f"model.id: {name} cannot be trained here: it has no {LAYERS}; {advice}") from None
    for part, module in layers.named_modules():
        if isinstance(module, torch.nn.Conv1d):  # LFM2's; only attention is told where a row begins
            raise Refusal(
                f"model.id: {name} cannot be trained here: {LAYERS}.{part} would mix the rows of a pack; {advice}"
            )
    linear = sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, torch.nn.Linear))
    share = linear / sum(parameter.numel() for parameter in layers.parameters())
    if share < QUANTIZED:
        raise Refusal(
            f"model.id: {name} would not be quantized: {share:.0%} of its layers' weights are in linear layers, which "
            f"4 bits are for, the others (a mixture of experts has them) would stay in 16 bits; {advice}"
        )
