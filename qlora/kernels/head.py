"""The head's loss with shapes that do not depend on the labels' values, as a CUDA graph needs them.

trl's fused head selects the supervised positions by a mask, so its shapes are known only once the GPU has counted them.
"""

from qlora.rows.loss_mask import IGNORED

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction

VOCABULARY_CHUNK = 32768  # entries for which logits are computed at once, as in trl
# Factors of the logits by the config's name for them, as trl reads them.
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVISOR = "logits_scaling"


def negative_log_likelihood(model: PreTrainedModel, hidden: Tensor, labels: Tensor, most: int) -> Tensor:
    """Sum over the supervised tokens of a pack, in nats.

    Args:
        model: A causal language model; its head is applied.
        hidden: (tokens, hidden size): the results of the last layer.
        labels: (tokens,): the token at each position, or IGNORED.
        most: So many supervised tokens at most; the head is computed for as many positions.

    Returns:
        A scalar in 32 bits.
    """
    following = labels[1:]
    supervised = following != IGNORED
    # The number of each supervised position among them; the others share the last slot, which is cut off.
    slots = torch.where(supervised, supervised.cumsum(0) - 1, most)
    positions = torch.arange(len(following), device=labels.device)
    where = positions.new_zeros(most + 1).scatter_(0, slots, positions)[:most]
    is_used = torch.arange(most, device=labels.device) < supervised.sum()
    log_probs = _log_probs(model, hidden[where], following[where].clamp(min=0))
    return -torch.where(is_used, log_probs, 0.0).sum()


def _log_probs(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    capped = getattr(config, "final_logit_softcapping", None)
    log_probs, *_ = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, 1.0, VOCABULARY_CHUNK, capped, factor(config), ()
    )
    return log_probs


def factor(config) -> float:
    """What the model multiplies its logits by."""
    given = (getattr(config, name, None) for name in FACTORS)
    found = next((value for value in given if value is not None), None)
    if found is None and (divisor := getattr(config, DIVISOR, None)) is not None:
        found = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if found is None else found
