"""A larger model behind any OpenAI-compatible server, which judges answers: its replies, asked for once.

The server may be a llama-server with a larger GGUF on this machine. Its key is read from QLORA_JUDGE_KEY. Replies are
cached by the content of the request.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from qlora.judging.texts import gold
from qlora.recipe.schema import ModelJudge
from qlora.runtime.console import Refusal
from qlora.runtime.machine import cache_folder
from qlora.runtime.outputs import write_text

import httpx
from tqdm import tqdm

KEY = "QLORA_JUDGE_KEY"
AT_ONCE = 4  # requests
SECONDS = 300.0  # for one reply
TRIES = 4  # of a request that the server is too busy for


def replies(system: str, questions: Sequence[dict[str, str]], settings: ModelJudge) -> list[str]:
    """The model's reply to each question, a text in titled parts; the rubric is added as the last part.

    Raises:
        Refusal: if the server cannot be reached or refuses a request.
    """
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if KEY in os.environ else {}

    def reply(parts: dict[str, str]) -> str:
        content = "\n\n".join(f"### {title}\n{text}" for title, text in (parts | {"RUBRIC": settings.rubric}).items())
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        body = {"model": settings.model, "messages": messages, "temperature": 0, "max_tokens": 1024}
        return ask(client, settings.url, body)

    with httpx.Client(timeout=SECONDS, headers=headers) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        bar = tqdm(pool.map(reply, questions), total=len(questions), desc=f"asking {settings.model}", unit=" replies")
        return list(bar)


def conversation(row: dict) -> dict[str, str]:
    """The parts of a question that say what was asked, and what the gold answer is."""
    turns = [f"[{message['role']}]\n{message['content']}" for message in row["messages"][:-1]]
    return {"CONVERSATION": "\n\n".join(turns), "REFERENCE ANSWER": gold(row)}


def ask(client: httpx.Client, url: str, body: dict) -> str:
    """The server's reply, from the cache if it gave one before."""
    key = hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
    cached = cache_folder("judge-model") / f"{key}.txt"
    if cached.is_file():
        return cached.read_text(encoding="utf-8")
    for attempt in range(TRIES):
        try:
            response = client.post(f"{url.rstrip('/')}/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise Refusal(f"the judge model cannot be reached at {url} ({type(error).__name__}: {error})") from None
        if response.status_code not in (429, 503) or attempt == TRIES - 1:
            break
        time.sleep(2**attempt)
    if response.status_code != 200:
        key_note = f"; its key is read from {KEY}" if response.status_code in (401, 403) else ""
        reason = " ".join(response.text.split())[:120]
        raise Refusal(f"{url} answers {response.status_code} to the judge's request ({reason}){key_note}")
    try:
        reply = response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        raise Refusal(f"{url} is no OpenAI-compatible server: its reply has no message") from None
    write_text(cached, reply)
    return reply
