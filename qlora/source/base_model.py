"""The base model's files: in the hub's cache, in a local folder, or embedded in a package."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora.recipe.artifacts import BASE_RECORD
from qlora.recipe.schema import Model
from qlora.runtime.console import Refusal
from qlora.source import embedded_model, hub
from qlora.weights.files import INDEX, shards

from tqdm import tqdm

# Weights as safetensors only: a pickle can run code when it is loaded.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt", "README.md"]


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
    if not (folder / "config.json").is_file():
        raise Refusal(f"model.id: {model.id} has no config.json, so it is not a transformers model")
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise Refusal(f"model.id: {model.id} is quantized already; take its full-precision original")
    if not list(folder.glob("*.safetensors")):
        raise Refusal(
            f"model.id: {model.id} has no .safetensors file; pickled weights (.bin, .pt) are refused because loading "
            "one can run code: convert it with transformers' save_pretrained first"
        )
    if missing := [path.name for path in shards(folder) if not path.is_file()]:
        raise Refusal(f"model.id: {model.id} lacks {', '.join(missing)}, which its {INDEX} names; add them")
    return folder


def describe(model: Model, folder: Path) -> dict:
    """The record that stands for the model in DVC: name, commit, licence, and size and SHA-256 of each file."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="hashing", unit="B", unit_scale=True) as bar, ThreadPoolExecutor() as pool:
        digests = pool.map(lambda path: _sha256(path, bar), paths)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    return {"id": model.id, "revision": model.revision, "licence": _licence(model, folder), "files": files}


def _licence(model: Model, folder: Path) -> str | None:
    """The licence that the model's card names; None if there is no card or it names none."""
    from huggingface_hub import metadata_load

    if model.is_embedded:
        return "apache-2.0"
    card = folder / "README.md"
    return (metadata_load(card) or {}).get("license") if card.is_file() else None


def locate(record_folder: Path) -> Path:
    """The folder of the model that `record_folder`/base.json describes, fetched again if this machine lacks it.

    Raises:
        Refusal: if a file's size is not the recorded one.
    """
    record = json.loads((record_folder / BASE_RECORD).read_text(encoding="utf-8"))
    folder = fetch(Model(id=record["id"], revision=record["revision"]))
    for name, file in record["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else "no"
        if size != file["size"]:
            raise Refusal(
                f"{record['id']}: {name} has {size} bytes where models/base/{BASE_RECORD} recorded {file['size']}; "
                "if the model was changed on purpose run `dvc repro --force fetch-base`, else restore it"
            )
    return folder


def _sha256(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            with bar.get_lock():  # other threads hash other files
                bar.update(len(block))
    return digest.hexdigest()
