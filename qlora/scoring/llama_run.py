"""Answers and teacher-forced scores of a GGUF by llama-server, as it will be served."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora.llama_cpp.scorer import Scored, Server
from qlora.recipe.schema import Params
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.scoring.results import TIMED_PROMPTS, Answer, Results, Score, count_tokens, median_after_warm_up, peak_memory
from qlora.scoring.top_tokens import COUNT, Top

import numpy as np
import torch
from tqdm import tqdm

SLOTS = 8  # requests at once, to measure tokens a second
TIMED_ANSWERS = 2 * SLOTS  # to measure tokens a second


def run(gguf: Path, rows: Sequence[Encoded], params: Params, lora: Path | None = None) -> Results:
    """Answers and teacher-forced scores of `rows`, equal in every run; prompts are sent as token ids.

    `lora` is the GGUF of an adapter, if the one of the base model is scored with it.
    """
    limit = params.evaluate.max_new_tokens
    context = max(max(row.prompt_length + limit, len(row.input_ids)) for row in rows) + 8

    def answer_and_score(row: Encoded) -> tuple[Answer, Score]:
        completion = server.complete(row.input_ids[: row.prompt_length], limit, count=COUNT)
        supervised = [at for at, label in enumerate(row.labels) if label != IGNORED]
        scored = server.score(row.input_ids, supervised, COUNT, completion)
        gold = [row.input_ids[at] for at in supervised]
        bar.update()
        return Answer(completion.tokens, completion.stopped), gguf_score(scored, gold)

    def answer(row: Encoded) -> Answer:
        completion = server.complete(row.input_ids[: row.prompt_length], limit, reuse=False)
        return Answer(completion.tokens, completion.stopped)

    def first_token(row: Encoded) -> float:
        begin = time.monotonic()
        server.complete(row.input_ids[: row.prompt_length], 1, reuse=False)
        return time.monotonic() - begin

    # Sorted, so that the slot's cache holds the prefix of the next row of the same schema.
    in_order = sorted(range(len(rows)), key=lambda at: rows[at].input_ids)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    # The pool is the outer context: if the stage ends early, the server stops first, so no thread waits for it.
    with ThreadPoolExecutor(SLOTS) as pool, Server(gguf, context=context, slots=SLOTS, lora=lora) as server:
        waited = [first_token(row) for row in rows[:1] + rows[:TIMED_PROMPTS]]
        with tqdm(total=len(rows), desc="answering and scoring tokens", unit=" rows") as bar:
            # One at a time: results depend on what else is in a batch, and its composition on timing.
            done = {at: answer_and_score(rows[at]) for at in in_order}
        begin = time.monotonic()  # several at a time, as they are served
        speed = count_tokens(pool.map(answer, rows[:TIMED_ANSWERS])) / (time.monotonic() - begin)
        peak = free - torch.cuda.mem_get_info()[0] if uses_gpu(server.pid) else peak_memory(server.pid)
    answers, scores = zip(*(done[at] for at in range(len(rows))), strict=True)
    return Results(list(answers), list(scores), speed, median_after_warm_up(waited), peak)


def gguf_score(tokens: list[Scored], gold: list[int]) -> Score:
    """llama-server's scores of one row's supervised tokens, `gold`."""
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
