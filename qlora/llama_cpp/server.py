"""A llama-server: running one, and asking it for ids, answers and log-probabilities.

`run` keeps one alive for a `with` block; `Server` is one on a free port of the loopback interface, with what `evaluate`
and the checks of a GGUF ask of it.
"""

import http.client
import itertools
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qlora.llama_cpp import tools as llama_cpp
from qlora.runtime import cpus
from qlora.runtime.console import Refusal

SMALLEST_LOGPROB = -103.0  # a float32 probability below exp of this is 0
AHEAD = 8  # ids that one request may score; what follows the first that the model would not choose is lost


@dataclass(frozen=True)
class Running:
    """A llama-server with the GGUF `model` that answers at `url`; `log` takes what it prints, if it is not None."""

    model: Path
    url: str
    process: subprocess.Popen
    log: IO[bytes] | None

    def check_alive(self) -> None:
        """Raise Refusal if it has ended: with the end of its log, where it has one."""
        if self.process.poll() is None:
            return
        said = "it says why above"
        if self.log:
            self.log.seek(0)
            said = f"the end of its log:\n{llama_cpp.last_lines(self.log.read().decode(errors='replace'))}"
        raise Refusal(f"llama-server ended with status {self.process.returncode} while serving {self.model}; {said}")

    def is_ready(self) -> bool:
        try:
            with self.ask("GET", "/health", timeout=10) as response:
                return response.status == 200 and self.process.poll() is None
        except OSError:
            return False

    @contextmanager
    def ask(
        self, method: str, path: str, body: dict | None = None, timeout: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, with the key in LLAMA_API_KEY, for which llama-server asks if it is set."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('LLAMA_API_KEY', '')}"}
        # http.client, unlike most clients, never asks a proxy.
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            yield connection.getresponse()
        finally:
            connection.close()


@contextmanager
def run(
    model: Path,
    settings: Mapping[str, object],
    options: Sequence[object] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    log: IO[bytes] | None = None,
    own_session: bool = False,
) -> Iterator[Running]:
    """Run a llama-server for the length of a `with` block, ready to answer.

    Args:
        model: A GGUF file.
        settings: llama-server's options that take a value, with their values.
        options: Further ones, as they stand on a command line.
        host: The address to listen on.
        port: 0 takes a free one.
        log: A file that takes what it prints; by default that goes to standard output and error.
        own_session: Keep Ctrl-C from it, so that this process stops it in good order; else Ctrl-C ends both at once,
            and no thread goes on asking it.

    Raises:
        Refusal: if the port is taken, or the server ends before it is ready.
    """
    port = free_port(host, port)
    settings = {"--model": model, "--host": host, "--port": port, **settings}
    command = [llama_cpp.find().server, *(part for pair in settings.items() for part in pair), *options]
    process = llama_cpp.start(
        [str(part) for part in command], stdout=log, stderr=log and subprocess.STDOUT, start_new_session=own_session
    )
    try:
        reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        address = f"[{reach}]" if ":" in reach else reach
        server = Running(model, f"http://{address}:{port}", process, log)
        while not server.is_ready():
            server.check_alive()
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises Refusal if it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise Refusal(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
        return listener.getsockname()[1]


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
        self.threads = threads or cpus.count()
        self._local = threading.local()
        self._slot_numbers = itertools.cycle(range(slots))

    def __enter__(self) -> "Server":
        """Start it and wait until it is ready.

        Raises:
            Refusal: with the end of its log if it ends before.
        """
        settings = {
            "--ctx-size": self.context * self.slots,
            "--parallel": self.slots,
            "--threads": self.threads,
            "--cache-ram": 0,  # a second cache of whole prompts, gigabytes by default
        }
        # A last message of the assistant is rendered as a whole message, as in training, not as one to go on with.
        options = ["--no-prefill-assistant"]
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile())
            self._running = stack.enter_context(run(self.model, settings, options, log=log))
            self.pid = self._running.process.pid
            self._plain_id = self.tokenize("a")[-1]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._stack.close()

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

    def _post(self, path: str, body: dict) -> dict:
        try:
            with self._running.ask("POST", path, body) as response:
                reply = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            self._running.process.wait(timeout=10)  # the connection breaks a moment before the process is gone
            self._running.check_alive()
            raise
        if response.status != 200:
            raise Refusal(f"llama-server refused {path} for {self.model}: {reply['error']['message']}")
        return reply
