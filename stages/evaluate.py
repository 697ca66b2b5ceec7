"""evaluate --artifact NAME: score one artifact (base, adapter, merged, a GGUF or vLLM type) on the held-out rows.

Every artifact gets the same prompts as the same token ids, decodes greedily, and is scored by the same code; GGUF
files answer through llama-server, as they will when they are served. Writes metrics/NAME.json,
results/predictions/NAME.jsonl (each row's answer and scores) and results/predictions/NAME.npz (what was most probable
at each token of the gold answers: `distance`).

Where there are several GPUs, the artifacts that transformers answers for (base, adapter, merged and those for vLLM) are
on each of them, and share the rows.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qlora.llama_cpp.server import Scored, Server
from qlora.processes import several
from qlora.recipe.params import Params, load_params
from qlora.rows import chat, jsonl
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import write_json, write_text
from qlora.scoring import top_tokens as distance
from qlora.scoring import transformers_run as hf_inference
from qlora.scoring.top_tokens import Top
from qlora.scoring.transformers_run import Answer, Score
from qlora.source import base_model
from qlora.sql import verdict

TEST_ROWS = Path("data/prepared/test.jsonl")
SLOTS = 8  # requests that llama-server works on at once
TIMED_PROMPTS = 5  # one at a time, for the time to the first token
TIMED_ANSWERS = 2 * SLOTS  # for a GGUF's tokens a second
PATIENCE = timedelta(days=1)  # of a process that is done with its rows before another: what dies ends all at once


def main() -> None:
    artifact, processes = parse_arguments()
    params = load_params()
    folder = Path("models") / artifact
    gguf = folder / "model.gguf"
    if not (folder / base_model.RECORD).is_file():
        raise Refusal(f"{folder} is not there; run `dvc repro evaluate@{artifact}`, which makes it first")
    base = base_model.locate(folder)
    tokenizer = chat.load_tokenizer(base)
    stops = chat.stop_ids(tokenizer, base)
    rows = [row for _, row in jsonl.read(TEST_ROWS)]
    if not gguf.is_file() and not several.is_started():
        processes = min(processes or devices(artifact, base), len(rows))
        if processes > 1:
            several.start("stages.evaluate", processes, "--artifact", artifact)
            return
    encoded = [chat.cut(chat.encode(tokenizer, row["messages"], stops), params.train.max_length) for row in rows]

    if gguf.is_file():
        results = run_gguf(gguf, encoded, params)
        size = gguf.stat().st_size
    else:
        several.state(PATIENCE)  # each process takes its own GPU
        try:
            results = run_transformers(load(artifact, base), encoded, stops, tokenizer.pad_token_id, params)
        except torch.OutOfMemoryError:
            longest = max(len(row.input_ids) for row in encoded)
            raise Refusal(
                f"the GPU's memory does not hold {artifact} and one row at a time, of which the longest has {longest} "
                "tokens: end other programs on the GPU, or take the CPU, which is slower: `CUDA_VISIBLE_DEVICES= dvc "
                f"repro evaluate@{artifact}`"
            ) from None
        size = size_on_disk(artifact, base)
        if not several.is_first():
            return
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in results.answers]

    predictions = [
        {"id": row["id"], "answer": text, "stopped": answer.stopped, "tokens": len(answer.ids)}
        | {"nll": round(score.nll, 4), "supervised": score.tokens, "top1": score.top1}
        for row, text, answer, score in zip(rows, texts, results.answers, results.scores, strict=True)
    ]
    metrics = language_metrics(results.answers, results.scores) | {
        "tokens_per_second": round(results.tokens_per_second, 1),
        "first_token_ms": round(1000 * results.first_token_seconds, 1),
        "peak_memory_mb": results.peak_memory and round(results.peak_memory / 1e6),
        "size_mb": round(size / 1e6, 1),
    }
    if params.data.task == "text-to-sql":
        metrics = sql_metrics(rows, texts, predictions, params) | metrics
    lines = [json.dumps(prediction, ensure_ascii=False) for prediction in predictions]
    write_text(Path(f"results/predictions/{artifact}.jsonl"), "\n".join(lines) + "\n")
    distance.save(Path(f"results/predictions/{artifact}.npz"), [score.top for score in results.scores])
    write_json(Path(f"metrics/{artifact}.json"), metrics)
    summary(f"evaluate@{artifact}", metrics)


@dataclass(frozen=True)
class Results:
    """What an artifact did with the test rows.

    tokens_per_second: of answers, several at a time, on all devices; first_token_seconds: the median over a few
    prompts, one at a time; peak_memory: bytes, of the GPU where one holds the model (of several the fullest), else of
    the process that runs it; None where the system does not tell.
    """

    answers: list[Answer]
    scores: list[Score]
    tokens_per_second: float
    first_token_seconds: float
    peak_memory: int | None


def parse_arguments() -> tuple[str, int | None]:
    parser = argparse.ArgumentParser(description="Score one artifact on the held-out rows.")
    parser.add_argument("--artifact", required=True, help="base, adapter, merged, bf16 or a GGUF or vLLM type")
    parser.add_argument("--processes", type=int, help="that share the rows, if not a GGUF's; default: one a GPU")
    arguments = parser.parse_args()
    return arguments.artifact, arguments.processes


def devices(artifact: str, base: Path) -> int:
    """How many devices share the rows of `artifact`: all GPUs that are visible, if each can hold it, else one."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and artifact != "adapter":  # which stays in 4 bits where the memory is short
        from qlora.weights import loading as models

        needed = models.plain_bytes(base if artifact == "base" else Path("models") / artifact, torch.bfloat16)
        if needed > min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus)):
            return 1  # it goes to the CPU's memory then, where several would not fit
    return max(1, gpus)


