"""A transformers folder with a model of a given shape and random weights, in several shards."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from qlora.recipe.schema import EMBEDDED, Model
from qlora.source import base_model

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig

SHARD_BYTES = 5e9


def write(folder: Path, config: PreTrainedConfig, shard_bytes: float = SHARD_BYTES) -> int:
    """Write a bfloat16 model of this shape and the embedded model's tokenizer into `folder`.

    The vocabulary is the larger of the shape's and the tokenizer's. One shard is in memory at a time.

    Returns:
        Number of parameters.
    """
    embedded = base_model.fetch(Model(id=EMBEDDED))
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(embedded / name, folder)
    own = json.loads((embedded / "config.json").read_text())
    config.vocab_size = max(config.vocab_size, own["vocab_size"])
    config.bos_token_id, config.eos_token_id, config.pad_token_id = own["bos_token_id"], own["eos_token_id"], None
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)

    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if name not in tied}
    shards = list(split(shapes, shard_bytes))
    weight_map = {}
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: random(shapes[name], generator) for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(shape.numel() for shape in shapes.values())


def random(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A normally distributed matrix, or a vector of ones (a norm)."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    return tensor.normal_(0, 0.02, generator=generator).cpu()


def split(shapes: dict[str, torch.Size], shard_bytes: float) -> Iterator[list[str]]:
    """Group the names into shards of at most `shard_bytes` in bfloat16."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 2 * shape.numel() > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * shape.numel()
    yield names
