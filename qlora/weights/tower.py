"""The text tower of a multimodal model, as the causal language model that is trained, merged and scored.

A multimodal model holds its text model beside a vision or audio model (`model.language_model` beside
`model.vision_tower`). Only the text model is loaded here: images take no part in training on text, and the tower
computes the same logits for text. A model without towers is its own.

Three kinds of names: the files' (old repositories: `language_model.model.layers.0`), the whole model's, under which
PEFT and vLLM look for an adapter (`model.language_model.layers.0`), and the tower's (`model.layers.0`).
"""

from dataclasses import dataclass
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.weights import experts
from qlora.weights.files import shards, tensor_names

import torch
import transformers
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

# Towers without a causal language model of their own. Their rotary embeddings take three positions, which are equal for
# text and then are the plain model's.
PLAIN = {"qwen2_vl_text": Qwen2Config, "qwen2_5_vl_text": Qwen2Config, "qwen3_vl_text": Qwen3Config}
MULTIMODAL_ROTARY = {"mrope_section", "mrope_interleaved"}
DECODER, HEAD = "model", "lm_head"  # the parts of a causal language model


def is_tower(folder: Path) -> bool:
    """Whether the model in `folder` holds its text model beside others."""
    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return whole.get_text_config() is not whole


def config_of(folder: Path) -> PreTrainedConfig:
    """The config of the text tower of the model in `folder`. Only config.json is read."""
    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = whole.get_text_config()
    if text is whole:
        return whole
    text.dtype = text.dtype or whole.dtype
    text.tie_word_embeddings = whole.tie_word_embeddings
    return _plain(text) if text.model_type in PLAIN else text


def _plain(text: PreTrainedConfig) -> PreTrainedConfig:
    fields = {name: value for name, value in text.to_dict().items() if name != "model_type"}
    rotary = {name: value for name, value in fields["rope_parameters"].items() if name not in MULTIMODAL_ROTARY}
    if rotary["rope_type"] == "mrope":
        rotary["rope_type"] = "default"
    return PLAIN[text.model_type](**fields | {"rope_parameters": rotary})


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of `config` without weights.

    Raises:
        ValueError, KeyError: if transformers has none.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def prefixes(folder: Path) -> dict[str, str]:
    """Where the tower's decoder and head are in the whole model, by their names in the tower."""
    return _prefixes(_whole_on_meta(folder))


def _prefixes(whole: PreTrainedModel) -> dict[str, str]:
    paths = {id(module): name for name, module in whole.named_modules()}
    return {DECODER: paths[id(whole.get_decoder())], HEAD: paths[id(whole.get_output_embeddings())]}


def _whole_on_meta(folder: Path) -> PreTrainedModel:
    """The model in `folder` with all its towers, without weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.get_text_config() is config:
        return on_meta(config)
    name = (config.architectures or [""])[0]
    model_class = getattr(transformers, name, None) or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        return model_class._from_config(config)


def in_whole(name: str, prefixes: dict[str, str]) -> str:
    """The whole model's name of the tower's parameter or module `name`."""
    part, dot, rest = name.partition(".")
    return prefixes[part] + dot + rest


def in_tower(name: str, prefixes: dict[str, str]) -> str | None:
    """The tower's name of the whole model's parameter or module `name`; None if it is outside the tower."""
    for part, path in prefixes.items():
        if name.startswith(f"{path}."):
            return part + name.removeprefix(path)
    return None


def names_in_files(folder: Path) -> dict[str, str]:
    """The tower's name of each tensor in the model's files; those outside the tower are left out.

    Several tensors have one name if transformers joins them on loading (experts).

    Raises:
        Refusal: if the files lack a weight of the tower; transformers would make up a random one.
    """
    tower = on_meta(config_of(folder))
    found = {source.file_name: source.name for source in sources(folder)}
    needed = {name for name, _ in tower.named_parameters()} - {f"{HEAD}.weight"}  # it may be the embeddings' own
    if missing := sorted(needed - set(found.values())):
        raise Refusal(f"{folder}: no file holds {missing[0]} (of {len(missing)}), which config.json asks for")
    return found


@dataclass(frozen=True)
class Source:
    """A tensor in a model's files, from which transformers makes a parameter, or a part of it.

    Attributes:
        file_name: Its name in the files.
        name: The parameter's, in the tower.
        whole_name: The parameter's, in the whole model.
        pattern: The pattern of `converter` that the name matches; None without.
        converter: Joins the tensors of a parameter (experts), or changes the one; None if that is the parameter itself.
        whole: The whole model without weights, for the converter.
    """

    file_name: str
    name: str
    whole_name: str
    pattern: str | None
    converter: WeightConverter | None
    whole: PreTrainedModel


def sources(folder: Path) -> list[Source]:
    """The tensors in the files of the model in `folder`, but for those outside the tower."""
    whole = _whole_on_meta(folder)
    conversions = get_model_conversion_mapping(whole)
    if experts.is_mxfp4(whole.config):
        conversions += experts.mxfp4_conversions()
    joining = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    renaming = [conversion for conversion in conversions if conversion not in joining]
    by_pattern = {pattern: converter for converter in joining for pattern in converter.source_patterns}
    expected, wanted = whole.state_dict(), on_meta(config_of(folder)).state_dict()
    parts, found = _prefixes(whole), []
    for file_name in (name for shard in shards(folder) for name in tensor_names(shard)):
        whole_name, pattern = rename_source_key(file_name, renaming, joining, whole.base_model_prefix, expected)
        if whole_name not in expected and file_name in expected:  # named as the parameter already
            whole_name, pattern = file_name, None
        name = in_tower(whole_name, parts)
        if name in wanted:
            found.append(Source(file_name, name, whole_name, pattern, by_pattern.get(pattern), whole))
    return found


def key_mapping(folder: Path) -> dict[str, str]:
    """How transformers is to rename the files' tensors to load the tower: patterns, and what replaces them."""
    if not is_tower(folder):
        return {}
    mapping = {}
    for file_name, name in names_in_files(folder).items():
        if name in (f"{DECODER}.embed_tokens.weight", f"{HEAD}.weight") and file_name != name:
            rest = _common_end(file_name, name)
            mapping["^" + file_name.removesuffix(rest).replace(".", r"\.")] = name.removesuffix(rest)
    return mapping


def _common_end(a: str, b: str) -> str:
    """The longest common end of two dotted names, from a dot or the beginning of a name on."""
    parts = []
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        parts.insert(0, x)
    return ".".join(parts)
