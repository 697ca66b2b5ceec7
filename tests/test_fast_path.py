"""Compiled layers compute what plain layers do, keep what the memory plan counts, and compile once for all lengths."""

import copy

from qlora.kernels import compiled_layers, nf4_linear
from qlora.training import memory
from qlora.weights import loading

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from trainers import nf4_model
from transformers import AutoModelForCausalLM, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
BACKEND = "aot_eager_decomp_partition"  # partitions the graph as inductor does, without generating code


IN_4_BITS = pytest.mark.parametrize("in_4_bits", [True, False], ids=["nf4", "none"])  # quantization.type


def tiny_model(dropout: float = 0.0, in_4_bits: bool = True):
    """Two layers in NF4 or plain that compute in 32 bits, so that differences are mistakes and not rounding."""
    torch.manual_seed(0)
    model = nf4_model(copy.deepcopy(CONFIG)) if in_4_bits else AutoModelForCausalLM.from_config(CONFIG)
    adapter = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(model, adapter).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def pack(*lengths: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(0, 512, (1, sum(lengths))),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }


def gradients(model, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_weights_are_those_of_bitsandbytes(double, device):
    weight = Params4bit(
        torch.randn(192, 128, dtype=torch.bfloat16),
        requires_grad=False,
        compress_statistics=double,
        quant_type="nf4",
    )._quantize(torch.device(device))
    layer = Linear4bit(128, 192, bias=False)
    layer.weight = weight
    model = torch.nn.Sequential(layer)
    nf4_linear.use_fast_linears(model)
    expected = dequantize_4bit(weight.data, weight.quant_state)
    for _ in range(2):  # the second call launches the kernel that the first one compiled
        assert torch.equal(nf4_linear.dequantize(model[0].packed, 192, torch.bfloat16), expected)


def test_dequantized_layers_compute_what_4_bit_layers_do():
    model, batch = tiny_model().get_base_model(), pack(30, 7)
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        assert loading.dequantize(model)
        assert not [module for module in model.modules() if isinstance(module, Linear4bit)]
        logits = model(**batch, use_cache=False).logits
    assert (logits - expected).norm() <= 5e-3 * expected.norm()  # these weights were bf16 before they were 4 bits


@IN_4_BITS
def test_loss_and_gradients_are_those_of_plain_layers(in_4_bits):
    model, batch = tiny_model(in_4_bits=in_4_bits), pack(30, 7, 20)
    plain_loss, plain = gradients(model, batch)
    compiled_layers.speed_up(model, 1, backend=BACKEND)  # one layer of each kind
    fast_loss, fast = gradients(model, batch)
    assert fast_loss == pytest.approx(plain_loss, abs=1e-5)
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        # bitsandbytes rounds the weights of the backward pass to bf16.
        assert (fast[name] - gradient).norm() <= 5e-3 * gradient.norm(), name


def test_rows_of_a_pack_do_not_see_each_other():
    model, lengths = tiny_model(), (30, 7, 20)
    batch = pack(*lengths)
    with torch.no_grad():
        alone = [model(input_ids=ids, use_cache=False).logits[0] for ids in batch["input_ids"].split(lengths, dim=1)]
        compiled_layers.speed_up(model, 1, backend=BACKEND)
        packed = model(**batch, use_cache=False).logits[0]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


@IN_4_BITS
def test_layers_keep_what_the_memory_plan_counts(in_4_bits):
    """Elements that a layer keeps for backward; parameters, mask and rotary embeddings are shared and not counted."""
    batch = pack(90, 38)
    tokens = batch["input_ids"].numel()
    shape = memory.shape_of(AutoModelForCausalLM.from_config(CONFIG), 4, "all-linear")

    def kept(recomputed_layers: int) -> int:
        torch._dynamo.reset()
        model = tiny_model(in_4_bits=in_4_bits)
        compiled_layers.speed_up(model, recomputed_layers, backend=BACKEND)
        sizes: dict[int, int] = {}

        def note(tensor):
            if tensor.is_floating_point():
                sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.get_base_model().model(**batch, use_cache=False)
        return sum(sizes.values())

    assert kept(0) - kept(2) == pytest.approx(2 * tokens * (shape.kept - shape.hidden), rel=0.1)


def test_a_recomputed_layer_repeats_all_products_but_the_last(monkeypatch):
    model, batch = tiny_model(), pack(20, 30)
    compiled_layers.speed_up(model, 2, backend=BACKEND)
    calls = []
    dequantize = nf4_linear.dequantize
    monkeypatch.setattr(nf4_linear, "dequantize", lambda *arguments: calls.append(1) or dequantize(*arguments))
    gradients(model, batch)
    assert len(calls) == 2 * (7 + 6 + 7)  # each layer: forward, recomputation, backward


def test_the_second_compilation_covers_all_further_lengths():
    model = tiny_model()
    compiled_layers.speed_up(model, 2, backend=BACKEND)
    for lengths in ((30, 7), (41, 20), (50, 3, 3)):
        gradients(model, pack(*lengths))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_training_and_evaluation_mode_reach_all_modules():
    model = tiny_model()
    model.get_base_model().eval()  # the state of a loaded model
    compiled_layers.speed_up(model, 2, backend=BACKEND)
    for mode in (True, False, True):
        model.train(mode)
        assert {module.training for module in model.modules()} == {mode}


class Seeded(torch.nn.Module):
    """Dropout by a seed, as the fast layers do it."""

    def __init__(self, seed: torch.Tensor, p: float):
        super().__init__()
        self.seed, self.p = seed, p

    def forward(self, x):
        scaled = torch.ops.qlora.dropped(torch.ones_like(x).flatten(0, -2), self.seed, self.p)
        return x * scaled.view(x.shape)


@IN_4_BITS
def test_dropout_is_that_of_plain_layers_and_differs_in_each_pass(in_4_bits):
    model, batch = tiny_model(dropout=0.3, in_4_bits=in_4_bits), pack(30, 7, 20)
    compiled_layers.speed_up(model, 1, backend=BACKEND)
    gradients(model, batch)
    before = {name: module.seed.clone() for name, module in model.named_modules() if hasattr(module, "seed")}
    fast_loss, fast = gradients(model, batch)
    plain = tiny_model(dropout=0.3, in_4_bits=in_4_bits)
    seeds = {name: module.seed for name, module in model.named_modules() if hasattr(module, "seed")}
    assert len(seeds) == 14
    assert len({int(seed) for seed in [*seeds.values(), *before.values()]}) == 28
    for name, seed in seeds.items():
        plain.get_submodule(name).lora_dropout["default"] = Seeded(seed, 0.3)
    plain_loss, expected = gradients(plain, batch)
    assert fast_loss == pytest.approx(plain_loss, abs=1e-5)
    for name, gradient in expected.items():
        assert (fast[name] - gradient).norm() <= 5e-3 * gradient.norm(), name

    with torch.no_grad():  # nothing is dropped in validation
        logits, whole = (each.eval()(**batch, use_cache=False).logits for each in (model, tiny_model(0.0, in_4_bits)))
    assert (logits - whole).norm() <= 1e-2 * whole.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_drops_the_share_asked_for():
    x, seed = torch.ones(1000, 999, dtype=torch.bfloat16, device="cuda"), torch.tensor(7, device="cuda")
    dropped = torch.ops.qlora.dropped(x, seed, 0.25)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75], rel=0.01)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.002)
    assert torch.equal(dropped, torch.ops.qlora.dropped(x, seed, 0.25))
    assert not torch.equal(dropped, torch.ops.qlora.dropped(x, seed + 1, 0.25))


