"""The names in a saved adapter: the whole model's, under which PEFT and vLLM look for them, not the text tower's.

vLLM ignores an adapter with other names in silence.
"""

import json
import re
from pathlib import Path

from qlora.runtime.outputs import write_json
from qlora.weights import tower

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT = "base_model.model."  # before each name


def to_whole(adapter: Path, base: Path) -> None:
    """Rename the adapter in the folder `adapter`, just saved from the text tower of the model in `base`.

    Its target_modules become a pattern, because their last parts name layers of a vision tower, too.
    """
    prefixes = tower.prefixes(base)
    path = prefixes[tower.DECODER]
    if path == tower.DECODER:
        return
    tensors = load_file(adapter / WEIGHTS)
    renamed = {PEFT + tower.in_whole(name.removeprefix(PEFT), prefixes): value for name, value in tensors.items()}
    save_file(renamed, adapter / WEIGHTS, {"format": "pt"})
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    if config.get("target_parameters"):
        config["target_parameters"] = [tower.in_whole(name, prefixes) for name in config["target_parameters"]]
    targets = "|".join(map(re.escape, sorted(config["target_modules"])))
    write_json(adapter / CONFIG, config | {"target_modules": rf"{re.escape(path)}\.(.*\.)?({targets})"})


def read(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, by the names that PEFT gives them on the text tower of the model in `base`."""
    prefixes = tower.prefixes(base)
    tensors = {name.removeprefix(PEFT): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    return {PEFT + (tower.in_tower(name, prefixes) or name): tensor for name, tensor in tensors.items()}


def of_tower(adapter: Path, base: Path) -> dict:
    """PEFT's options to load such an adapter on the text tower: its config, and how to rename its tensors."""
    path = tower.prefixes(base)[tower.DECODER]
    if path == tower.DECODER:
        return {}
    config = LoraConfig.from_pretrained(adapter)
    config.target_modules = config.target_modules.replace(re.escape(path), re.escape(tower.DECODER), 1)
    if config.target_parameters:
        config.target_parameters = [tower.DECODER + name.removeprefix(path) for name in config.target_parameters]
    return {"config": config, "key_mapping": {"^" + re.escape(path): tower.DECODER}}
