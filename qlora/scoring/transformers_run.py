"""Answers and teacher-forced scores by transformers, in batches of rows with a common prefix.

The prompts of one schema differ in their last line only. Their common prefix goes through the model once, and each of
them continues from its keys and values.
"""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from qlora.processes import group
from qlora.recipe.artifacts import Artifact
from qlora.recipe.schema import Params
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.scoring.results import TIMED_PROMPTS, Answer, Results, Score, count_tokens, median_after_warm_up, peak_memory
from qlora.scoring.top_tokens import COUNT, Top
from qlora.weights.architecture import mixing_layers

import torch
from tqdm import tqdm
from transformers import Cache, GenerationConfig, PreTrainedModel

SCORED_TOKENS = 2048  # of a batch of teacher-forced scoring; its logits are (tokens, vocabulary) at most

T = TypeVar("T")


def load(artifact: Artifact, base: Path) -> PreTrainedModel:
    """An artifact as a transformers model that is ready to answer.

    Args:
        artifact: One that transformers answers for.
        base: Folder of the base model.
    """
    from qlora.weights import (  # bitsandbytes takes seconds to import; a GGUF needs none of it
        compressed,
        loading,
        quantized,
    )

    if artifact.name == "base":
        model = loading.load_plain(base, torch.bfloat16)
    elif artifact.name == "adapter":
        model = loading.load_base(base, quantized.read(artifact.folder))
        loading.dequantize(model)
        model = loading.load_adapter(model, artifact.folder, base)
    elif artifact.name == "merged":
        model = loading.load_plain(artifact.folder, torch.bfloat16)
    else:
        model = compressed.load(artifact.folder)
    return model.eval()


def processes_for(artifact: Artifact, base: Path) -> int:
    """How many processes share the test rows: one for each visible GPU if each can hold the artifact, else one."""
    gpus = torch.cuda.device_count()
    if gpus > 1:
        from qlora.weights import loading, quantized

        is_adapter = artifact.name == "adapter"
        if is_adapter and quantized.read(artifact.folder).in_4_bits:
            return gpus  # it stays in 4 bits if memory is short
        needed = loading.plain_bytes(base if is_adapter or artifact.name == "base" else artifact.folder, torch.bfloat16)
        if needed > min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus)):
            return 1  # the model then goes to the CPU, whose memory would not hold several
    return max(1, gpus)


def run(model: PreTrainedModel, rows: Sequence[Encoded], chat: Chat, params: Params) -> Results:
    """Answers and teacher-forced scores of `rows`, by all processes that share them. Every process must call this.

    Raises:
        torch.OutOfMemoryError: if the memory does not suffice for one row.
    """
    settings, here = params.evaluate, group.state()
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    waited = [seconds_to_first_token(model, prompt) for prompt in prompts[:1] + prompts[:TIMED_PROMPTS]]
    shares_ = shares([row.input_ids for row in rows], here.num_processes)
    share = shares_[here.process_index]
    with tqdm(total=len(share), desc="answering", unit=" rows") as bar:
        answers, seconds = generate(
            model,
            [prompts[at] for at in share],
            chat.stops,
            chat.pad,
            settings.max_new_tokens,
            settings.batch_size,
            bar.update,
        )
    with tqdm(total=len(share), desc="scoring tokens", unit=" rows") as bar:
        scores = score(model, [rows[at] for at in share], bar.update)
    peak = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else peak_memory(os.getpid())
    parts = group.gathered((list(zip(answers, scores, strict=True)), seconds, peak or 0))
    done, seconds, peaks = zip(*parts, strict=True)
    chain = itertools.chain.from_iterable
    by_row = dict(zip(chain(shares_), chain(done), strict=True))
    answers, scores = zip(*(by_row[at] for at in range(len(rows))), strict=True)
    speed = count_tokens(answers) / max(seconds)
    return Results(list(answers), list(scores), speed, median_after_warm_up(waited), max(peaks) or None)


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

    The longest prompt is in the first batch, so too little memory shows at once.
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
    """Call `run` on each batch of indices; return the results in the order of the indices.

    If the memory does not suffice for a batch, it and all later ones are halved.

    Raises:
        torch.OutOfMemoryError: if the memory does not suffice for one row.
    """
    done: dict[int, T] = {}
    while batches:
        batch, *rest = batches
        fits = True
        try:
            done |= zip(batch, run(batch), strict=True)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            fits = False
        if fits:
            batches = rest
            progress(len(batch))
        else:  # not in the handler, where the exception keeps the memory alive
            torch.cuda.empty_cache()
            batches = [half for batch in batches for half in _halves(batch) if half]
    return [done[at] for at in sorted(done)]


