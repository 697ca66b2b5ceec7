"""Find and run llama.cpp's official tools.

`find` says where they are; `convert`, `imatrix` and `quantize` run one to its end.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qlora.runtime import machine
from qlora.runtime.console import Refusal
from qlora.runtime.machine import cpu_count

from tqdm import tqdm

VERSION = "0.3.36"  # of llama-cpp-python; its source distribution contains the tree of llama.cpp
TOOLS = ("llama-quantize", "llama-imatrix", "llama-perplexity", "llama-server")
CONVERTER = "convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Tools:
    """Where the tools are; `converter` is None if llama.cpp was installed without it."""

    quantize: Path
    imatrix: Path
    perplexity: Path
    server: Path
    converter: Path | None


def find() -> Tools:
    """Find the tools: in LLAMA_CPP_DIR (a checkout, its build or its binaries), on PATH, or in the cache.

    Raises:
        Refusal: naming `make llama.cpp` if they are nowhere, or LLAMA_CPP_DIR if that lacks one.
    """
    own = os.environ.get("LLAMA_CPP_DIR")
    if own:
        folders = [Path(own).expanduser() / name for name in ("", "bin", "build/bin")]
    else:
        folders = [
            *map(Path, os.get_exec_path()),
            cache_folder(cuda=bool(machine.gpus())) / "bin",
            cache_folder() / "bin",
        ]
    for folder in folders:
        if all(shutil.which(name, path=str(folder)) for name in TOOLS):
            paths = [folder / name for name in TOOLS]
            return Tools(*paths, converter=_find_converter(folder))
    if own:
        raise Refusal(
            f"LLAMA_CPP_DIR names {own}, which lacks one of {', '.join(TOOLS)} (looked there, in bin/ and in "
            "build/bin/): build them there, or unset it and run `make llama.cpp`"
        )
    raise Refusal(
        "llama.cpp is missing (looked on PATH and in its cache folder): run `make llama.cpp`, which builds it once, "
        "or set LLAMA_CPP_DIR to a llama.cpp of your own"
    )


def _find_converter(binaries: Path) -> Path | None:
    """The converter that belongs to `binaries`, else the one that `make llama.cpp` unpacked."""
    cached = [cache_folder(), cache_folder(cuda=True), converter_folder()]
    for folder in (binaries, *binaries.resolve().parents[:2], *cached):
        if (folder / CONVERTER).is_file():
            return folder / CONVERTER
    return None


def cache_folder(cuda: bool = False) -> Path:
    """The per-user folder, outside every repository, that holds this version's build."""
    return machine.cache_folder(f"llama.cpp-{VERSION}-{'cuda' if cuda else 'cpu'}")


def converter_folder() -> Path:
    """The per-user folder that holds only the converter, for a llama.cpp that was installed without it."""
    return machine.cache_folder(f"llama.cpp-{VERSION}-converter")


def convert(folder: Path, gguf: Path) -> None:
    """Convert the Hugging Face model in `folder` to a bfloat16 GGUF with the official converter.

    Raises:
        Refusal: with the converter's last lines if it fails.
    """
    _run_converter(folder, gguf, "--outtype", "bf16")


def convert_vocabulary(folder: Path, gguf: Path) -> None:
    """Convert only tokenizer and template of `folder` (config.json is read, weights are not): takes seconds.

    Raises:
        Refusal: if llama.cpp does not know the tokenizer, or cannot convert it.
    """
    _run_converter(folder, gguf, "--vocab-only")


def _run_converter(folder: Path, gguf: Path, *options: str) -> None:
    converter = find().converter
    if converter is None:
        raise Refusal(f"llama.cpp was installed without {CONVERTER}: run `make llama.cpp`, which fetches it")
    # The converter's own gguf package goes first, for its subprocess only: the environment's gguf stays as it is.
    environment = os.environ | {"PYTHONPATH": str(converter.parent / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, converter, folder, "--outfile", gguf, *options]
    try:
        run(command, "convert", r"Writing:\s+(\d+)%", total=100, environment=environment)
    except Refusal as refusal:
        text = str(refusal)
        if "BPE pre-tokenizer was not recognized" in text:
            raise Refusal(
                f"llama.cpp does not know the tokenizer in {folder} (its pre-tokenizer is none of those that "
                f"{CONVERTER} recognizes), so no GGUF can be made: choose a base model that llama.cpp supports, or "
                "set LLAMA_CPP_DIR to a newer llama.cpp"
            ) from None
        if unsupported := re.search(r"Model (\w+) is not supported", text):
            raise Refusal(
                f"{folder}: llama.cpp knows no model of the architecture {unsupported[1]}, so no GGUF can be made: "
                "choose another base model, or set LLAMA_CPP_DIR to a newer llama.cpp"
            ) from None
        if re.search(r"(File not found|Missing).*tokenizer\.model", text):
            raise Refusal(
                f"{folder} has no tokenizer.model, from which llama.cpp makes the GGUF of this architecture: take that "
                "file from the model's original repository, or choose another base model"
            ) from None
        raise


def imatrix(model: Path, text: Path, matrix: Path, context: int = 512, threads: int | None = None) -> None:
    """Measure which weights matter for `text` and write the importance matrix that `quantize` uses.

    Args:
        model: The bfloat16 GGUF.
        text: Rendered conversations in UTF-8, at least two contexts long; special tokens are read as such.
        matrix: The file to write.
        context: Tokens a chunk.
        threads: CPU threads; all CPUs that the process may use by default.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    options = ["--parse-special", "--no-ppl", "--ctx-size", context, "--threads", threads or cpu_count()]
    run([find().imatrix, "--model", model, "--file", text, "--output", matrix, *options], "importance matrix")


def quantize(model: Path, quantized: Path, type_: str, matrix: Path | None = None, threads: int | None = None) -> None:
    """Write the GGUF `model` as `quantized`, of type `type_` (Q4_K_M, ...), weighted by the importance matrix if given.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    options = ["--imatrix", matrix] if matrix else []
    command = [find().quantize, *options, model, quantized, type_, threads or cpu_count()]
    run(command, f"quantize {type_}", r"\[\s*(\d+)/\s*(\d+)\]")


def run(
    command: list,
    doing: str,
    step: str | None = None,
    total: int | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Run one tool to its end, showing one progress line.

    Args:
        command: The program and its arguments.
        doing: What it does, in a word or two, for the progress line and for the refusal.
        step: Regular expression of the tool's own progress; group 1 counts, group 2 (or `total`) is the end.
        total: The last count, where `step` has no group 2.
        environment: Of the subprocess; this process's own by default.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    command = [str(part) for part in command]
    output = ""
    mininterval = 0.5 if sys.stderr.isatty() else 30
    with (
        machine.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=environment) as process,
        tqdm(desc=doing, total=total, mininterval=mininterval, bar_format=None if step else "{desc} {elapsed}") as bar,
    ):
        try:
            while block := process.stdout.read1():
                output = (output + block.decode(errors="replace"))[-10_000:]
                if steps := step and re.findall(step, output):
                    count, bar.total = (steps[-1], total) if total else steps[-1]
                    bar.total = int(bar.total)
                    bar.update(int(count) - bar.n)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise Refusal(
            f"{doing}: {Path(command[0]).name} ended with status {process.returncode}; its last lines:\n"
            f"{last_lines(output)}"
        )


def last_lines(text: str, count: int = 20) -> str:
    """Last `count` lines of `text`, carriage-return progress collapsed."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").strip().split("\n")]
    return "\n".join(lines[-count:])
