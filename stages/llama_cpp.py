"""llama.cpp's official tools: where they are, and running them.

`find` says where converter, quantizer and server are; `convert`, `imatrix` and `quantize` run them to the end, and
`Server` keeps a llama-server alive for a `with` block and asks it for ids, answers and log-probabilities.
"""

import ctypes
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from stages import user_cache
from stages.console import Refusal

VERSION = "0.3.36"  # of the sdist llama-cpp-python, which carries the tree of llama.cpp
TOOLS = ("llama-quantize", "llama-imatrix", "llama-perplexity", "llama-server")
CONVERTER = "convert_hf_to_gguf.py"
SMALLEST_LOGPROB = -103.0  # a float32 probability below exp of this is 0
AHEAD = 8  # ids that one request may score; what follows the first that the model would not choose is lost


@dataclass(frozen=True)
class Tools:
    """Where the tools are; `converter` is None beside a llama.cpp that was installed without it."""

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
        folders = [*map(Path, os.get_exec_path()), cache_folder(cuda=gpu_is_present()) / "bin", cache_folder() / "bin"]
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
    return user_cache.folder(f"llama.cpp-{VERSION}-{'cuda' if cuda else 'cpu'}")


def converter_folder() -> Path:
    """The per-user folder that holds only the converter, for a llama.cpp that was installed without it."""
    return user_cache.folder(f"llama.cpp-{VERSION}-converter")


def gpu_is_present() -> bool:
    """Whether NVIDIA's driver lists a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def cpu_count() -> int:
    """CPUs that this process may use; llama.cpp itself counts those of the machine, which a container may not have."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        text: Rendered conversations, UTF-8; special tokens in it are read as such. At least two contexts long.
        matrix: The file to write.
        context: Tokens a chunk.
        threads: CPU threads; all CPUs that the process may use by default.

    Raises:
        Refusal: with the tool's last lines if it fails.
    """
    options = ["--parse-special", "--no-ppl", "--ctx-size", context, "--threads", threads or cpu_count()]
    run([find().imatrix, "--model", model, "--file", text, "--output", matrix, *options], "importance matrix")


def quantize(model: Path, quantized: Path, type_: str, matrix: Path | None = None, threads: int | None = None) -> None:
    """Write the GGUF `model` as `quantized`, of type `type_` (Q4_K_M, ...), weighed by the importance matrix if given.

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
        start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=environment) as process,
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
    """The last `count` lines of `text`, of what a progress line overwrote only the last state."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").strip().split("\n")]
    return "\n".join(lines[-count:])


def start(command: list[str], environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start `command` so that it ends when this process ends, even by SIGKILL (Linux: parent-death signal)."""
    options["env"] = environment or os.environ
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        options["preexec_fn"] = lambda: prctl(set_parent_death_signal, signal.SIGKILL)
    return subprocess.Popen(command, **options)


@dataclass(frozen=True)
class Completion:
    """An answer of the server.

    tokens: generated ids, without the end-of-generation token; text: the same, decoded; stopped: whether the model
    ended it itself; prompt_tokens: ids of the prompt that were evaluated (not those found in the cache); prompt_ms,
    predicted_ms: time for the prompt (which ends with the first token) and for the generated tokens;
    prompt_length: ids of the prompt; steps: the server's report on each generated id, if it was asked for.
    """

    tokens: list[int]
    text: str
    stopped: bool
    prompt_tokens: int
    prompt_ms: float
    predicted_ms: float
    prompt_length: int
    steps: list[dict]


@dataclass(frozen=True)
class Scored:
    """A token's natural log-probability (full softmax), and the most probable ids with theirs, best first."""

    logprob: float
    top: list[tuple[int, float]]


def _steps(reply: dict) -> list[dict]:
    """What the server reports on each generated id; nothing if it leaves one out, which ends within a character."""
    steps = reply.get("completion_probabilities", [])
    return steps if len(steps) == len(reply["tokens"]) else []


def _agreeing(steps: list[dict], ids: list[int], begin: int, count: int) -> dict[int, Scored]:
    """The scores of as many ids from position `begin` on as the model chose itself, and of the one after them.

    A model that was trained on such answers chooses most of them, so one request scores several.
    """
    scored = {}
    for at, step in zip(range(begin, len(ids)), steps, strict=False):
        given = {top["id"]: top["logprob"] for top in step["top_logprobs"]}
        if ids[at] in given:
            scored[at] = _scored(given[ids[at]], step, count)
        if step["id"] != ids[at]:
            break
    return scored


def _scored(logprob: float, step: dict, count: int) -> Scored:
    # Of a probability too small for a float the server reports the lowest float as logarithm.
    top = [(top["id"], max(top["logprob"], SMALLEST_LOGPROB)) for top in step["top_logprobs"][:count]]
    return Scored(max(logprob, SMALLEST_LOGPROB), top)


