"""What all ways of serving share: the artifact, its GGUF, the recipe's system prompt, memory, and the server's process.

Answers come from the llama-server that `evaluate` scored the same file with.
"""

import ipaddress
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qlora.gguf import base_gguf
from qlora.gguf.modelfile import CONTEXT
from qlora.llama_cpp import server as llama_server
from qlora.recipe.artifacts import ADAPTER_GGUF, ARTIFACTS, VLLM_TYPES, find
from qlora.recipe.schema import Params
from qlora.reporting import summary
from qlora.runtime import machine
from qlora.runtime.console import Refusal
from qlora.weights.made import check_made

from gguf import GGUFReader

SLOTS = 8  # requests answered at once; on a CPU more of them answer no more tokens a second
KV_SHARE = 0.5  # of the memory that the weights leave free; activations and other programs need some, too
KV_BYTES = 2  # of one float16 number


@dataclass(frozen=True)
class Room:
    """What fits into the memory.

    Attributes:
        context: Tokens of prompt and answer, for each request.
        slots: Requests at a time.
        kv_bytes: Keys and values of all of them.
        cache_mb: For keys and values of earlier prompts.
    """

    context: int
    slots: int
    kv_bytes: int
    cache_mb: int


def default_artifact(params: Params) -> str:
    """The GGUF to ship: the last of gguf.types whose gates held at the last report, if there is one."""
    broken = {gate.partition(".")[0] for gate in summary.broken_gates(summary.read())}
    return next((type_ for type_ in reversed(params.gguf.types) if type_ not in broken), params.gguf.types[-1])


def find_gguf(artifact: str, params: Params) -> Path:
    """The GGUF that serves `artifact`; that of the base model is converted once, into a per-user cache.

    Raises:
        Refusal: if it is no artifact, cannot be served alone, was not made yet, or is damaged.
    """
    if artifact == "adapter":
        raise Refusal(
            f"llama.cpp reads no PEFT adapter: serve merged, which is the base model with it, or {ADAPTER_GGUF} "
            "(gguf.adapters)"
        )
    if artifact in VLLM_TYPES:
        raise Refusal(f'{artifact} is for vLLM: make serve-vllm ARGS="--artifact {artifact}"')
    if artifact in ("base", ADAPTER_GGUF):
        check_made(ARTIFACTS[artifact])
        return base_gguf.converted(ARTIFACTS["base"].folder)
    known = ["base", "merged", "bf16", *params.gguf.adapters, *params.gguf.types]
    served = find("bf16" if artifact == "merged" else artifact)  # the same weights
    if served is None or not (served.gguf.is_file() or artifact in known):
        raise Refusal(f"{artifact!r} is no artifact that can be served; choose from {', '.join(known)}")
    check_made(served)
    return served.gguf


def check_key(host: str, variable: str) -> str | None:
    """The API key that the server asks for, from the environment, because others can see a command line.

    Raises:
        Refusal: if there is none and other machines can reach `host`.
    """
    key = os.environ.get(variable)
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise Refusal(f"--host must be an IP address or localhost, not {host!r}") from None
    if not (key or loopback):
        raise Refusal(
            f"{host} can be reached by others, so a key has to be asked for: set {variable} "
            f"(`export {variable}=$(openssl rand -hex 32)`), or listen on 127.0.0.1"
        )
    return key


@lru_cache(maxsize=1)  # a second, for a large vocabulary
def read_gguf(path: Path) -> GGUFReader:
    """The header of `path`."""
    return GGUFReader(path)


def with_system_prompt(own: str, system_prompt: str | None) -> str:
    """The chat template `own`, which adds the recipe's system prompt to a conversation without one.

    Neither llama-server nor vLLM has an option for a system prompt, and every request goes through the template.
    """
    if not system_prompt:
        return own
    text = system_prompt.replace("\\", "\\\\").replace('"', '\\"')
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}"
        f'{{%- set messages = [{{"role": "system", "content": "{text}"}}] + messages -%}}'
        "{%- endif -%}" + own
    )


