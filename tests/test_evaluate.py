"""evaluate and report: batches answer as single prompts do, scores are the model's own, tables show what is there."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from transformers import AutoModelForCausalLM

from qlora.rows.chat import IGNORED, Encoded
from qlora.runtime.console import Refusal
from qlora.scoring import transformers_run as hf_inference
from qlora.scoring.top_tokens import Top
from qlora.scoring.transformers_run import Answer, Score
from stages import evaluate, report

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
        return hf_inference.generate(model, prompts(9), [STOP], 0, 6, batch_size, lambda done: None)[0]

    assert generate(4) == generate(1)
    assert all(len(answer.ids) == 6 and not answer.stopped for answer in generate(4))


def test_prompts_that_begin_alike_are_read_together_and_answered_as_alone(model):
    start, other = prompts(60)[41] * 3, prompts(60)[27] * 2
    alike = [start + end for end in prompts(5)] + [other + end for end in prompts(3)] + prompts(2)
    assert sorted(map(sorted, hf_inference.families(alike))) == [[0, 1, 2, 3, 4], [5, 6, 7], [8], [9]]
    batch, _ = hf_inference.generate(model, alike, [STOP], 0, 6, 10, lambda done: None)
    alone = [hf_inference.generate(model, [one], [STOP], 0, 6, 1, lambda done: None)[0][0] for one in alike]
    assert batch == alone
    for prompt, answer in zip(alike, alone, strict=True):
        ids = torch.tensor([prompt])
        for token in answer.ids:
            with torch.no_grad():
                assert token == int(model(ids).logits[0, -1].argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_an_answer_ends_before_its_stop_token(model):
    (free,), _ = hf_inference.generate(model, prompts(1), [STOP], 0, 6, 1, lambda done: None)
    stop = free.ids[3]
    (answer,), _ = hf_inference.generate(model, prompts(1), [STOP, stop], 0, 6, 1, lambda done: None)
    assert answer.stopped
    assert answer.ids == free.ids[: free.ids.index(stop)]


def test_scores_of_packed_rows_are_those_of_each_row_alone(model):
    rows = [Encoded(ids, [IGNORED] * 2 + ids[2:]) for ids in prompts(12)]
    scores = hf_inference.score(model, rows, lambda done: None)
    for row, score in zip(rows, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(row.input_ids[2:]), reduction="sum")
        assert score.tokens == len(row.input_ids) - 2
        assert score.nll == pytest.approx(float(expected), rel=1e-4)
        assert score.top1 == int((logits[1:-1].argmax(-1) == torch.tensor(row.input_ids[2:])).sum())
        assert (score.top.ids[:, 0] == logits[1:-1].argmax(-1).numpy()).all()


@pytest.fixture
def small_memory(monkeypatch):
    """Lets the memory suffice for no more rows at a time than is said; returns the sizes of the batches tried."""

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
            monkeypatch.setattr(hf_inference, name, limited(getattr(hf_inference, name)))
        return tried

    return hold


def test_batches_that_the_memory_does_not_hold_are_halved(model, small_memory):
    rows = [Encoded(ids, [IGNORED] * 2 + ids[2:]) for ids in prompts(13)]

    def answers_and_scores():
        seen = []
        answers, _ = hf_inference.generate(model, prompts(13), [STOP], 0, 6, 7, seen.append)
        scores = hf_inference.score(model, rows, seen.append)
        assert sum(seen) == 26
        return answers, scores

    answers, scores = answers_and_scores()
    tried = small_memory(2)
    answers_again, scores_again = answers_and_scores()
    # Halved twice, and not tried in the larger size again.
    assert tried[:10] == [7, 4, 2, 2, 2, 1, 2, 1, 2, 1]
    assert tried[10:] == [13, 7, 4, 2, 2, 2, 1, 2, 1, 2, 1]
    assert answers_again == answers
    for again, once in zip(scores_again, scores, strict=True):
        assert (again.tokens, again.top1) == (once.tokens, once.top1)
        assert again.nll == pytest.approx(once.nll, rel=1e-5)
        assert (again.top.ids[:, 0] == once.top.ids[:, 0]).all()


@pytest.mark.usefixtures("prepared")
def test_one_row_that_the_memory_does_not_hold_is_said(small_memory, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", "base"])
    small_memory(0)
    with pytest.raises(Refusal, match=r"does not hold base and one row at a time, of which the longest has \d+ tokens"):
        evaluate.main()
    assert not Path("metrics").exists()


def test_language_metrics_are_means_over_tokens_and_rows():
    answers = [Answer([5, 6], True), Answer([5, 6, 7, 8], False)]
    metrics = evaluate.language_metrics(answers, [Score(1, 1.0, 1, NOTHING), Score(3, 5.0, 0, NOTHING)])
    assert metrics == {
        "loss": 1.5,
        "perplexity": round(math.exp(1.5), 4),
        "next_token_accuracy": 0.25,
        "stop_rate": 0.5,
        "answer_tokens": 3,
        "answer_tokens_p50": 3.0,
        "answer_tokens_p95": 3.9,
        "rows": 2,
    }


def test_peak_memory_is_that_of_the_process():
    peak = evaluate.peak_memory(os.getpid())
    assert 50e6 < peak < 100e9
    assert evaluate.peak_memory(2**30) is None


def test_an_artifact_that_is_not_there_names_what_makes_it(workspace):
    sentence = refused(workspace.run("evaluate", "--artifact", "merged"))
    assert sentence == "models/merged is not there; run `dvc repro evaluate@merged`, which makes it first"


def test_the_table_has_a_column_for_each_measure_that_all_artifacts_have():
    common = {"loss": 0.1234, "stop_rate": 1.0, "tokens_per_second": 1234.6, "size_mb": 269.06}
    metrics = {"base": common | {"execution_accuracy": 0.0}, "Q8_0": common}
    head, rule, base, _ = report.plain_table(metrics, report.QUALITY | report.COST).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["artifact", "loss", "stops", "MB", "tokens/s"]
    assert [cell.strip() for cell in base.strip("|").split("|")] == ["base", "0.123", "100.0%", "269", "1,235"]
    assert len(rule) == len(head)


def test_the_most_telling_answers_are_those_that_artifacts_disagree_on():
    def answers(right: str) -> list[dict]:
        return [{"strict": one == "1", "judged": True} for one in right]

    predictions = {"base": answers("0000"), "adapter": answers("1110"), "merged": answers("1110")}
    predictions |= {"Q8_0": answers("1100"), "Q4_K_M": answers("1000")}
    assert report.telling(predictions) == [2, 1, 3]
    chat = {
        name: [{"nll": nll, "supervised": 2} for nll in losses]
        for name, losses in {"adapter": (1, 1, 1), "merged": (1, 3, 2)}.items()
    }
    assert report.telling(chat) == [1, 2, 0]


def test_a_missing_metric_names_what_makes_it(tmp_path):
    with pytest.raises(report.Refusal, match=r"run `dvc repro evaluate@Q8_0`"):
        report.read_metrics(tmp_path / "Q8_0.json")