class Server:
    """A llama-server for the length of a `with` block, on a free port of the loopback interface.

    It serves `slots` requests at a time; call the methods from that many threads. Each thread keeps to one slot, so
    that a prompt which it sends again is found in that slot's cache.
    """

    def __init__(self, model: Path, context: int, slots: int = 8, threads: int | None = None):
        """Describe the server; `with` starts it.

        Args:
            model: A GGUF file.
            context: Tokens of prompt and answer together, for each slot.
            slots: Requests that are served at a time.
            threads: CPU threads; all CPUs that the process may use by default.
        """
        self.model = model
        self.context = context
        self.slots = slots
        self.threads = threads or cpu_count()
        self._local = threading.local()
        self._slot_numbers = itertools.cycle(range(slots))

    def __enter__(self) -> "Server":
        """Start it and wait until it is ready.

        Raises:
            Refusal: with the end of its log if it ends before.
        """
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        options = {
            "--model": self.model,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--ctx-size": self.context * self.slots,
            "--parallel": self.slots,
            "--threads": self.threads,
            "--cache-ram": 0,  # a second cache of whole prompts, gigabytes by default
        }
        arguments = [str(part) for pair in options.items() for part in pair]
        # A last message of the assistant is rendered as a whole message, as in training, not as one to go on with.
        arguments.append("--no-prefill-assistant")
        self._log = tempfile.TemporaryFile()
        self._process = start([str(find().server), *arguments], stdout=self._log, stderr=subprocess.STDOUT)
        self.pid = self._process.pid
        try:
            while not self._is_ready():
                self._check_alive()
                time.sleep(0.05)
            self._plain_id = self.tokenize("a")[-1]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Ids of `text`, special tokens in it read as such; with `add_special` also the BOS that the model adds."""
        return self._post("/tokenize", {"content": text, "add_special": add_special, "parse_special": True})["tokens"]

    def apply_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`messages` rendered with the chat template in the GGUF, as /v1/chat/completions renders them."""
        body = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return self._post("/apply-template", body)["prompt"]

    def complete(self, prompt_ids: list[int], max_tokens: int, reuse: bool = True, count: int = 0) -> Completion:
        """Answer greedily, until the model ends its turn or `max_tokens` ids are generated.

        With `reuse`, the start of the prompt that the slot's cache holds is not evaluated again. With `count`, the
        `count` most probable ids are reported at each step.
        """
        reply = self._generate(prompt_ids, max_tokens, cache_prompt=reuse, n_probs=count)
        timings = reply["timings"]
        stopped = reply["stop_type"] == "eos"
        return Completion(
            tokens=reply["tokens"][:-1] if stopped else reply["tokens"],
            text=reply["content"],
            stopped=stopped,
            prompt_tokens=timings["prompt_n"],
            prompt_ms=timings["prompt_ms"],
            predicted_ms=timings["predicted_ms"],
            prompt_length=len(prompt_ids),
            steps=_steps(reply),
        )

    def score(
        self, ids: list[int], positions: Sequence[int], count: int, answer: Completion | None = None
    ) -> list[Scored]:
        """Teacher forcing: what the model gives the id at each position (from 1), all ids before it being as given.

        With each id come the `count` most probable ones. `answer` is the model's own to a prompt that `ids` begin with,
        completed with the same `count`: as far as it goes on like `ids`, it tells the scores.
        """
        scored = _agreeing(answer.steps, ids, answer.prompt_length, count) if answer else {}
        for position in positions:
            if position not in scored:
                reply = self._generate(ids[:position], min(AHEAD, len(ids) - position), n_probs=count)
                scored |= _agreeing(_steps(reply), ids, position, count)
            if position not in scored:
                scored[position] = self._score_next(ids[:position], ids[position], count)
        return [scored[position] for position in positions]

    def _score_next(self, ids: list[int], forced: int, count: int) -> Scored:
        # A bias leaves the sampler no choice; the probabilities that are reported are those before it. One id a
        # request, since a bias holds for a whole request (and a grammar of ids cannot ask for an end-of-turn id). The
        # slot's cache holds all ids but the last, so that a request evaluates one.
        step = self._step(ids, forced, count)
        if step is None:
            # The server says nothing of a token that ends within a character: find it among the alternatives to one
            # that does not.
            step = self._step(ids, self._plain_id, max(count, 100))
            if all(top["id"] != forced for top in step["top_logprobs"]):
                step = self._step(ids, self._plain_id, 1 << 30)
        logprob = next(top["logprob"] for top in (step, *step["top_logprobs"]) if top["id"] == forced)
        return _scored(logprob, step, count)

    def _step(self, ids: list[int], forced: int, count: int) -> dict | None:
        """The server's report on one generated id, `forced`, with the `count` most probable ones."""
        reply = self._generate(ids, 1, logit_bias=[[forced, 1e6]], n_probs=count)
        return next(iter(reply.get("completion_probabilities", [])), None)

    def _generate(self, prompt_ids: list[int], max_tokens: int, **options) -> dict:
        if not hasattr(self._local, "slot"):
            self._local.slot = next(self._slot_numbers)
        greedy = {"temperature": 0, "samplers": ["temperature"], "return_tokens": True, "id_slot": self._local.slot}
        return self._post("/completion", {"prompt": prompt_ids, "n_predict": max_tokens, **greedy, **options})

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200 and self._process.poll() is None
        except OSError:
            return False
        finally:
            connection.close()

    def _post(self, path: str, body: dict) -> dict:
        # http.client, unlike urllib, never asks a proxy.
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            self._process.wait(timeout=10)  # the connection breaks a moment before the process is gone
            self._check_alive()
            raise
        finally:
            connection.close()
        if response.status != 200:
            raise Refusal(f"llama-server refused {path} for {self.model}: {reply['error']['message']}")
        return reply

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            self._log.seek(0)
            raise Refusal(
                f"llama-server ended with status {self._process.returncode} while serving {self.model}; the end of "
                f"its log:\n{last_lines(self._log.read().decode(errors='replace'))}"
            )