def room(gguf: Path, params: Params, context: int | None = None, slots: int | None = None) -> Room:
    """Fit context and slots to the free memory (the GPU's, too): fewer slots first, then less context.

    Raises:
        Refusal: if what is asked for does not fit, or the recipe's own rows would not.
    """
    reader = read_gguf(gguf)

    def value(key: str, otherwise: int | None = None):
        field = reader.get_field(f"{architecture}.{key}")
        return field.contents() if field else otherwise

    architecture = reader.get_field("general.architecture").contents()
    layers, heads = value("block_count"), value("attention.head_count")
    width = value("embedding_length") // heads
    kv_heads = value("attention.head_count_kv", heads)  # one number, or one for each layer
    kv_heads = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers
    token = kv_heads * (value("attention.key_length", width) + value("attention.value_length", width)) * KV_BYTES

    free = _free_memory() - gguf.stat().st_size
    tokens = max(0, int(free * KV_SHARE)) // token
    least = params.train.max_length + params.evaluate.max_new_tokens
    wanted = context or min(value("context_length"), CONTEXT)
    number = slots or max(1, min(SLOTS, tokens // wanted))
    fitting = wanted if context else min(wanted, tokens // number)
    asked = context or max(fitting, min(least, value("context_length")))
    if asked * number > tokens:
        raise Refusal(
            f"{number} x {asked:,} tokens of context need {asked * number * token / 1e9:.1f} GB, and {gguf} leaves "
            f"{max(0, free) * KV_SHARE / 1e9:.1f} GB for them: ask for less (--context, --slots), serve a smaller "
            "type, or free some memory"
        )
    kv_bytes = fitting * number * token
    return Room(fitting, number, kv_bytes, cache_mb=min(8192, int((free - kv_bytes) / 4e6)))


def _free_memory() -> int:
    """Bytes of RAM that are free, or of the GPUs if there are any and they have less."""
    free = [machine.available_memory()]
    if gpus := machine.gpus():
        free.append(sum(gpu.free for gpu in gpus))
    return min(free)


@contextmanager
def serve(
    artifact: str,
    gguf: Path,
    params: Params,
    room: Room,
    host: str | None = None,
    port: int = 0,
    options: Sequence[str | Path] = (),
) -> Iterator[llama_server.Running]:
    """Run a llama-server for the length of a `with` block, ready to answer; its errors go to standard error.

    Args:
        artifact: The name under which it serves the model.
        gguf: The model.
        params: Whose system prompt is put before conversations that have none; text-to-SQL answers are greedy, as in
            `evaluate`, unless a request says otherwise.
        room: See `room`.
        host: The address to listen on; by default this machine's own.
        port: 0 takes a free one.
        options: Further options of llama-server's own.

    Raises:
        Refusal: if the port is taken, or the server ends before it is ready.
    """
    with tempfile.TemporaryDirectory() as work:
        jinja = Path(work) / "chat_template.jinja"
        own = read_gguf(gguf).get_field("tokenizer.chat_template").contents()
        jinja.write_text(with_system_prompt(own, params.data.system_prompt), encoding="utf-8")
        settings = {
            "--alias": artifact,
            "--ctx-size": room.context * room.slots,
            "--parallel": room.slots,
            "--threads": machine.cpu_count(),
            "--cache-ram": room.cache_mb,
            "--chat-template-file": jinja,
            "--cors-origins": "localhost",  # no web page from elsewhere may ask it behind a person's back
            "--verbosity": 1,  # errors; at 2 it warns of every prompt that it has answered before
        }
        if params.data.task == "text-to-sql":
            settings["--temp"] = 0
        if artifact == ADAPTER_GGUF:
            # llama-server would answer with one adapter from what it remembers of a prompt that another one read.
            settings["--cache-ram"] = 0
            options = ["--lora", ARTIFACTS[artifact].gguf, "--no-cache-prompt", *options]
        with llama_server.run(gguf, settings, ["--metrics", *options], host, port, own_session=True) as server:
            yield server


def stream(server: llama_server.Running, conversation: Sequence[dict[str, str]], max_tokens: int) -> Iterator[str]:
    """The pieces of the answer as they come.

    Raises:
        Refusal: with the server's own sentence if it refuses the conversation (one that is too long).
    """
    body = {"messages": list(conversation), "max_tokens": max_tokens, "stream": True}
    with server.ask("POST", "/v1/chat/completions", body) as response:
        if response.status != 200:
            raise Refusal(f"llama-server refused: {json.loads(response.read())['error']['message']}")
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise Refusal(f"llama-server gave up: {event['error']['message']}")
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""
