"""Find and run llama.cpp's official tools.

`find` says where they are; `convert`, `imatrix` and `quantize` run one to its end.
"""

import functools
import json
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
CONVERTER, ADAPTER_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"


@dataclass(frozen=True)
class Tools:
    """Where the tools are; a converter is None if llama.cpp was installed without it."""

    quantize: Path
    imatrix: Path
    perplexity: Path
    server: Path
    converter: Path | None
    adapter_converter: Path | None


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
            return Tools(*paths, _find_script(CONVERTER, folder), _find_script(ADAPTER_CONVERTER, folder))
    if own:
        raise Refusal(
            f"LLAMA_CPP_DIR names {own}, which lacks one of {', '.join(TOOLS)} (looked there, in bin/ and in "
            "build/bin/): build them there, or unset it and run `make llama.cpp`"
        )
    raise Refusal(
        "llama.cpp is missing (looked on PATH and in its cache folder): run `make llama.cpp`, which builds it once, "
        "or set LLAMA_CPP_DIR to a llama.cpp of your own"
    )


def _find_script(name: str, binaries: Path) -> Path | None:
    """The script `name` that belongs to `binaries`, else the one that `make llama.cpp` unpacked."""
    cached = [cache_folder(), cache_folder(cuda=True), converter_folder()]
    for folder in (binaries, *binaries.resolve().parents[:2], *cached):
        if (folder / name).is_file():
            return folder / name
    return None


def cache_folder(cuda: bool = False) -> Path:
    """The per-user folder, outside every repository, that holds this version's build."""
    return machine.cache_folder(f"llama.cpp-{VERSION}-{'cuda' if cuda else 'cpu'}")


def converter_folder() -> Path:
    """The per-user folder that holds only the converters, for a llama.cpp that was installed without them."""
    return machine.cache_folder(f"llama.cpp-{VERSION}-converters")


