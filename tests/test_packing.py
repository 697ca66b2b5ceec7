"""Packs: every row is seen as often as promised, and rows of a pack do not attend to each other."""

from collections import Counter
from types import SimpleNamespace

from qlora.kernels import packed_attention
from qlora.recipe.schema import Quantization, Train
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.runtime.console import Refusal
from qlora.training import packing
from qlora.training.packing import Steps
from qlora.weights import loading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=50)
processes = st.integers(1, 5)


def plan(
    lengths: list[int],
    batch_size: int,
    pack_tokens: int,
    epochs: float = 1,
    max_steps: int | None = None,
    seed: int = 0,
    processes: int = 1,
) -> Steps:
    train = Train(
        batch_size=batch_size, epochs=epochs, max_steps=max_steps, seed=seed, max_length=200, learning_rate=1e-3
    )
    return packing.plan(lengths, train, pack_tokens, processes)


def rows_of(step: list[list[int]]) -> list[int]:
    return [row for pack in step for row in pack]


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(1, 20), st.integers(60, 200), st.integers(1, 3), st.integers(0, 9), processes)
def test_a_plan_keeps_its_promises(lengths, batch_size, pack_tokens, epochs, seed, processes):
    planned = plan(lengths, batch_size, pack_tokens, epochs, None, seed, processes)
    steps = planned.steps
    steps_per_epoch = -(-len(lengths) // batch_size)
    assert len(steps) == epochs * steps_per_epoch
    for epoch in range(epochs):
        of_epoch = steps[epoch * steps_per_epoch :][:steps_per_epoch]
        assert Counter(row for step in of_epoch for row in rows_of(step)) == Counter(range(len(lengths)))
    sizes = [len(rows_of(step)) for step in steps]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len({len(step) for step in steps}) == 1
    assert max(sum(lengths[row] for row in pack) for step in steps for pack in step) <= pack_tokens
    assert planned == plan(lengths, batch_size, pack_tokens, epochs, None, seed, processes)


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(1, 20), st.integers(60, 200), st.integers(1, 3), processes)
def test_the_figures_of_a_plan_agree_with_each_other(lengths, batch_size, pack_tokens, epochs, processes):
    steps = plan(lengths, batch_size, pack_tokens, epochs, processes=processes)
    packs = steps.packs_a_step
    assert len(steps.packs) == len(steps.pack_tokens) == len(steps) * packs
    assert steps.tokens == [sum(steps.pack_tokens[packs * step :][:packs]) for step in range(len(steps))]
    assert sum(steps.tokens) == epochs * sum(lengths)
    assert steps.rows == epochs * len(lengths)
    assert steps.pack_tokens[steps.longest_pack] == max(steps.pack_tokens)
    assert sum(lengths[row] for row in steps.packs[steps.longest_pack]) == max(steps.pack_tokens)


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(1, 20), st.integers(60, 200), st.integers(60, 200), processes)
def test_packs_and_processes_do_not_change_what_a_step_sees(lengths, batch_size, small, large, processes):
    first = plan(lengths, batch_size, small)
    second = plan(lengths, batch_size, large, processes=processes)
    assert [sorted(rows_of(step)) for step in first.steps] == [sorted(rows_of(step)) for step in second.steps]


@settings(deadline=None, max_examples=60)
@example([60] * 6, 6, 120, 2)  # each process has a full pack and one that is half full
@given(lengths, st.integers(1, 20), st.integers(60, 200), processes)
def test_processes_take_equally_many_packs_and_about_as_many_tokens(lengths, batch_size, pack_tokens, processes):
    for step in plan(lengths, batch_size, pack_tokens, processes=processes).steps:
        assert len(step) % processes == 0
        shares = [rows_of(step[process::processes]) for process in range(processes)]
        tokens = [sum(lengths[row] for row in share) for share in shares]
        assert max(tokens) - min(tokens) <= max(lengths[row] for row in rows_of(step))


def test_epochs_differ_in_order_and_seeds_differ():
    steps = plan([1] * 40, 4, 40, epochs=2).steps
    assert steps[:10] != steps[10:]
    assert steps != plan([1] * 40, 4, 40, epochs=2, seed=1).steps


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(0.5, None, 5), (1.5, None, 15), (0.01, None, 1), (3, 7, 7), (1, 70, 10)]
)
def test_parts_of_an_epoch(epochs, max_steps, steps):
    planned = plan([3] * 40, 4, 100, epochs, max_steps)
    assert len(planned) == steps
    assert max(Counter(row for pack in planned.packs for row in pack).values()) == -(-steps // 10)


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(60, 200))
def test_packs_of_the_evaluation_hold_each_row_once(lengths, pack_tokens):
    packs = packing.pack_evaluation(lengths, pack_tokens)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(pack and sum(lengths[row] for row in pack) <= pack_tokens for pack in packs)


