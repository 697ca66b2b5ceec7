"""Attention over a pack, row by row: what sdpa with a block-diagonal mask computes, without the blocks that are masked.

For the CPU, where neither flex_attention nor FlashAttention skips them. transformers hands each layer the rows'
boundaries (`cu_seq_lens_q`, which trl's padding-free collator provides), so no mask is built at all.
"""

import torch
from transformers import AttentionInterface

NAME = "packed_sdpa"


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of one pack.

    Args:
        query: (1, heads, tokens, head size); key and value the same with as many heads or fewer (grouped queries).
        cu_seq_lens_q: (rows + 1,) where each row begins, and the end; None for a single row.

    Returns:
        (1, tokens, heads, head size), and None for the attention weights.
    """
    lengths = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    # The CPU's kernel is twice as fast in float32: its bfloat16 backward pass converts back and forth.
    parts = [part.float().split(lengths, dim=2) for part in (query, key, value)]
    with torch.autocast("cpu", enabled=False):
        rows = [
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
            )
            for q, k, v in zip(*parts, strict=True)
        ]
    return torch.cat(rows, dim=2).transpose(1, 2).to(query.dtype), None


# Without a mask function of this name transformers builds no mask.
AttentionInterface.register(NAME, packed_sdpa)
