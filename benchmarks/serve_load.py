"""How much load `make serve` takes, and whether its answers are those that `evaluate` scored.

python -m benchmarks.serve_load [--artifact NAME] [--clients 64] [--seconds 60]

Needs a completed pipeline run. One client asks the test rows one after another; its answers are scored and compared
with results/predictions. Then many clients ask at once: no request may fail, and an answer that differs from the single
client's should do so at a tie of the two most probable tokens. Last the server is killed and started again.
"""

import argparse
import http.client
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from threading import Lock

from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.rows import jsonl, prepared
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.sql import verdict
from tools import serving


def main() -> None:
    options = parse_arguments()
    params = load_params()
    artifact = options.artifact or serving.default_artifact(params)
    gguf = serving.find_gguf(artifact, params)
    room = serving.room(gguf, params)
    rows = prepared.first("test", options.rows)
    limit = params.evaluate.max_new_tokens

    with serving.serve(artifact, gguf, params, room) as server:
        begin = time.monotonic()
        alone = [ask(server.url, row, limit) for row in rows]
        seconds = time.monotonic() - begin
        rate = sum(len(reply["tokens"]) for reply in alone) / seconds
        requests = f"{len(rows) / seconds:.2f}"
        summary("one client", {"rows": len(rows), "requests/s": requests, "tokens/s": f"{rate:.1f}"})
        compare_with_evaluate(artifact, rows, alone, params)

        replies, failures, seconds = ask_at_once(
            lambda number: ask(server.url, rows[number % len(rows)], limit), options.clients, options.seconds
        )
        tokens = sum(len(reply["tokens"]) for _, reply in replies)
        differing = [
            (alone[number % len(rows)], reply)
            for number, reply in replies
            if reply["text"] != alone[number % len(rows)]["text"]
        ]
        gaps = sorted(gap_where_they_part(first, other) for first, other in differing)
        summary(
            f"{options.clients} clients for {seconds:.0f} s",
            {
                "requests": len(replies),
                "failed": f"{len(failures)} {failures[:1] or ''}",
                "tokens/s": f"{tokens / seconds:.1f}, {tokens / seconds / rate:.2f} times one client's",
                "other answers": f"{len(differing)} of {len(replies)}",
                "log-probability between the two tokens there": f"{gaps[0]:.3f} to {gaps[-1]:.3f}" if gaps else "-",
            },
        )
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    begin = time.monotonic()
    with serving.serve(artifact, gguf, params, room) as server:
        ask(server.url, rows[0], limit)
        summary("killed and started again", {"first answer after": f"{time.monotonic() - begin:.1f} s"})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=200, help="test rows, at most")
    return parser.parse_args()


def ask(url: str, row: dict, limit: int) -> dict:
    """The server's greedy answer to a row's prompt: its text, whether it stopped, and its tokens with the top two."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    body = {
        "messages": row["messages"][:-1],
        "max_tokens": limit,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        reply = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        raise Refusal(f"status {response.status}: {reply}")
    choice = reply["choices"][0]
    return {
        "text": choice["message"]["content"],
        "stopped": choice["finish_reason"] == "stop",
        "tokens": choice["logprobs"]["content"],
    }


def ask_at_once(request: Callable[[int], dict], clients: int, seconds: float) -> tuple[list, list[str], float]:
    """Let `clients` threads send requests; return (number, reply) of each, the failures, and the seconds."""
    numbers, lock, begin = count(), Lock(), time.monotonic()
    replies, failures = [], []

    def client(_: int) -> None:
        while time.monotonic() < begin + seconds:
            with lock:
                number = next(numbers)
            try:
                replies.append((number, request(number)))
            except (OSError, http.client.HTTPException, Refusal) as error:
                failures.append(repr(error))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return replies, failures, time.monotonic() - begin


def gap_where_they_part(first: dict, other: dict) -> float:
    """The lead of `first`'s token at the first position where `other` has a different one."""
    pairs = zip(first["tokens"], other["tokens"], strict=False)
    return lead(next((token for token, differing in pairs if token["id"] != differing["id"]), first["tokens"][-1]))


def gap_from_text(reply: dict, text: str) -> float:
    """The lead of `reply`'s token where it departs from another answer, of which only the text is known."""
    said = ""
    for step in reply["tokens"]:
        # The longest match: if `reply` says " street" and the text has " streets", they part here.
        fitting = [top["token"] for top in step["top_logprobs"] if text.startswith(said + top["token"])]
        if max(fitting, key=len, default=None) != step["token"]:
            break
        said += step["token"]
    return lead(step)


def lead(step: dict) -> float:
    """Log-probability (nats) of the most probable token over the second."""
    best, second = sorted((top["logprob"] for top in step["top_logprobs"]), reverse=True)[:2]
    return best - second


def compare_with_evaluate(artifact: str, rows: list[dict], replies: list[dict], params: Params) -> None:
    """Print how the served answers compare with those that `evaluate` wrote."""
    written = jsonl.read(Path(f"results/predictions/{artifact}.jsonl"))
    predictions = [prediction for _, prediction in islice(written, len(rows))]
    facts = {
        "same answer": sum(
            reply["text"] == prediction["answer"] for reply, prediction in zip(replies, predictions, strict=True)
        ),
        "log-probability between the two tokens otherwise": ", ".join(
            f"{gap_from_text(reply, prediction['answer']):.3f}"
            for reply, prediction in zip(replies, predictions, strict=True)
            if reply["text"] != prediction["answer"]
        )
        or "-",
        "stopped alike": sum(
            reply["stopped"] == prediction["stopped"] for reply, prediction in zip(replies, predictions, strict=True)
        ),
    }
    if params.data.task == "text-to-sql":
        settings = params.evaluate
        verdicts = verdict.score(
            rows,
            [reply["text"] for reply in replies],
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
        )
        scored = [prediction["execution_accuracy"] for prediction in predictions]  # None: gold cannot be judged
        facts["same verdict"] = sum(
            (judged.strict if judged.gold is None else None, judged.error) == (right, prediction["error"])
            for judged, right, prediction in zip(verdicts, scored, predictions, strict=True)
        )
        known = [right for right in scored if right is not None]
        facts["execution accuracy"] = (
            f"{verdict.totals(verdicts)['strict']:.3f} served, {sum(known) / len(known):.3f} in the predictions"
        )
    summary(f"against evaluate@{artifact}, {len(rows)} rows", facts)


if __name__ == "__main__":
    run_stage(main)