def load(artifact: str, base: Path):
    """The transformers model that `artifact` names, ready to answer."""
    from qlora.weights import compressed  # bitsandbytes takes seconds to import, and a GGUF needs none of it
    from qlora.weights import loading as models

    if artifact == "adapter":
        adapter = Path("models/adapter")
        model = models.load_base(base, models.read_quantization(adapter))
        models.dequantize(model)
        model = models.load_adapter(model, adapter)
    elif artifact in ("base", "merged"):
        model = models.load_plain(base if artifact == "base" else Path("models/merged"), torch.bfloat16)
    else:
        model = compressed.load(Path("models") / artifact)
    return model.eval()


def size_on_disk(artifact: str, base: Path) -> int:
    """Bytes of the artifact's own weights; the adapter's do not include the base model's."""
    return base_model.weights_bytes(base if artifact == "base" else Path("models") / artifact)


def run_transformers(model, rows: list[chat.Encoded], stops: list[int], pad: int, params: Params) -> Results:
    """Answers and teacher-forced scores by transformers, of all processes that share the rows."""
    settings = params.evaluate
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    waited = [hf_inference.seconds_to_first_token(model, prompt) for prompt in prompts[:1] + prompts[:TIMED_PROMPTS]]
    here = several.state()
    shares = hf_inference.shares([row.input_ids for row in rows], here.num_processes)
    share = shares[here.process_index]
    with tqdm(total=len(share), desc="answering", unit=" rows") as bar:
        prompts = [prompts[at] for at in share]
        answers, seconds = hf_inference.generate(
            model, prompts, stops, pad, settings.max_new_tokens, settings.batch_size, bar.update
        )
    with tqdm(total=len(share), desc="scoring tokens", unit=" rows") as bar:
        scores = hf_inference.score(model, [rows[at] for at in share], bar.update)
    on_gpu = model.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory(os.getpid())
    parts = several.gathered((list(zip(answers, scores, strict=True)), seconds, peak or 0))
    results, seconds, peaks = zip(*parts, strict=True)
    chain = itertools.chain.from_iterable
    done = dict(zip(chain(shares), chain(results), strict=True))
    answers, scores = zip(*(done[at] for at in range(len(rows))), strict=True)
    speed = count_tokens(answers) / max(seconds)
    first_token = statistics.median(waited[1:])  # the first prompt warms up
    return Results(list(answers), list(scores), speed, first_token, max(peaks) or None)


