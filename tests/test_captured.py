"""Micro-batches as CUDA graphs: their sizes, and that they compute what the trainer's own micro-batches do."""

import itertools
import json
from pathlib import Path

from qlora.kernels import head
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.training import captured, packing
from qlora.training.packing import Steps

import pandas
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig
from trl.trainer.utils import add_fused_lm_head

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, final_logit_softcapping=0.5),
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
}


def row(length: int, supervised: int) -> Encoded:
    ids = [1 + at % 90 for at in range(length)]
    return Encoded(ids, [IGNORED] * (length - supervised) + ids[length - supervised :])


def padding(lengths: tuple[int, ...], sizes: list[int]) -> int:
    return sum(next(size for size in sorted(sizes) if size >= length) - length for length in lengths)


@pytest.mark.parametrize(
    "lengths", [(100,), (128, 129), (100, 300, 500, 700, 900), (128, 1000, 1024, 1025, 3000, 3001, 3100, 4000)]
)
def test_sizes_hold_all_packs_with_the_least_padding(lengths):
    rows = [row(length, length // 4) for length in lengths]
    steps = Steps([[[at]] for at in range(len(rows))], lengths)
    for most in (1, 2, 3):
        sizes = captured.sizes_of(steps, rows, most)
        assert len(sizes) <= most
        assert sizes == sorted(sizes)
        for one in rows:
            size = next(size for size in sizes if size.tokens >= len(one.input_ids))
            assert size.tokens % 128 == 0
            assert size.supervised >= one.supervised
        rounded = {-(-length // 128) * 128 for length in lengths}
        choices = (c for n in range(1, most + 1) for c in itertools.combinations(rounded, n) if max(c) == max(rounded))
        assert padding(lengths, [size.tokens for size in sizes]) == min(padding(lengths, c) for c in choices)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("supervised", [(), (0, 5, 6), (1, 4, 19)])
def test_the_loss_is_that_of_trls_head(name, supervised):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    add_fused_lm_head(model)
    ids = torch.randint(1, 97, (1, 20))
    labels = torch.full_like(ids, IGNORED)
    labels[0, list(supervised)] = ids[0, list(supervised)]
    expected = -model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum()
    hidden = model.base_model(input_ids=ids).last_hidden_state[0]
    loss = head.negative_log_likelihood(model, hidden, labels[0], most=5)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, hidden)
    learned = {at - 1 for at in supervised if at}
    assert {at for at in range(20) if gradient[at].any()} == learned


def test_a_padded_micro_batch_adds_the_gradients_of_its_rows():
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_config(CONFIGS["llama"]), adapter)
    rows = [row(30, 10), row(17, 16)]
    sizes = captured.sizes_of(packing.Steps([[[0], [1]]], [30, 17]), rows)
    batches = captured.MicroBatches(model, sizes, None, pad=0)
    losses = []
    for one in rows:
        pack = {
            "input_ids": torch.tensor([one.input_ids]),
            "position_ids": torch.arange(len(one.input_ids))[None],
            "labels": torch.tensor([one.labels]),
        }
        size = batches.fill(pack, torch.tensor(26))
        assert size.tokens == 128
        losses.append(batches.compute(size).item())
    added = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected = 0.0
    for one in rows:
        logits = model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(one.labels[1:]), reduction="sum") / 26
        loss.backward()
        expected += loss.item()
    assert sum(losses) == pytest.approx(expected, abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(added[name], parameter.grad, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_logs_each_step_once_and_repeats_to_the_byte(prepared, monkeypatch):
    monkeypatch.chdir(prepared.path)
    prepared.set({"train.compile": True, "lora.dropout": 0.1, "train.epochs": 2.0})
    adapters = []
    for _ in range(2):
        done = prepared.run("quantize_load_train")
        assert done.returncode == 0
        assert "without CUDA graphs" not in done.stdout
        log = pandas.read_csv("results/train/log.csv")
        steps = json.loads(Path("results/train/metrics.json").read_text())["steps"]
        assert log["step"].tolist() == list(range(1, steps + 1))
        assert log["loss"].between(0.5 * log["loss"].median(), 1.5 * log["loss"].median()).all()
        adapters.append(Path("models/adapter/adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
