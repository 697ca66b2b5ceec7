"""Answers and teacher-forced scores of a transformers model, in batches sorted by length."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from stages import distance, packing
from stages.chat import Encoded
from stages.distance import Top

PACK_TOKENS = 1024  # of teacher-forced scoring: the logits of a pack are (tokens, vocabulary)


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

    Longest prompts go first: if the memory does not suffice, that shows at once, and the batch is halved.
    """
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=pad
    )
    todo = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    answers: dict[int, Answer] = {}
    begin = time.monotonic()
    while todo:
        batch, rest = todo[:batch_size], todo[batch_size:]
        try:
            answers |= zip(batch, _generate_batch(model, [prompts[at] for at in batch], settings), strict=True)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()
            continue
        todo = rest
        progress(len(batch))
    return [answers[at] for at in range(len(prompts))], time.monotonic() - begin


@torch.inference_mode()
def _generate_batch(model: PreTrainedModel, prompts: list[Sequence[int]], settings: GenerationConfig) -> list[Answer]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = [[settings.pad_token_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
    )
    answers = []
    for row in output[:, width:].tolist():
        end = next((at for at, token in enumerate(row) if token in settings.eos_token_id), None)
        answers.append(Answer(row[:end], end is not None))
    return answers


@torch.inference_mode()
def score(model: PreTrainedModel, rows: Sequence[Encoded], progress: Callable[[int], None]) -> list[Score]:
    """Teacher-forced scores of each row's supervised tokens, in the rows' order."""
    lengths = [len(row.input_ids) for row in rows]
    scores: dict[int, Score] = {}
    for pack in packing.pack_evaluation(lengths, max(PACK_TOKENS, *lengths)):
        logits = model(**packing.pack_tensors([rows[at] for at in pack], model.device)).logits[0]
        begin = 0
        for at in pack:
            # Position t predicts token t + 1, and the first token of a row is never supervised.
            labels = torch.tensor(rows[at].labels[1:], device=logits.device)
            where = torch.nonzero(labels >= 0).flatten()
            log_probs = torch.log_softmax(logits[begin + where].float(), dim=-1)
            gold = labels[where]
            nll = -log_probs.gather(1, gold[:, None]).sum()
            best = log_probs.topk(min(distance.COUNT, log_probs.shape[1]), sorted=True)
            top = Top(best.indices.int().cpu().numpy(), best.values.cpu().numpy())
            scores[at] = Score(len(where), float(nll), int((best.indices[:, 0] == gold).sum()), top)
            begin += lengths[at]
        progress(len(pack))
    return [scores[at] for at in range(len(rows))]


@torch.inference_mode()
def seconds_to_first_token(model: PreTrainedModel, prompt: Sequence[int]) -> float:
    """From a prompt (token ids), alone in its batch, to the first id of its answer."""
    begin = time.monotonic()
    model(torch.tensor([list(prompt)], device=model.device), logits_to_keep=1).logits.argmax().item()
    return time.monotonic() - begin
