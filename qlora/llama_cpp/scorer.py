"""Ask a llama-server for token ids, greedy answers and log-probabilities of given tokens."""

import http.client
import itertools
import json
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qlora.llama_cpp import server
from qlora.runtime.console import Refusal
from qlora.runtime.machine import cpu_count

SMALLEST_LOGPROB = -103.0  # a float32 probability below exp of this is 0
AHEAD = 8  # ids that one request may score; the scores end at the first id that the model would not choose


@dataclass(frozen=True)
class Completion:
    """An answer of the server.

    Attributes:
        tokens: Generated ids, without the end-of-generation token.
        text: The same, decoded.
        stopped: Whether the model ended the answer itself.
        prompt_length: All ids of the prompt.
        steps: The server's report on each generated id; empty unless it was asked for.
    """

    tokens: list[int]
    text: str
    stopped: bool
    prompt_length: int
    steps: list[dict]


@dataclass(frozen=True)
class Scored:
    """A token's natural log-probability (full softmax), and the most probable ids with theirs, best first."""

    logprob: float
    top: list[tuple[int, float]]


def _steps(reply: dict) -> list[dict]:
    """The server's report on each generated id; empty if it left one out, as it does inside a multi-byte character."""
    steps = reply.get("completion_probabilities", [])
    return steps if len(steps) == len(reply["tokens"]) else []


def _agreeing(steps: list[dict], ids: list[int], begin: int, count: int) -> dict[int, Scored]:
    """The scores of the ids from position `begin` to the first one that the model did not choose itself.

    A fine-tuned model chooses most ids of a gold answer itself, so one request scores several.
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
    # If a probability is too small for a float, the server reports the lowest float as its logarithm.
    top = [(top["id"], max(top["logprob"], SMALLEST_LOGPROB)) for top in step["top_logprobs"][:count]]
    return Scored(max(logprob, SMALLEST_LOGPROB), top)


class Server:
    """A llama-server for the length of a `with` block, on a free port of the loopback interface.

    It serves `slots` requests at a time; call the methods from that many threads. Each thread uses one slot, so the
    slot's cache holds what the thread sent before.
    """

    def __init__(self, model: Path, context: int, slots: int = 8, threads: int | None = None, lora: Path | None = None):
        """Describe the server; `with` starts it.

        Args:
            model: A GGUF file.
            context: Tokens of prompt and answer together, for each slot.
            slots: Requests that are served at a time.
            threads: CPU threads; all CPUs that the process may use by default.
            lora: The GGUF of an adapter that is applied to the model.
        """
        self.model = model
        self.context = context
        self.slots = slots
        self.threads = threads or cpu_count()
        self.lora = lora
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
        # A last message of the assistant is rendered as complete, as in training, not as one to be continued.
        options = ["--no-prefill-assistant", *(["--lora", self.lora] if self.lora else [])]
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile())
            self._running = stack.enter_context(server.run(self.model, settings, options, log=log))
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

    def apply_template(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """`messages` rendered with the chat template in the GGUF, as /v1/chat/completions renders them."""
        body = {"messages": [_as_requested(message) for message in messages]}
        body |= {"add_generation_prompt": add_generation_prompt}
        if messages and "tools" in messages[0]:
            body["tools"] = messages[0]["tools"]
        return self._post("/apply-template", body)["prompt"]

    def stops_at(self, id_: int) -> bool:
        """Whether an answer ends at this id."""
        return self._generate([self._plain_id], 1, logit_bias=[[id_, 1e6]])["stop_type"] == "eos"

    def complete(self, prompt_ids: list[int], max_tokens: int, reuse: bool = True, count: int = 0) -> Completion:
        """Answer greedily, until the model ends its turn or `max_tokens` ids are generated.

        With `reuse`, a prefix of the prompt that the slot's cache holds is not evaluated again. With `count`, the
        `count` most probable ids are reported at each step.
        """
        reply = self._generate(prompt_ids, max_tokens, cache_prompt=reuse, n_probs=count)
        stopped = reply["stop_type"] == "eos"
        return Completion(
            tokens=reply["tokens"][:-1] if stopped else reply["tokens"],
            text=reply["content"],
            stopped=stopped,
            prompt_length=len(prompt_ids),
            steps=_steps(reply),
        )

    def score(
        self, ids: list[int], positions: Sequence[int], count: int, answer: Completion | None = None
    ) -> list[Scored]:
        """Teacher-forced scores of the ids at `positions` (from 1), each given all ids before it.

        Each comes with the `count` most probable ids. `answer` may be the model's own answer to a prefix of `ids`,
        completed with the same `count`: its scores are used as far as it agrees with `ids`.
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
        # A bias forces the id; the server reports the probabilities before the bias. A bias holds for a whole request,
        # so a request scores one id (a grammar of ids cannot ask for an end-of-turn id). The slot's cache holds all
        # ids but the last, so a request evaluates one.
        step = self._step(ids, forced, count)
        if step is None:
            # The server reports nothing for an id that ends inside a character: find it among the alternatives to
            # another one.
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


def _as_requested(message: dict) -> dict:
    """A message as a request holds it: the arguments of calls are text, and the conversation's tools are beside it."""
    message = {key: value for key, value in message.items() if key not in ("tools", "train")}
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    arguments = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
    return message | {
        "tool_calls": [
            call | {"function": function | {"arguments": text}}
            for call, function, text in zip(message["tool_calls"], functions, arguments, strict=True)
        ]
    }
