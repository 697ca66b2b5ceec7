"""Attention over a pack, row by row: equal to sdpa with a block-diagonal mask, without computing masked blocks.

For plain layers. trl's padding-free collator provides the rows' boundaries (`cu_seq_lens_q`) and transformers passes
them to each layer, so no mask is built. On a GPU FlashAttention takes all rows at once (Dao, "FlashAttention-2", 2023,
arXiv:2307.08691).
"""

from qlora.runtime.console import Refusal

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

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
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of one pack.

    Args:
        module: The layer's attention module; unused.
        query: (1, heads, tokens, head size).
        key: The same, with as many heads or fewer (grouped-query attention).
        value: Like key.
        attention_mask: None.
        scaling: Factor of the scores; None for 1 / sqrt(head size).
        dropout: Of the attention weights.
        cu_seq_lens_q: (rows + 1,): where each row begins, and the end of the last; None for a single row.
        max_length_q: Tokens of the longest row.
        sliding_window: Tokens that a token attends to, itself included; None for all.
        softcap: Limit of the scores: each becomes softcap * tanh(score / softcap) (Gemma 2, arXiv:2408.00118, section
            2). No kernel supports it, so a row's scores, (heads, tokens, tokens), are in memory at once.
        s_aux: (heads,): each head's sink, a score of nothing that takes part in the softmax (gpt-oss, arXiv:2508.10925,
            section 2). As with softcap, a row's scores are in memory at once.
        kwargs: Further arguments of transformers' attention interface.

    Returns:
        (1, tokens, heads, head size), and None for the attention weights.

    Raises:
        Refusal: if the model's attention needs a position bias.
    """
    if kwargs.get("position_bias") is not None:
        raise Refusal(
            "this model's attention takes position_bias, which plain layers do not support: train it on a GPU with "
            "train.compile set to true, or choose another model"
        )
    tokens = query.shape[2]
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.tensor([0, tokens], dtype=torch.int32, device=query.device)
        max_length_q = tokens
    if dropout == 0 and softcap is None and s_aux is None and _has_flash(query, value):
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        groups = query.shape[1] // key.shape[1]
        heads = (query, *(part.repeat_interleave(groups, dim=1) for part in (key, value)))
        ends, longest = (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q)
        packed = (part[0].transpose(0, 1) for part in heads)  # (tokens, heads, head size)
        return varlen_attn(*packed, *ends, *longest, scale=scaling, window_size=window)[None], None

    dtype = query.dtype
    if not query.is_cuda:  # twice as fast on a CPU, whose bfloat16 backward pass converts to float32 and back
        query, key, value = query.float(), key.float(), value.float()
    lengths = cu_seq_lens_q.diff().tolist()
    rows = []
    with torch.autocast(query.device.type, enabled=False):
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
            mask = _window_mask(q, sliding_window)
            if softcap is not None or s_aux is not None:
                rows.append(_explicit(q, k, v, mask, dropout, scaling, softcap, s_aux))
                continue
            options = {"attn_mask": mask, "is_causal": mask is None, "dropout_p": dropout, "scale": scaling}
            rows.append(scaled_dot_product_attention(q, k, v, enable_gqa=True, **options))
    return torch.cat(rows, dim=2).transpose(1, 2).to(dtype), None


def _has_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether FlashAttention supports these: half precision, an Ampere GPU or later, heads of equal size up to 256."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return torch.cuda.get_device_capability(query.device)[0] >= 8 and size == value.shape[-1] <= 256 and size % 8 == 0


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """(tokens, tokens), true where a token attends to another; None if the row is not longer than the window."""
    tokens = query.shape[2]
    if window is None or tokens <= window:
        return None
    return torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)


def _explicit(query, key, value, mask, dropout, scaling, softcap, sinks) -> torch.Tensor:
    """scaled_dot_product_attention of one row with capped scores or sinks."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., :tokens].to(value.dtype)
    return torch.dropout(weights, dropout, train=True) @ value


# transformers builds no mask, because no mask function has this name.
AttentionInterface.register(NAME, packed_attention)