def _halves(batch: list[int]) -> tuple[list[int], list[int]]:
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]


@torch.inference_mode()
def _generate_batch(model: PreTrainedModel, prompts: list[Sequence[int]], settings: GenerationConfig) -> list[Answer]:
    pad = settings.pad_token_id
    read = read_prefixes(model, prompts, pad)
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
    """Group the prompts by a common prefix: each shares at least half of its ids with the first of its group.

    Returns:
        Groups of indices; the group with the longest prompt comes first.
    """
    found: list[list[int]] = []
    for at in sorted(range(len(prompts)), key=lambda at: prompts[at]):
        if found:
            first = prompts[found[-1][0]]
            if 2 * len(common_prefix([first, prompts[at]])) >= max(len(first), len(prompts[at])):
                found[-1].append(at)
                continue
        found.append([at])
    return sorted(found, key=lambda family: -max(len(prompts[at]) for at in family))


def common_prefix(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest common prefix of the rows."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return rows[0][: sum(1 for _ in same)]


def shares(rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Indices of `rows` (token ids) for each of `count` processes.

    Each gets about equally many tokens; rows with a common prefix stay together, except where two processes share one.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    total, before = sum(map(len, rows)), 0
    for at in sorted(range(len(rows)), key=lambda at: rows[at]):
        dealt[before * count // total].append(at)
        before += len(rows[at])
    return dealt


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of some prompts after a forward pass.

    Attributes:
        cache: Keys and values, one line a prompt; None if nothing was read.
        ids: Token ids, (prompts, tokens), padded on the left.
        mask: 1 where `ids` is not padding, (prompts, tokens).
        lengths: Ids of each prompt that are in the cache.
    """

    cache: Cache | None
    ids: torch.Tensor
    mask: torch.Tensor
    lengths: list[int]


def read_prefixes(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prefixes:
    """Compute keys and values of common prefixes once each; at least the last id of each prompt is left over.

    Recurrent layers would go on through the padding between a prefix and the rest, so with them nothing is read ahead.
    """
    starts, start_of = [], {}
    for family in families(prompts):
        start_of |= dict.fromkeys(family, len(starts))
        starts.append(common_prefix([prompts[at][:-1] for at in family]))
    width = max(map(len, starts))
    if mixing_layers(model) or not width:
        nothing = torch.empty((len(prompts), 0), dtype=torch.long, device=model.device)
        return Prefixes(None, nothing, nothing, [0] * len(prompts))
    blanks = [width - len(start) for start in starts]
    ids = [[pad] * blank + list(start) for blank, start in zip(blanks, starts, strict=True)]
    ids = torch.tensor(ids, device=model.device)
    mask = torch.tensor([[0] * blank + [1] * (width - blank) for blank in blanks], device=model.device)
    cache = model(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1
    ).past_key_values
    lines = torch.tensor([start_of[at] for at in range(len(prompts))], device=model.device)
    cache.batch_select_indices(lines)
    return Prefixes(cache, ids[lines], mask[lines], mask[lines].sum(1).tolist())


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids (rows, tokens) of left-padded rows."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[Encoded], progress: Callable[[int], None]) -> list[Score]:
    """Teacher-forced scores of each row's supervised tokens, in the rows' order."""
    return _in_batches(lambda batch: _score_batch(model, [rows[at] for at in batch]), score_batches(rows), progress)


def score_batches(rows: Sequence[Encoded]) -> list[list[int]]:
    """Prefix-sorted batches of row indices, of at most SCORED_TOKENS padded tokens or one row."""
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
    read = read_prefixes(model, [row.input_ids[: at[0]] for row, at in zip(rows, where, strict=True)], pad=0)
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
        best = log_probs.topk(min(COUNT, log_probs.shape[1]), sorted=True)
        top = Top(best.indices.int().cpu().numpy(), best.values.cpu().numpy())
        scores.append(Score(len(at), float(nll), int((best.indices[:, 0] == gold).sum()), top))
    return scores


@torch.inference_mode()
def seconds_to_first_token(model: PreTrainedModel, prompt: Sequence[int]) -> float:
    """Seconds from a prompt (token ids), alone in its batch, to the first id of its answer."""
    begin = time.monotonic()
    model(torch.tensor([list(prompt)], device=model.device), logits_to_keep=1).logits.argmax().item()
    return time.monotonic() - begin