def version() -> str:
    """The version of the tools: what `make llama.cpp` built, or the build and commit that a llama-server names."""
    server = find().server
    if server.parents[1] in (cache_folder(), cache_folder(cuda=True)):
        return f"of llama-cpp-python {VERSION}"
    command = [server, "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=60)
    found = re.search(r"version: (.+)", shown.stdout + shown.stderr)
    return found[1] if found else "unknown"


@functools.cache
def clean_environment() -> dict[str, str]:
    """This process's environment without what would change a tool's settings, or where its server answers.

    llama.cpp reads each option from a variable, too: LLAMA_ARG_CACHE_TYPE_K=q4_0 makes every score worse. What is left
    out is said once.
    """
    ours = ("LLAMA_CPP_DIR", "LLAMA_API_KEY")
    ignored = [name for name in os.environ if name.startswith(("LLAMA_", "GGML_")) and name not in ours]
    if ignored:
        print(f"variables that would change llama.cpp's settings are ignored: {', '.join(ignored)}", file=sys.stderr)
    return {name: value for name, value in os.environ.items() if name not in ignored}


def convert(folder: Path, gguf: Path, name: str, metadata: Path | None = None) -> None:
    """Convert the Hugging Face model in `folder` to a bfloat16 GGUF with the official converter.

    Args:
        folder: Holds weights, config, tokenizer and template.
        gguf: The file to write.
        name: Its general.name.
        metadata: JSON with further keys of the file (general.license, ...).

    Raises:
        Refusal: if llama.cpp cannot convert it, with the reason.
    """
    options = ["--metadata", metadata] if metadata else []
    _run_converter(folder, gguf, "--outtype", "bf16", "--model-name", name, *options, *_without_guesses(folder))


def convert_projector(folder: Path, gguf: Path) -> None:
    """Convert the vision tower of the multimodal model in `folder`, which llama-server takes as --mmproj.

    Raises:
        Refusal: with the converter's last lines if it fails.
    """
    _run_converter(folder, gguf, "--outtype", "bf16", "--mmproj")


def convert_vocabulary(folder: Path, gguf: Path, name: str) -> None:
    """Convert only tokenizer and template of `folder` (config.json is read, weights are not): takes seconds.

    Args and Raises: as `convert`.
    """
    _run_converter(folder, gguf, "--vocab-only", "--model-name", name, *_without_guesses(folder))


def convert_adapter(adapter: Path, base: Path, gguf: Path, type_: str) -> None:
    """Convert the LoRA adapter in the folder `adapter` to a GGUF that llama-server takes as --lora.

    Args:
        adapter: As PEFT saved it.
        base: The base model's folder; only its config is read.
        gguf: The file to write.
        type_: Of its numbers: bf16 or f32.

    Raises:
        Refusal: with the converter's last lines if it fails.
    """
    converter = find().adapter_converter
    if converter is None:
        raise Refusal(f"llama.cpp was installed without {ADAPTER_CONVERTER}: run `make llama.cpp`, which fetches it")
    command = [sys.executable, converter, adapter, "--base", base, "--outfile", gguf, "--outtype", type_]
    run(command, "convert the adapter", environment=_converter_environment(converter))


def _without_guesses(folder: Path) -> list[str]:
    """The option that leaves out layers which guess several tokens ahead.

    They are not trained here, not every repository has them, and the converter takes it for models that can have some.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("text_config", config).get("model_type", "")
    return ["--no-mtp"] if kind.startswith(("qwen3_5", "qwen3_next")) else []


def _converter_environment(converter: Path) -> dict[str, str]:
    """The converter's own gguf package goes first, for its subprocess only: the environment's gguf stays as it is."""
    return clean_environment() | {"PYTHONPATH": str(converter.parent / "gguf-py"), "HF_HUB_OFFLINE": "1"}


def _run_converter(folder: Path, gguf: Path, *options: str) -> None:
    converter = find().converter
    if converter is None:
        raise Refusal(f"llama.cpp was installed without {CONVERTER}: run `make llama.cpp`, which fetches it")
    command = [sys.executable, converter, folder, "--outfile", gguf, *options]
    try:
        run(command, "convert", r"Writing:\s+(\d+)%", total=100, environment=_converter_environment(converter))
    except Refusal as refusal:
        text = str(refusal)
        if "BPE pre-tokenizer was not recognized" in text:
            raise Refusal(
                f"llama.cpp does not know the tokenizer in {folder} (its pre-tokenizer is none of those that "
                f"{CONVERTER} recognizes), so no GGUF can be made: choose a base model that llama.cpp supports, or "
                "set LLAMA_CPP_DIR to a newer llama.cpp"
            ) from None
        if "assert max(tokenizer.vocab.values()) < vocab_size" in text:
            raise Refusal(
                f"{folder}: the tokenizer has tokens beyond config.json's vocab_size, which have no embedding: remove "
                "them, resize the model (transformers' resize_token_embeddings) or, if it is a Gemma, add its "
                "tokenizer.model"
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
        if reason := re.findall(r"^\w+(?:Error|Exception)(?:: .*)?$", text, re.MULTILINE):  # where a traceback ends
            raise Refusal(
                f"llama.cpp's converter cannot convert {folder} ({reason[-1][:200]}): choose another base model, or "
                "set LLAMA_CPP_DIR to a newer llama.cpp"
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


def quantize(
    model: Path,
    quantized: Path,
    type_: str,
    matrix: Path | None = None,
    tensor_types: Path | None = None,
    threads: int | None = None,
) -> None:
    """Write the GGUF `model` as `quantized`, of type `type_` (Q4_K_M, ...), weighted by the importance matrix if given.

    Lines of `tensor_types`, REGEX=TYPE, name tensors that get another type.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    options = ["--imatrix", matrix] if matrix else []
    options += ["--tensor-type-file", tensor_types] if tensor_types else []
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
        environment: Of the subprocess; `clean_environment` by default.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    command = [str(part) for part in command]
    output = ""
    mininterval = 0.5 if sys.stderr.isatty() else 30
    with (
        machine.start(
            command, environment or clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
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
