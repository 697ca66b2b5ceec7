"""The base model without weights, and whether it is built as this pipeline trains models."""

from pathlib import Path

from qlora.recipe.schema import Evaluate, Train
from qlora.runtime.console import Refusal
from qlora.weights import experts, tower

import torch
from transformers import PreTrainedConfig, PreTrainedModel

LAYERS = "model.layers"  # where the decoder layers are
FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size")
QUANTIZED = 0.5  # of the layers' weights, at least: all but 1 to 2 % where there are no experts


def skeleton(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """The text model without weights (on the meta device): its layers' names and shapes, in a second and no memory.

    A `config` of fewer layers has just those.

    Raises:
        Refusal: if transformers does not know the architecture.
    """
    try:
        return tower.on_meta(config or tower.config_of(folder))
    except (ValueError, KeyError) as error:
        raise Refusal(f"{folder}: transformers cannot build this model: {str(error).splitlines()[0]}") from None


def check(model: PreTrainedModel) -> None:
    """Raise Refusal unless `model` (its skeleton will do) is a stack of decoder layers, linear ones and experts mostly.

    What is counted before training and compiled for it are such layers, and only they are quantized.
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
    quantized = sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, torch.nn.Linear))
    quantized += sum(layers.get_parameter(weight).numel() for weight in experts.parameters_of(layers))
    share = quantized / sum(parameter.numel() for parameter in layers.parameters())
    if share < QUANTIZED:
        raise Refusal(
            f"model.id: {name} would not be quantized: {share:.0%} of its layers' weights are in linear layers or "
            f"experts as transformers' newer models hold them, the others would stay in 16 bits; {advice}"
        )
    experts.check_routing(model)


def mixing_layers(model: PreTrainedModel) -> str:
    """The kind of layers through which rows of one pack would reach each other, if `model` has any; else "".

    Attention is told where a row begins. Convolutions and recurrences (Mamba, gated DeltaNet) are told so only by
    kernels of their own; transformers' plain versions take a pack for one row.
    """
    kinds = {type(parent).__name__ for parent in model.modules() for child in parent.children() if _mixes(child)}
    return ", ".join(sorted(kinds))


def _mixes(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv1d)  # each recurrence has one before it


def without_compiled_form(model: PreTrainedModel) -> str:
    """The kind of layers that cannot be compiled for training, if `model` has any; else ""."""
    return mixing_layers(model)


def kept_plain(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers whose weights are read by a fused kernel, past the layers: Mamba's `out_proj`.

    They stay in 16 bits and take no adapter, which the kernel would leave out. So do those that weight experts.
    """
    return [f"{name}.out_proj" for name, module in model.named_modules() if _is_mamba(module)] + experts.gates(model)


def _is_mamba(module: torch.nn.Module) -> bool:
    """Whether it is a Mamba layer: a convolution with a skip connection D, which other recurrent layers do not have."""
    return hasattr(module, "conv1d") and "D" in dict(module.named_parameters(recurse=False))


def check_length(config: PreTrainedConfig, train: Train, evaluate: Evaluate) -> None:
    """Raise Refusal if rows or answers may be longer than what the model has positions for.

    transformers computes beyond them all the same, badly; llama-server cuts its context there.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions:  # Mamba, for instance
        return
    if train.max_length > positions:
        raise Refusal(
            f"train.max_length: {train.max_length} is more than this model's {positions} positions (config.json, "
            f"max_position_embeddings); set it to at most {positions}"
        )
    if evaluate.max_new_tokens >= positions:
        raise Refusal(
            f"evaluate.max_new_tokens: {evaluate.max_new_tokens} leaves no room for a prompt in this model's "
            f"{positions} positions (config.json, max_position_embeddings)"
        )
