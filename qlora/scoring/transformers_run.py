"""Answers and teacher-forced scores of a transformers model, in batches of rows that begin alike where there are such.

The prompts of one schema differ in their last line only. What they share goes through the model once, and the keys and
values that it leaves are handed to each of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel

from qlora.rows.chat import IGNORED, Encoded
from qlora.scoring import top_tokens as distance
from qlora.scoring.top_tokens import Top

SCORED_TOKENS = 2048  # in a batch of teacher-forced scoring: its logits are (tokens, vocabulary) at most

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the stop token, and whether the model stopped by itself."""

    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class Score:
    """Of one row's supervised tokens: their number, summed negative log-likelihood (nats), how many had rank 1, and
    what was most probable at each."""

    tokens: int
    nll: float
    top1: int
    top: Top


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> tuple[list[Answer], float]:
    """Greedy answers to `prompts` (token ids), in their order, and the seconds that generating took.

    The longest prompt is in the first batch: if the memory does not suffice, that shows at once, and all batches
    are halved.
    """
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=pad
    )
    todo = [at for family in families(prompts) for at in family]
    batches = [todo[at : at + batch_size] for at in range(0, len(todo), batch_size)]
    begin = time.monotonic()
    answers = _in_batches(
        lambda batch: _generate_batch(model, [prompts[at] for at in batch], settings), batches, progress
    )
    return answers, time.monotonic() - begin


def _in_batches(
    run: Callable[[list[int]], list[T]], batches: list[list[int]], progress: Callable[[int], None]
) -> list[T]:
    """What `run` returns of each index in `batches`, in the indices' order.

    Where the memory does not suffice for a batch, it and all that are still to come are halved.

    Raises:
        torch.OutOfMemoryError: if it does not suffice for one row.
    """
    done: dict[int, T] = {}
    while batches:
        batch, *rest = batches
        try:
            done |= zip(batch, run(batch), strict=True)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        if batch[0] in done:
            batches = rest
            progress(len(batch))
        else:  # outside of the handler: what it handles holds on to the memory
            torch.cuda.empty_cache()
            batches = [half for batch in batches for half in _halves(batch) if half]
    return [done[at] for at in sorted(done)]


def _halves(batch: list[int]) -> tuple[list[int], list[int]]:
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]


@torch.inference_mode()
def _generate_batch(model: PreTrainedModel, prompts: list[Sequence[int]], settings: GenerationConfig) -> list[Answer]:
    pad = settings.pad_token_id
    read = read_starts(model, prompts, pad)
    rest = [list(prompt[length:]) for prompt, length in zip(prompts, read.lengths, strict=True)]
    width = max(map(len, rest))
    ids = torch.tensor([[pad] * (width - len(part)) + part for part in rest], device=model.device)
    mask = torch.tensor([[0] * (width - len(part)) + [1] * len(part) for part in rest], device=model.device)
    ids = torch.cat([read.ids, ids], 1)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.cat([read.mask, mask], 1),
        past_key_values=read.cache,
        generation_config=settings,
    )
    answers = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((at for at, token in enumerate(row) if token in settings.eos_token_id), None)
        answers.append(Answer(row[:end], end is not None))
    return answers