def test_the_adapter_can_be_switched_off():
    model, batch = tiny_model(), pack(20)
    with torch.no_grad(), model.disable_adapter():
        expected = model(**batch, use_cache=False).logits
    nf4_linear.use_fast_linears(model)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(**batch, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("lengths", [(640,), (1, 127, 128, 300, 84), (130, 5, 5, 500), (1,) * 256])
def test_pack_mask_covers_exactly_what_may_be_seen(lengths, window):
    mask = compiled_layers.pack_mask(pack(*lengths)["position_ids"], window)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.arange(len(row))
    back = at[:, None] - at[None, :]
    allowed = (row[:, None] == row[None, :]) & (back >= 0) & (back < (window or len(row)))
    assert torch.equal(mask.mask_mod(0, 0, at[:, None], at[None, :]), allowed)

    size = compiled_layers.PACK_MULTIPLE
    blocks = allowed.view(len(row) // size, size, -1, size).transpose(1, 2)
    visited = mask.to_dense()[0, 0].bool()
    assert (visited | ~blocks.any(-1).any(-1)).all()
    for line, count in enumerate(mask.full_kv_num_blocks[0, 0]):
        for column in mask.full_kv_indices[0, 0, line, :count]:
            assert blocks[line, column].all()  # the kernel does not evaluate the mask in these
