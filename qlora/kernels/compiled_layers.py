"""Compiled decoder layers for training on a GPU: fused kernels, block-sparse attention, activation checkpointing.

Call, in this order:

1. `attention_implementation(device)`: load the model in NF4 with this attention.
2. `SFTTrainer(..., peft_config=...)` with `gradient_checkpointing=False`: compiled layers checkpoint themselves.
3. `speed_up(trainer.model, recomputed_layers=...)`, then `trainer.train()`.

A micro-batch is one pack: token ids, position ids that restart at 0 with each row, and no attention mask. The length of
packs may vary; `pad_to_multiple_of=PACK_MULTIPLE` keeps the number of block masks and kernels small. All of this also
runs on a CPU, slower than plain layers.
"""

import functools

from qlora.kernels import nf4_experts  # noqa: F401 (its operators)
from qlora.kernels.nf4_linear import use_fast_linears

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

PACK_MULTIPLE = 128  # flex_attention's block size; a part of a block costs as much as a whole one

# flex_attention's own blocks are for heads up to this size; of wider ones they outgrow a multiprocessor's memory. These
# were the fastest of four choices for heads of 512 (Gemma 4) on an H200.
WIDEST_HEAD = 256
WIDE_HEADS = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "num_warps": 8, "num_stages": 1} | dict.fromkeys(
    ("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), 32
)

KINDS = {"full_attention", "sliding_attention"}  # of layers, whose masks are built here
# Operators whose results a layer keeps when it recomputes only cheap ones: products and attention.
EXPENSIVE = {
    torch.ops.qlora.nf4_linear.default,
    torch.ops.qlora.nf4_grouped.default,
    torch.ops.qlora.grouped.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def attention_implementation(device: torch.device) -> str:
    """The `attn_implementation` to load a model with: flex_attention on CUDA, sdpa elsewhere.

    flex_attention skips the blocks between two rows of a pack, but it must be compiled.
    """
    return "flex_attention" if device.type == "cuda" else "sdpa"


def speed_up(model: nn.Module, recomputed_layers: int, backend: str = "inductor", sharded: bool = False) -> None:
    """Compile the decoder layers of `model`, in place.

    The first step compiles each of the two kinds of layers once, and the first pack of another length compiles them
    again, for all lengths.

    Args:
        model: A PEFT model over NF4 weights.
        recomputed_layers: The first so many layers keep only their input for the backward pass and recompute the rest
            (activation checkpointing: Chen et al., 2016, arXiv:1604.06174), except the last product, which no gradient
            needs. The others keep the results of matrix products and attention and recompute only norms, rotary
            embeddings and activation functions.
        backend: torch.compile's.
        sharded: Whether FSDP will shard the weights.
    """
    seeds = use_fast_linears(model, sharded)
    # By default graphs are split at DDP's gradient buckets; a layer's graph must stay whole.
    torch._dynamo.config.optimize_ddp = False
    # Otherwise only the first layer's input would need no gradient, which would compile that layer separately.
    model.enable_input_require_grads()
    backbone = model.get_base_model().model
    if backbone.config._attn_implementation == "flex_attention" and kinds(backbone) <= KINDS:
        backbone.register_forward_pre_hook(_add_pack_mask, with_kwargs=True)
    if any(isinstance(module, nn.Dropout) and module.p for module in backbone.modules()):
        backbone.register_forward_pre_hook(functools.partial(_draw, seeds))
    recompute_all = torch.compile(_recompute_all, backend=backend)
    recompute_cheap = torch.compile(_recompute_cheap, backend=backend)
    for index, layer in enumerate(backbone.layers):
        compiled = recompute_all if index < recomputed_layers else recompute_cheap
        layer.forward = functools.partial(_forward, compiled, layer)
    # The trainer calls model.train() in each micro-batch. PEFT has eighty modules a layer, and visiting all of them
    # takes as long as launching the kernels of several layers.
    model.train()
    model.train = functools.partial(_train, model)


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    return model if model.training == mode else type(model).train(model, mode)


def _draw(seeds: torch.Tensor, backbone: nn.Module, args: tuple) -> None:
    """Draw the seeds of dropout for a forward pass. A CUDA graph draws others in each replay."""
    if backbone.training:
        seeds.random_()


def _add_pack_mask(backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None:
        window = getattr(backbone.config, "sliding_window", None)
        windows = {"sliding_attention": window, "full_attention": None}
        masks = {kind: pack_mask(kwargs["position_ids"], windows[kind]) for kind in sorted(kinds(backbone))}
        if len(masks) == 2:  # transformers' models with layers of two kinds take a mask for each
            kwargs["attention_mask"] = masks
        else:
            kwargs["attention_mask"] = next(iter(masks.values()), None) or pack_mask(kwargs["position_ids"], window)
    return args, kwargs


def kinds(backbone: nn.Module) -> set[str]:
    """The kinds of the decoder's layers, if its config names them."""
    return set(getattr(backbone.config, "layer_types", None) or ())


def pack_mask(position_ids: torch.Tensor, window: int | None) -> BlockMask:
    """The causal mask of a pack for flex_attention: a token attends to the tokens of its own row up to itself.

    transformers builds the same mask by evaluating every pair of positions, and synchronizes with the GPU. Here the
    blocks follow from the first and the last row in each block of 128 positions.

    Args:
        position_ids: (1, tokens); 0 at the start of each row.
        window: Tokens that a token attends to, itself included (`sliding_window` of the config); None for all.
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
    block = torch.arange(len(first), device=row.device)
    below = block[:, None] > block[None, :]
    touched = (below & (last[None, :] >= first[:, None])) | (block[:, None] == block[None, :])
    full = below & (first[None, :] == last[:, None])
    if window is not None:
        full &= (block[:, None] - block[None, :] + 1) * PACK_MULTIPLE <= window
    partial_blocks, full_blocks = touched & ~full, full
    return BlockMask.from_kv_blocks(
        *_ordered(partial_blocks),
        *_ordered(full_blocks),
        BLOCK_SIZE=PACK_MULTIPLE,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of set blocks in each line, and its columns with the set ones first: the form that BlockMask takes."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]


def _forward(compiled, layer: nn.Module, hidden_states, *args, **kwargs):
    if getattr(getattr(layer, "self_attn", None), "head_dim", 0) > WIDEST_HEAD:
        kwargs["kernel_options"] = WIDE_HEADS
    # The collator's arguments for FlashAttention differ from pack to pack. Nothing here reads them, and every new value
    # would cause a compilation.
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        kwargs.pop(name, None)
    shared = kwargs.pop("shared_kv_states", None)
    if shared is None:
        return compiled(layer, hidden_states, *args, **kwargs)
    kind, attention = layer.self_attn.layer_type, layer.self_attn
    if attention.store_full_length_kv:
        hidden_states, *shared[kind] = compiled(layer, hidden_states, *args, shared=None, kind=kind, **kwargs)
        return hidden_states
    given = shared[kind] if attention.is_kv_shared_layer else None
    return compiled(layer, hidden_states, *args, shared=given, kind=kind, **kwargs)


def _call(layer: nn.Module, *args, shared=None, kind: str | None = None, **kwargs):
    """The layer's own forward pass.

    Gemma 4's last layers take the keys and values of an earlier one from a dictionary that this one writes to. A
    compiled function cannot write to a dictionary outside, so here they are arguments and results.

    Args:
        layer: A decoder layer.
        args: Its arguments.
        shared: The keys and values that it takes.
        kind: Its kind of attention, if the model's layers share keys and values.
        kwargs: Further arguments.

    Returns:
        The hidden states; of a layer whose keys and values others take, these as well.
    """
    if kind is None:
        return type(layer).forward(layer, *args, **kwargs)
    states = {} if shared is None else {kind: shared}
    hidden_states = type(layer).forward(layer, *args, shared_kv_states=states, **kwargs)
    return (hidden_states, *states[kind]) if layer.self_attn.store_full_length_kv else hidden_states


def _recompute_all(layer: nn.Module, *args, **kwargs):
    return checkpoint(functools.partial(_call, layer, **kwargs), *args, use_reentrant=False)


def _recompute_cheap(layer: nn.Module, *args, **kwargs):
    forward = functools.partial(_call, layer, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_keep_expensive)


def _keep_expensive():
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
