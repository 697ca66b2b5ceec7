"""The base model's files: in the hub's cache, in a local folder, or embedded in a package."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qlora.recipe.artifacts import BASE_RECORD, find
from qlora.recipe.schema import Model
from qlora.runtime.console import Refusal
from qlora.runtime.inputs import made_by, read_json
from qlora.source import embedded_model, hub
from qlora.weights.files import INDEX, shards

from tqdm import tqdm

if TYPE_CHECKING:  # transformers takes seconds to import
    from qlora.rows.chat import Chat

# Weights as safetensors only: a pickle can run code when it is loaded.
SETTINGS = ["*.json", "*.model", "*.jinja", "*.txt", "README.md"]
HUB_FILES = ["*.safetensors", *SETTINGS]


def fetch_settings(model: Model) -> Path:
    """Make config, tokenizer and template of `model` available on this machine, and its weights only if they are no
    download of their own; return their folder.

    Raises:
        Refusal: what is missing (folder, network, licence, token) and what to do about it.
    """
    if model.is_embedded or model.is_local:
        return fetch(model)
    return _checked(model, hub.download("model", model.id, model.revision, SETTINGS))


def fetch(model: Model) -> Path:
    """Make the files of `model` available on this machine and return their folder.

    Raises:
        Refusal: what is missing (folder, network, licence, token, safetensors) and what to do about it.
    """
    if model.is_embedded:
        folder = embedded_model.fetch()
    elif model.is_local:
        # Relative to the person's repository, also if DVC runs the stage in a temporary copy of it.
        folder = Path(os.environ.get("DVC_ROOT", ".")) / Path(model.id).expanduser()
        if not folder.is_dir():
            raise Refusal(f"model.id: there is no folder {model.id}; name one that holds config.json and safetensors")
    else:
        folder = hub.download("model", model.id, model.revision, HUB_FILES)
    _checked(model, folder)
    if not list(folder.glob("*.safetensors")):
        raise Refusal(
            f"model.id: {model.id} has no .safetensors file; pickled weights (.bin, .pt) are refused because loading "
            "one can run code: convert it with transformers' save_pretrained first"
        )
    if missing := [path.name for path in shards(folder) if not path.is_file()]:
        raise Refusal(f"model.id: {model.id} lacks {', '.join(missing)}, which its {INDEX} names; add them")
    return folder


def _checked(model: Model, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise Refusal(f"model.id: {model.id} has no config.json, so it is not a transformers model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = config.get("quantization_config")
    # gpt-oss's own repositories hold its experts in MXFP4, and there is no other original.
    if stored and (stored.get("quant_method"), config.get("model_type")) != ("mxfp4", "gpt_oss"):
        raise Refusal(f"model.id: {model.id} is quantized already; {original(model.id, stored.get('quant_method'))}")
    return folder


def original(name: str, method: str | None) -> str:
    """Which repository to take instead of one that is quantized, as far as its name tells."""
    if method == "fp8" and name.startswith("mistralai/") and "Instruct" in name:  # Ministral 3 ships both
        return f"its 16-bit original is {name}-BF16: set model.id to that, and model.revision to its commit"
    if name.upper().endswith(("-FP8", "-GPTQ", "-AWQ")):
        return f"its full-precision original may be {name.rpartition('-')[0]}"
    return "take its full-precision original"


def describe(model: Model, folder: Path) -> dict:
    """The record that stands for the model in DVC: the recipe's section, the licence, each file's size and SHA-256."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="hashing", unit="B", unit_scale=True) as bar, ThreadPoolExecutor() as pool:
        digests = pool.map(lambda path: _sha256(path, bar), paths)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    return {**model.model_dump(), "licence": _licence(model, folder), "files": files}


def _licence(model: Model, folder: Path) -> str | None:
    """The licence that the model's card names; None if there is no card or it names none."""
    from huggingface_hub import metadata_load

    if model.is_embedded:
        return "apache-2.0"
    card = folder / "README.md"
    return (metadata_load(card) or {}).get("license") if card.is_file() else None


def recorded(record_folder: Path) -> Model:
    """The recipe's section that `record_folder`/base.json was made from."""
    record = _record(record_folder)
    with made_by(find(record_folder.name).stage, record_folder / BASE_RECORD):
        return Model(**{field: record[field] for field in Model.model_fields if field in record})


def licence(record_folder: Path) -> str | None:
    """The base model's licence as its own files name it; None if they do not."""
    return _record(record_folder).get("licence")


def load_chat(record_folder: Path) -> "Chat":
    """Tokenizer and template of the model that `record_folder`/base.json describes, as they are trained and served."""
    from qlora.source import tokenizer

    return tokenizer.settled(locate(record_folder), recorded(record_folder))[0]


def locate(record_folder: Path) -> Path:
    """The folder of the model that `record_folder`/base.json describes, fetched again if this machine lacks it.

    Raises:
        Refusal: if there is no record, or a file's size is not the recorded one.
    """
    model = recorded(record_folder)
    folder = fetch(model)
    with made_by(find(record_folder.name).stage, record_folder / BASE_RECORD):
        sizes = {name: file["size"] for name, file in _record(record_folder)["files"].items()}
    for name, recorded_size in sizes.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else "no"
        if size != recorded_size:
            raise Refusal(
                f"{model.id}: {name} has {size} bytes where models/base/{BASE_RECORD} recorded {recorded_size}; "
                f"{_repair(model, path)}"
            )
    return folder


def _repair(model: Model, path: Path) -> str:
    """How to get the recorded file `path` of `model` back, as advice."""
    if model.is_local:
        return (
            "put the recorded file back, or, if the model was changed on purpose, run `dvc repro --force --single-item "
            "fetch-base`"
        )
    damaged = path.parent if model.is_embedded else path.resolve()  # the cache's file, not the link to it
    return f"run `rm -r '{damaged}'`, and the same again, which fetches it anew"


def _record(record_folder: Path) -> dict:
    return read_json(record_folder / BASE_RECORD, find(record_folder.name).stage)


def _sha256(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            with bar.get_lock():  # other threads hash other files
                bar.update(len(block))
    return digest.hexdigest()
