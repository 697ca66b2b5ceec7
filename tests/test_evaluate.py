"""evaluate and judge: batches answer as single prompts do, scores are the model's own, metrics are means of both."""

import json
import math
import os
import sys
from pathlib import Path

from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.runtime.console import Refusal
from qlora.scoring import transformers_run
from qlora.scoring.results import Answer, Results, Score, language_metrics, median_after_warm_up, peak_memory
from qlora.scoring.top_tokens import Top
from stages import evaluate, judge

import numpy as np
import pytest
import torch
from conftest import refused
from transformers import AutoModelForCausalLM

STOP = 2
NOTHING = Top(np.zeros((0, 64), np.int32), np.zeros((0, 64), np.float32))


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(10, 40000, (3 + at % 7,), generator=generator).tolist() for at in range(count)]


def test_a_batch_answers_as_single_prompts_do(model):
    def generate(batch_size: int) -> list[Answer]:
        return transformers_run.generate(model, prompts(9), [STOP], 0, 6, batch_size, lambda done: None)[0]

    assert generate(4) == generate(1)
    assert all(len(answer.ids) == 6 and not answer.stopped for answer in generate(4))


def test_prompts_with_a_common_prefix_are_read_together_and_answered_as_alone(model):
    start, other = prompts(60)[41] * 3, prompts(60)[27] * 2
    alike = [start + end for end in prompts(5)] + [other + end for end in prompts(3)] + prompts(2)
    assert sorted(map(sorted, transformers_run.families(alike))) == [[0, 1, 2, 3, 4], [5, 6, 7], [8], [9]]
    batch, _ = transformers_run.generate(model, alike, [STOP], 0, 6, 10, lambda done: None)
    alone = [transformers_run.generate(model, [one], [STOP], 0, 6, 1, lambda done: None)[0][0] for one in alike]
    assert batch == alone
    for prompt, answer in zip(alike, alone, strict=True):
        ids = torch.tensor([prompt])
        for token in answer.ids:
            with torch.no_grad():
                assert token == int(model(ids).logits[0, -1].argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_an_answer_ends_before_its_stop_token(model):
    (free,), _ = transformers_run.generate(model, prompts(1), [STOP], 0, 6, 1, lambda done: None)
    stop = free.ids[3]
    (answer,), _ = transformers_run.generate(model, prompts(1), [STOP, stop], 0, 6, 1, lambda done: None)
    assert answer.stopped
    assert answer.ids == free.ids[: free.ids.index(stop)]


def test_scores_of_a_batch_are_those_of_each_row_alone(model):
    rows = [Encoded(ids, [IGNORED] * 2 + ids[2:]) for ids in prompts(12)]
    scores = transformers_run.score(model, rows, lambda done: None)
    for row, score in zip(rows, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(row.input_ids[2:]), reduction="sum")
        assert score.supervised == len(row.input_ids) - 2
        assert score.nll == pytest.approx(float(expected), rel=1e-4)
        assert score.top1 == int((logits[1:-1].argmax(-1) == torch.tensor(row.input_ids[2:])).sum())
        assert (score.top.ids[:, 0] == logits[1:-1].argmax(-1).numpy()).all()


@pytest.fixture
def small_memory(monkeypatch):
    """A function that limits the memory to so many rows at a time; it returns the sizes of the batches tried."""

    def hold(most: int) -> list[int]:
        tried = []

        def limited(run):
            def run_if_it_fits(model, rows, *rest):
                tried.append(len(rows))
                if len(rows) > most:
                    raise torch.OutOfMemoryError
                return run(model, rows, *rest)

            return run_if_it_fits

        for name in ("_generate_batch", "_score_batch"):
            monkeypatch.setattr(transformers_run, name, limited(getattr(transformers_run, name)))
        return tried

    return hold


def test_batches_that_the_memory_does_not_hold_are_halved(model, small_memory):
    rows = [Encoded(ids, [IGNORED] * 2 + ids[2:]) for ids in prompts(13)]

    def answers_and_scores():
        seen = []
        answers, _ = transformers_run.generate(model, prompts(13), [STOP], 0, 6, 7, seen.append)
        scores = transformers_run.score(model, rows, seen.append)
        assert sum(seen) == 26
        return answers, scores

    answers, scores = answers_and_scores()
    tried = small_memory(2)
    answers_again, scores_again = answers_and_scores()
    # Halved twice; the larger sizes are not tried again.
    assert tried[:10] == [7, 4, 2, 2, 2, 1, 2, 1, 2, 1]
    assert tried[10:] == [13, 7, 4, 2, 2, 2, 1, 2, 1, 2, 1]
    assert answers_again == answers
    for again, once in zip(scores_again, scores, strict=True):
        assert (again.supervised, again.top1) == (once.supervised, once.top1)
        assert again.nll == pytest.approx(once.nll, rel=1e-5)
        assert (again.top.ids[:, 0] == once.top.ids[:, 0]).all()


@pytest.mark.usefixtures("prepared")
def test_one_row_that_the_memory_does_not_hold_is_refused(small_memory, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", "base"])
    small_memory(0)
    with pytest.raises(Refusal, match=r"\bbase\b.* \d+ tokens.*CUDA_VISIBLE_DEVICES= dvc repro evaluate@base"):
        evaluate.main()
    assert not list(Path("results").rglob("*.json*"))


@pytest.mark.usefixtures("prepared")
def test_an_artifact_gets_scores_and_a_record_for_each_row(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", "base"])
    evaluate.main()
    judge.main()
    rows = [json.loads(line) for line in Path("data/prepared/test.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in Path("results/predictions/base.jsonl").read_text().splitlines()]
    scores = json.loads(Path("results/scores/base.json").read_text())
    assert [record["id"] for record in records] == [row["id"] for row in rows]
    assert [record["supervised"] for record in records] == [row["supervised"] for row in rows]
    for record in records:
        assert record.keys() == {
            *("id", "answer", "answer_tokens", "stopped", "nll", "supervised", "top1"),
            *("execution_accuracy", "execution_accuracy_lenient", "exact_match", "valid_sql", "error", "unjudged"),
        }
    supervised = sum(record["supervised"] for record in records)
    assert scores["loss"] == pytest.approx(sum(record["nll"] for record in records) / supervised, abs=1e-4)
    judged = [record["execution_accuracy"] for record in records if record["unjudged"] is None]
    assert scores["execution_accuracy"] == round(np.mean(judged), 4)
    assert scores["judged"] == len(judged)
    assert scores["rows"] == len(rows)
    assert scores["environment"]["packages"].keys() == {"torch", "transformers", "peft", "bitsandbytes"}
    assert scores["environment"]["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_language_metrics_are_means_over_tokens_and_rows():
    answers = [Answer([5, 6], True), Answer([5, 6, 7, 8], False)]
    scores = [Score(1, 1.0, 1, NOTHING), Score(3, 5.0, 0, NOTHING)]
    assert language_metrics(Results(answers, scores, 12.34, 0.05678, 2_600_000), 1_250_000) == {
        "loss": 1.5,
        "perplexity": round(math.exp(1.5), 4),
        "next_token_accuracy": 0.25,
        "stop_rate": 0.5,
        "answer_tokens": 3,
        "answer_tokens_p50": 3.0,
        "answer_tokens_p95": 3.9,
        "rows": 2,
        "tokens_per_second": 12.3,
        "first_token_ms": 56.8,
        "peak_memory_mb": 3,
        "size_mb": 1.2,
    }
    assert language_metrics(Results(answers, scores, 1, 1, None), 0)["peak_memory_mb"] is None


def test_a_perplexity_larger_than_any_number_is_none():
    def perplexity(loss: float) -> float | None:
        return language_metrics(Results([Answer([], True)], [Score(2, 2 * loss, 0, NOTHING)], 1, 1, None), 0)[
            "perplexity"
        ]

    assert perplexity(709.0) == pytest.approx(math.exp(709.0))
    assert perplexity(710.0) is None


def test_the_first_measurement_warms_up():
    assert median_after_warm_up([9.0, 1.0, 2.0, 4.0]) == 2.0
    assert median_after_warm_up([9.0]) == 9.0


def test_peak_memory_is_that_of_the_process():
    assert 50e6 < peak_memory(os.getpid()) < 100e9
    assert peak_memory(2**30) is None


def test_an_artifact_that_is_not_there_names_what_makes_it(workspace):
    sentence = refused(workspace.run("evaluate", "--artifact", "merged"))
    assert sentence.startswith("models/merged ")
    assert "`dvc repro merge`" in sentence