def test_a_pack_is_its_rows_concatenated():
    encoded = [Encoded([1, 2, 3], [IGNORED, 2, 3]), Encoded([4, 5], [IGNORED, 5])]
    dataset = packing.pack_dataset([[1, 0], []], encoded, pad_token_id=9)
    assert dataset[0] == {
        "input_ids": [4, 5, 1, 2, 3],
        "labels": [IGNORED, 5, IGNORED, 2, 3],
        "seq_lengths": [2, 3],
    }
    assert dataset[1] == {"input_ids": [9], "labels": [IGNORED], "seq_lengths": [1]}


# What the model computes


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 49_000, (length,), generator=generator).tolist() for length in (7, 1, 19, 12)]
    return [Encoded(row, row) for row in ids]


def pack_of(rows: list[Encoded]) -> dict[str, torch.Tensor | bool | int]:
    """A pack as training hands it to the model, with the rows' boundaries from trl's collator."""
    lengths = [len(row.input_ids) for row in rows]
    ends, longest = torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths)
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "use_cache": False,  # with a cache transformers does not keep the rows apart
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@pytest.mark.parametrize("attention", ["sdpa", packed_attention.NAME])
def test_packed_logits_are_those_of_each_row_alone(tiny_model, rows, attention):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=attention).eval()
    alone = [model(torch.tensor([row.input_ids])).logits[0] for row in rows]
    with torch.inference_mode():
        packed = model(**pack_of(rows)).logits[0]
    torch.testing.assert_close(packed, torch.cat(alone).detach(), atol=1e-5, rtol=0)
    assert torch.cat(alone).std() > 0.1  # or 1e-5 would prove nothing


@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    [
        ("cpu", torch.float32, 1e-6),
        pytest.param(
            "cuda", torch.bfloat16, 2e-2, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[9], [4, 1, 6]])
def test_packed_attention_is_attention_with_a_mask(key_heads, lengths, window, cap, device, dtype, tolerance):
    torch.manual_seed(0)
    tokens = sum(lengths)
    query = torch.randn(1, 4, tokens, 8, device=device, dtype=dtype, requires_grad=True)
    key, value = torch.randn(2, 1, key_heads, tokens, 8, device=device, dtype=dtype)
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    at = torch.arange(tokens, device=device)
    row = (at.unsqueeze(1) >= ends[1:]).sum(1)
    back = at.unsqueeze(1) - at
    mask = (row.unsqueeze(1) == row) & (back >= 0) & (back < (window or tokens))
    if cap is None:
        expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    else:
        layer = SimpleNamespace(num_key_value_groups=4 // key_heads, training=False)
        mask = torch.where(mask, 0, torch.finfo(dtype).min).to(dtype)
        expected, _ = eager_attention_forward(layer, query, key, value, mask, scaling=0.3, softcap=cap)
    bounds = {"cu_seq_lens_q": ends, "max_length_q": max(lengths), "sliding_window": window, "softcap": cap}
    got, weights = packed_attention.packed_attention(None, query, key, value, None, scaling=0.3, **bounds)
    assert weights is None
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=10 * tolerance)
    (gradient,) = torch.autograd.grad(got.square().sum(), query)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), query)
    torch.testing.assert_close(gradient, expected_gradient, atol=10 * tolerance, rtol=100 * tolerance)


@pytest.fixture(scope="module")
def capped_model(tmp_path_factory):
    """The folder of a model with a low cap on attention scores (Gemma 2)."""
    folder = tmp_path_factory.mktemp("capped")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": 8}
    config = Gemma2Config(**shape, **heads, vocab_size=49_152, initializer_range=0.3, attn_logit_softcapping=0.5)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


LOADED = {
    "plain": lambda folder, attention: loading.load_plain(folder, torch.float32),
    "nf4": lambda folder, attention: loading.load_base(folder, Quantization(compute_dtype="float32"), attention),
}


@pytest.mark.parametrize(("kind", "attention"), [("plain", None), ("nf4", None), ("nf4", packed_attention.NAME)])
@torch.inference_mode()
def test_a_model_computes_its_capped_scores_however_it_is_loaded(capped_model, rows, kind, attention):
    model, reference = LOADED[kind](capped_model, attention), LOADED[kind](capped_model, None)
    reference.set_attn_implementation("sdpa")
    uncapped = reference(torch.tensor([rows[2].input_ids])).logits[0]
    reference.set_attn_implementation("eager")
    alone = [reference(torch.tensor([row.input_ids])).logits[0] for row in rows]
    assert (uncapped - alone[2]).abs().max() > 0.1  # or the rest would prove nothing
    for row, logits in zip(rows, alone, strict=True):
        torch.testing.assert_close(model(torch.tensor([row.input_ids])).logits[0], logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(**pack_of(rows)).logits[0], torch.cat(alone), atol=1e-4, rtol=0)


def test_packed_attention_leaves_nothing_out_silently():
    query = torch.randn(1, 2, 3, 8)
    with pytest.raises(Refusal, match=r"position_bias.*train\.compile"):
        packed_attention.packed_attention(None, query, query, query, None, position_bias=torch.zeros(2))