def run_gguf(gguf: Path, rows: list[chat.Encoded], params: Params) -> Results:
    """The same through llama-server: prompts as ids, and the scores that llama.cpp gives the same ids."""
    limit = params.evaluate.max_new_tokens
    context = max(max(row.prompt_length + limit, len(row.input_ids)) for row in rows) + 8

    def answer_and_score(row: chat.Encoded) -> tuple[Answer, Score]:
        # Together, because a thread keeps to one slot of the server and finds the prompt in its cache.
        completion = server.complete(row.input_ids[: row.prompt_length], limit, count=distance.COUNT)
        supervised = [at for at, label in enumerate(row.labels) if label != chat.IGNORED]
        scored = server.score(row.input_ids, supervised, distance.COUNT, completion)
        gold = [row.input_ids[at] for at in supervised]
        bar.update()
        return Answer(completion.tokens, completion.stopped), gguf_score(scored, gold)

    def work(run: np.ndarray) -> list[tuple[int, tuple[Answer, Score]]]:
        return [(at, answer_and_score(rows[at])) for at in run.tolist()]

    def answer(row: chat.Encoded) -> Answer:
        completion = server.complete(row.input_ids[: row.prompt_length], limit, reuse=False)
        return Answer(completion.tokens, completion.stopped)

    def first_token(row: chat.Encoded) -> float:
        begin = time.monotonic()
        server.complete(row.input_ids[: row.prompt_length], 1, reuse=False)
        return time.monotonic() - begin

    # Rows that begin alike (those of one schema) go to one slot, one behind the other: it has evaluated their start.
    in_order = sorted(range(len(rows)), key=lambda at: rows[at].input_ids)
    runs = np.array_split(in_order, SLOTS)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    # The pool outside: where the stage is ended early the server goes first, and nothing waits for its answers.
    with ThreadPoolExecutor(SLOTS) as pool, Server(gguf, context=context, slots=SLOTS) as server:
        waited = [first_token(row) for row in rows[:1] + rows[:TIMED_PROMPTS]]
        with tqdm(total=len(rows), desc="answering and scoring tokens", unit=" rows") as bar:
            done = dict(itertools.chain.from_iterable(pool.map(work, runs)))
        begin = time.monotonic()  # answers alone, as they are served: with the scores between them they come slower
        speed = count_tokens(pool.map(answer, rows[:TIMED_ANSWERS])) / (time.monotonic() - begin)
        peak = free - torch.cuda.mem_get_info()[0] if uses_gpu(server.pid) else peak_memory(server.pid)
    answers, scores = zip(*(done[at] for at in range(len(rows))), strict=True)
    return Results(list(answers), list(scores), speed, statistics.median(waited[1:]), peak)


def count_tokens(answers: Iterable[Answer]) -> int:
    return sum(len(answer.ids) for answer in answers)


def gguf_score(tokens: list[Scored], gold: list[int]) -> Score:
    """What llama-server gave the supervised tokens of one row, `gold`, in the form of transformers' scores."""
    top = np.array([token.top for token in tokens])  # (tokens, COUNT, 2)
    ids = top[:, :, 0].astype(np.int32)
    top1 = int((ids[:, 0] == gold).sum())
    nll = -sum(token.logprob for token in tokens)
    return Score(len(gold), nll, top1, Top(ids, top[:, :, 1].astype(np.float32)))


def uses_gpu(pid: int) -> bool:
    """Whether a process has an NVIDIA device open: a llama.cpp built with CUDA keeps the whole model there."""
    try:
        return "/dev/nvidia" in Path(f"/proc/{pid}/maps").read_text() and torch.cuda.is_available()
    except OSError:
        return False


def peak_memory(pid: int) -> int | None:
    """The most memory that a process has had resident, in bytes; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def language_metrics(answers: list[Answer], scores: list[Score]) -> dict:
    """What is measured of any task: loss on the gold answers (nats a token), and how the model's own answers end."""
    tokens = sum(score.tokens for score in scores)
    loss = sum(score.nll for score in scores) / tokens
    lengths = [len(answer.ids) for answer in answers]
    return {
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 4),
        "next_token_accuracy": round(sum(score.top1 for score in scores) / tokens, 4),
        "stop_rate": round(sum(answer.stopped for answer in answers) / len(answers), 4),
        "answer_tokens": round(float(np.mean(lengths)), 1),
        "answer_tokens_p50": round(float(np.quantile(lengths, 0.5)), 1),
        "answer_tokens_p95": round(float(np.quantile(lengths, 0.95)), 1),
        "rows": len(answers),
    }


def sql_metrics(rows: list[dict], texts: list[str], predictions: list[dict], params: Params) -> dict:
    """Judge the answers by execution on generated databases; each prediction gets its verdict."""
    settings = params.evaluate
    with tqdm(total=len(rows), desc="running SQL", unit=" rows") as bar:
        verdicts = verdict.score(
            rows,
            texts,
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
            progress=lambda done: bar.update(done - bar.n),
        )
    for prediction, judged in zip(predictions, verdicts, strict=True):
        prediction |= {"strict": judged.strict, "lenient": judged.lenient, "exact": judged.exact, "error": judged.error}
        prediction["judged"] = judged.gold is None  # else the gold query itself is no measure
    totals = verdict.totals(verdicts)
    return {
        "execution_accuracy": totals["strict"],
        "execution_accuracy_lenient": totals["lenient"],
        "exact_match": totals["exact"],
        "valid_sql": totals["valid"],
        "gold_undetermined": totals["undetermined"],
        "gold_invalid": totals["gold_invalid"],
    }


if __name__ == "__main__":
    several.work(main) if several.is_started() else run_stage(main)
