"""Attention over a pack, row by row: what sdpa with a block-diagonal mask computes, without the blocks that are masked.

For layers that are not compiled. transformers hands each of them the rows' boundaries (`cu_seq_lens_q`, which trl's
padding-free collator provides), so no mask is built at all. On a GPU FlashAttention takes all rows at once (Dao,
"FlashAttention-2", 2023, arXiv:2307.08691).
"""

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from qlora.runtime.console import Refusal

NAME = "packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of one pack.

    Args:
        query: (1, heads, tokens, head size); key and value the same with as many heads or fewer (grouped queries).
        cu_seq_lens_q: (rows + 1,) where each row begins, and the end; None for a single row.
        max_length_q: tokens of the longest row.
        sliding_window: how many tokens back a token sees, itself included; None for all.
        softcap: what no score exceeds: each becomes softcap * tanh(score / softcap) (Gemma 2, arXiv:2408.00118,
            section 2). No kernel does that, so the scores of a row are there at once, (heads, tokens, tokens).

    Returns:
        (1, tokens, heads, head size), and None for the attention weights.

    Raises:
        Refusal: if the model asks for what is not computed here.
    """
    if asked := [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise Refusal(
            f"this model's attention takes {asked[0]}, which is left out where layers are not compiled: train it on a "
            "GPU with train.compile at true, or choose another model"
        )
    tokens = query.shape[2]
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.tensor([0, tokens], dtype=torch.int32, device=query.device)
        max_length_q = tokens
    if dropout == 0 and softcap is None and _has_flash(query, value):
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        groups = query.shape[1] // key.shape[1]
        heads = (query, *(part.repeat_interleave(groups, dim=1) for part in (key, value)))
        ends, longest = (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q)
        packed = (part[0].transpose(0, 1) for part in heads)  # (tokens, heads, head size)
        return varlen_attn(*packed, *ends, *longest, scale=scaling, window_size=window)[None], None

    dtype = query.dtype
    if not query.is_cuda:  # a CPU's kernel is twice as fast in float32: its bfloat16 backward pass converts to and fro
        query, key, value = query.float(), key.float(), value.float()
    lengths = cu_seq_lens_q.diff().tolist()
    rows = []
    with torch.autocast(query.device.type, enabled=False):
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
            mask = _window_mask(q, sliding_window)
            if softcap is not None:
                rows.append(_capped(q, k, v, mask, dropout, scaling, softcap))
                continue
            options = {"attn_mask": mask, "is_causal": mask is None, "dropout_p": dropout, "scale": scaling}
            rows.append(scaled_dot_product_attention(q, k, v, enable_gqa=True, **options))
    return torch.cat(rows, dim=2).transpose(1, 2).to(dtype), None


def _has_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether FlashAttention takes these: half precision on an Ampere GPU or later, heads of one size up to 256."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return torch.cuda.get_device_capability(query.device)[0] >= 8 and size == value.shape[-1] <= 256 and size % 8 == 0


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """(tokens, tokens) of what a token sees, where a row is longer than the window."""
    tokens = query.shape[2]
    if window is None or tokens <= window:
        return None
    return torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)


def _capped(query, key, value, mask, dropout, scaling, softcap) -> torch.Tensor:
    """What scaled_dot_product_attention computes of one row, with capped scores."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.dropout(weights, dropout, train=True) @ value


# Without a mask function of this name transformers builds no mask.
AttentionInterface.register(NAME, packed_attention)