def families(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts of which each shares at least half with the first of its list; the longest prompt's list goes
    first."""
    found: list[list[int]] = []
    for at in sorted(range(len(prompts)), key=lambda at: prompts[at]):
        if found:
            first = prompts[found[-1][0]]
            if 2 * len(shared_start([first, prompts[at]])) >= max(len(first), len(prompts[at])):
                found[-1].append(at)
                continue
        found.append([at])
    return sorted(found, key=lambda family: -max(len(prompts[at]) for at in family))


def shared_start(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest start that all rows have."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return rows[0][: sum(1 for _ in same)]


def shares(rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Indices of `rows` (token ids) for each of `count` processes: about equally many tokens, and rows that begin alike
    together, but for a family that two share."""
    dealt: list[list[int]] = [[] for _ in range(count)]
    total, before = sum(map(len, rows)), 0
    for at in sorted(range(len(rows)), key=lambda at: rows[at]):
        dealt[before * count // total].append(at)
        before += len(rows[at])
    return dealt


@dataclass(frozen=True)
class Read:
    """What a model has read of some prompts: its cache, one line a prompt, and the ids and mask of what is no padding,
    both (prompts, tokens); `lengths`: how many ids of each prompt it has read."""

    cache: Cache
    ids: torch.Tensor
    mask: torch.Tensor
    lengths: list[int]


def read_starts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Read:
    """Let the model read how each prompt begins, once for all that begin alike; the last id of each is left."""
    starts, start_of = [], {}
    for family in families(prompts):
        start_of |= dict.fromkeys(family, len(starts))
        starts.append(shared_start([prompts[at][:-1] for at in family]))
    width = max(map(len, starts))
    blanks = [width - len(start) for start in starts]
    ids = [[pad] * blank + list(start) for blank, start in zip(blanks, starts, strict=True)]
    ids = torch.tensor(ids, device=model.device)
    mask = torch.tensor([[0] * blank + [1] * (width - blank) for blank in blanks], device=model.device)
    cache = model(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1
    ).past_key_values
    lines = torch.tensor([start_of[at] for at in range(len(prompts))], device=model.device)
    cache.batch_select_indices(lines)
    return Read(cache, ids[lines], mask[lines], mask[lines].sum(1).tolist())


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's place in its row, padding left out: (rows, tokens)."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[Encoded], progress: Callable[[int], None]) -> list[Score]:
    """Teacher-forced scores of each row's supervised tokens, in the rows' order."""
    return _in_batches(lambda batch: _score_batch(model, [rows[at] for at in batch]), score_batches(rows), progress)


def score_batches(rows: Sequence[Encoded]) -> list[list[int]]:
    """Batches of indices of rows, those that begin alike together, that have SCORED_TOKENS or are one row."""
    batches: list[list[int]] = [[]]
    for at in (at for family in families([row.input_ids for row in rows]) for at in family):
        longest = max(len(rows[other].input_ids) for other in [*batches[-1], at])
        if batches[-1] and longest * (len(batches[-1]) + 1) > SCORED_TOKENS:
            batches.append([])
        batches[-1].append(at)
    return batches if rows else []


def _score_batch(model: PreTrainedModel, rows: list[Encoded]) -> list[Score]:
    # Position t predicts token t + 1, and the first token of a row is never supervised.
    where = [[at for at, label in enumerate(row.labels) if label != IGNORED] for row in rows]
    read = read_starts(model, [row.input_ids[: at[0]] for row, at in zip(rows, where, strict=True)], pad=0)
    rest = [row.input_ids[length:] for row, length in zip(rows, read.lengths, strict=True)]
    width = max(map(len, rest))
    ids = torch.tensor([part + [0] * (width - len(part)) for part in rest], device=model.device)
    mask = torch.tensor([[1] * len(part) + [0] * (width - len(part)) for part in rest], device=model.device)
    mask = torch.cat([read.mask, mask], 1)
    first = min(at[0] - 1 - length for at, length in zip(where, read.lengths, strict=True))
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, -width:],
        past_key_values=read.cache,
        logits_to_keep=width - first,
    ).logits
    scores = []
    for line, row, at, length in zip(logits, rows, where, read.lengths, strict=True):
        at = torch.tensor(at, device=line.device)
        log_probs = torch.log_softmax(line[at - 1 - length - first].float(), dim=-1)
        gold = torch.tensor(row.input_ids, device=line.device)[at]
        nll = -log_probs.gather(1, gold[:, None]).sum()
        best = log_probs.topk(min(distance.COUNT, log_probs.shape[1]), sorted=True)
        top = Top(best.indices.int().cpu().numpy(), best.values.cpu().numpy())
        scores.append(Score(len(at), float(nll), int((best.indices[:, 0] == gold).sum()), top))
    return scores


@torch.inference_mode()
def seconds_to_first_token(model: PreTrainedModel, prompt: Sequence[int]) -> float:
    """From a prompt (token ids), alone in its batch, to the first id of its answer."""
    begin = time.monotonic()
    model(torch.tensor([list(prompt)], device=model.device), logits_to_keep=1).logits.argmax().item()
    return time.monotonic() - begin
