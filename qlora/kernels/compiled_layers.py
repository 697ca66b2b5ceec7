"""The fast path of training on a GPU: packed rows, block-sparse attention, compiled layers, measured recomputation.

What to call, in this order:

1. `attention_implementation(device)` names the attention to load the model with; load it in NF4 with it.
2. Build the adapter and the trainer (`SFTTrainer(..., peft_config=...)`) with `gradient_checkpointing=False`: the
   recomputation below is part of the compiled layer, and twice would be once too often.
3. `speed_up(trainer.model, recomputed_layers=...)`; then `trainer.train()`.

Micro-batches are packs: one row of token ids, position ids that restart at 0 with each example and no attention mask,
so that transformers derives a block-diagonal mask. Their length may vary; `pad_to_multiple_of=PACK_MULTIPLE` keeps
the number of block masks and kernels small. Everything here runs on a CPU too, where it is slower than not using it.
"""

import functools

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from qlora.kernels.nf4_linear import use_fast_linears

PACK_MULTIPLE = 128  # flex_attention's block: a pack that ends inside a block costs the whole block anyway

# What a layer keeps when it recomputes only what is cheap: the products and the attention, not norms and activations.
EXPENSIVE = {
    torch.ops.qlora.nf4_linear.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def attention_implementation(device: torch.device) -> str:
    """The `attn_implementation` to load a model with: flex_attention, which skips the blocks between two examples of
    a pack, where it can be compiled (CUDA), and sdpa elsewhere."""
    return "flex_attention" if device.type == "cuda" else "sdpa"


def speed_up(model: nn.Module, recomputed_layers: int, backend: str = "inductor", sharded: bool = False) -> None:
    """Compile the decoder layers of `model` (a PEFT model over NF4 weights), in place.

    The first `recomputed_layers` layers keep nothing but their input for the backward pass and compute the rest of it
    again (Chen et al., 2016, arXiv:1604.06174), except for the last product, which no gradient needs. The others keep
    the results of their matrix products and of attention and recompute norms, rotations and activations. Compilation
    happens at the first step, once for each of the two kinds and not once a layer, and again at the first pack of
    another length, for all lengths then; `backend` is torch.compile's. `sharded`: the weights are to be, by FSDP.
    """
    use_fast_linears(model, sharded)
    # DDP would have graphs cut where its buckets of gradients end; these are a layer each, and may not be cut.
    torch._dynamo.config.optimize_ddp = False
    # Without this the first layer would be the only one whose input needs no gradient, and be compiled apart.
    model.enable_input_require_grads()
    backbone = model.get_base_model().model
    kinds = set(getattr(backbone.config, "layer_types", None) or ())
    if backbone.config._attn_implementation == "flex_attention" and len(kinds) <= 1:
        # Where layers differ in how far they see (Gemma), transformers builds a mask for each kind.
        backbone.register_forward_pre_hook(_add_pack_mask, with_kwargs=True)
    recompute_all = torch.compile(_recompute_all, backend=backend)
    recompute_cheap = torch.compile(_recompute_cheap, backend=backend)
    for index, layer in enumerate(backbone.layers):
        compiled = recompute_all if index < recomputed_layers else recompute_cheap
        layer.forward = functools.partial(_forward, compiled, layer)
    # A trainer calls it in each micro-batch, and PEFT makes eighty modules of a layer: a walk through all of them takes
    # Python as long as starting the work of several layers.
    model.train()
    model.train = functools.partial(_train, model)


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    return model if model.training == mode else type(model).train(model, mode)


def _add_pack_mask(backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None:
        everything = "full_attention" in (getattr(backbone.config, "layer_types", None) or ())
        window = None if everything else getattr(backbone.config, "sliding_window", None)
        kwargs["attention_mask"] = pack_mask(kwargs["position_ids"], window)
    return args, kwargs


def pack_mask(position_ids: torch.Tensor, window: int | None) -> BlockMask:
    """The causal mask of a pack, for flex_attention: a token sees the tokens of its own row up to itself.

    transformers builds the same mask by evaluating every pair of positions, and waits for the GPU on the way; here
    the blocks follow from the first and last row in each block of 128 positions.

    Args:
        position_ids: (1, tokens); 0 at the start of each row.
        window: how far back a token sees (`sliding_window` of the model's config), if that is limited.
    """
    row = (position_ids == 0).cumsum(-1)
    tokens = row.shape[-1]

    def visible(batch, head, query, key):
        same = (query >= key) & (row[batch, query] == row[batch, key])
        return same if window is None else same & (query - key < window)

    first = row[0, ::PACK_MULTIPLE]
    last = row[0, PACK_MULTIPLE - 1 :: PACK_MULTIPLE]
    if len(last) < len(first):
        last = torch.cat([last, row[0, -1:]])
    at = torch.arange(len(first), device=row.device)
    below = at[:, None] > at[None, :]
    touched = (below & (last[None, :] >= first[:, None])) | (at[:, None] == at[None, :])
    full = below & (first[None, :] == last[:, None])
    if window is not None:
        full &= (at[:, None] - at[None, :] + 1) * PACK_MULTIPLE <= window
    partial_blocks, full_blocks = touched & ~full, full
    return BlockMask.from_kv_blocks(
        *_ordered(partial_blocks),
        *_ordered(full_blocks),
        BLOCK_SIZE=PACK_MULTIPLE,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of set blocks in each line, and the columns with the set ones first, as BlockMask takes them."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]


def _forward(compiled, layer: nn.Module, hidden_states, **kwargs):
    # What the collator adds for FlashAttention differs from pack to pack; nothing here reads it, but every new value
    # would be compiled anew.
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        kwargs.pop(name, None)
    return compiled(layer, hidden_states, **kwargs)


def _recompute_all(layer: nn.Module, *args, **kwargs):
    return checkpoint(functools.partial(type(layer).forward, layer, **kwargs), *args, use_reentrant=False)


def _recompute_cheap(layer: nn.Module, *args, **kwargs):
    forward = functools.partial(type(layer).forward, layer, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_keep_expensive)


def _keep_expensive():
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
