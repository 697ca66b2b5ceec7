"""Checks of a merged model: tensors read back from its files, and its logits against the adapter's."""

import gc
import random
from pathlib import Path

from qlora.merging import parameters
from qlora.merging.parameters import Reader
from qlora.merging.update import Changes
from qlora.rows.loss_mask import Encoded
from qlora.runtime.console import Refusal
from qlora.weights import loading, tower
from qlora.weights.files import weights_bytes
from qlora.weights.quantized import Quantized

import torch
from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.utils import logging

CHECKED_TENSORS = 16
ROUNDING = 0.02  # relative error of a product; bfloat16 alone gives 0.002, float16 less
# Mean difference of the logits in standard deviations. Two orders of rounding to bfloat16 differ by about 0.02, a wrong
# scale or a missed layer by far more once the adapter has learned something.
TOLERANCE = 0.1
CHECKED_BYTES = 3e9  # of weights; only the first layers of larger models are compared


def check_products(base: Path, merged: Path, changes: Changes) -> int:
    """Read a random sample of changed tensors back and compare W' x with W x + scale B (A x), for a random vector x.

    Returns:
        Number of compared tensors.

    Raises:
        Refusal: if a product differs by more than rounding.
    """
    draw = random.Random(0)
    names = draw.sample(changes.names, min(CHECKED_TENSORS, len(changes.names)))
    after = {weight.name: weight for weight in parameters.of_folder(merged).values()}
    with Reader(base) as original, Reader(merged) as written:
        for name in tqdm(names, desc="checking", unit=" tensors"):
            weight = changes.trained[name]
            start, found = changes.start(name, original.read(weight)), written.read(after[weight.name])
            update = changes.updates.get(name)
            if start.dim() == 3:  # one of the experts
                index = draw.randrange(len(start))
                start, found, update = start[index], found[index], update and update.of_matrix(index)
                if weight.is_transposed:
                    start, found = start.mT, found.mT
            vector = torch.randn(start.shape[1], generator=torch.Generator().manual_seed(0))
            expected = start.float() @ vector
            if update:
                expected += update.scale * (update.b.float() @ (update.a.float() @ vector))
            difference = float((found.float() @ vector - expected).norm() / expected.norm())
            if not difference <= ROUNDING:  # also when it is not a number
                raise Refusal(
                    f"{merged}: {name} is {difference:.3f} off the base model's with the adapter; merge.dtype is too "
                    "coarse, or the disk is failing"
                )
    return len(names)


def check_against_adapter(
    base: Path, merged: Path, adapter: Path, rows: list[Encoded], dtype: torch.dtype, quantized: Quantized | None
) -> tuple[float, str]:
    """Compare the merged model's logits with those of PEFT's adapter on the same base weights.

    This checks the merge's arithmetic, and its files as transformers and PEFT read them; `evaluate` measures the effect
    of the 4-bit base. Only the first layers of models above CHECKED_BYTES are loaded, so any machine that can merge can
    check.

    Args:
        base: The base model.
        merged: The merged model.
        adapter: The adapter.
        rows: To compare the logits on.
        dtype: Of the merged model.
        quantized: What training held in 4 bits, if the merge started from that; None for the original weights.

    Returns:
        The mean absolute difference in standard deviations of the logits, and which layers were compared.

    Raises:
        Refusal: if they differ by more than rounding.
    """
    config, layers, total = first_layers(merged)
    logging.set_verbosity_error()  # or transformers would list the omitted layers
    if quantized:
        model = loading.load_base(base, quantized, config=config)
    else:
        model = loading.load_plain(base, dtype, config=config)
    with_adapter = logits(loading.load_adapter(model, adapter, base), rows)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    after_merge = logits(loading.load_plain(merged, dtype, config=config), rows)
    pairs = list(zip(with_adapter, after_merge, strict=True))
    difference = sum(float((x - y).abs().mean() / x.std()) for x, y in pairs) / len(pairs)
    if not difference <= TOLERANCE:  # also when it is not a number
        likeliest = (
            "float16 cannot hold this model's numbers: set merge.dtype to bfloat16"
            if dtype == torch.float16
            else f"{adapter} is not as training wrote it: run `dvc repro --force --single-item quantize-load-train`"
        )
        raise Refusal(
            f"the merged model's logits differ from the adapter's by {difference:.3f} of their spread (at most "
            f"{TOLERANCE}); the likeliest cause: {likeliest}"
        )
    return difference, "all layers" if layers == total else f"the first {layers} of {total} layers"


def first_layers(folder: Path) -> tuple[PreTrainedConfig, int, int]:
    """The config with as many layers as fit CHECKED_BYTES (at least one), that number, and the number of all layers."""
    config = tower.config_of(folder)
    total, size = config.num_hidden_layers, weights_bytes(folder)
    # Embeddings and head are needed with any number of layers.
    ends = 2 * config.vocab_size * config.hidden_size * config.dtype.itemsize
    a_layer = max(1, size - ends) / total
    layers = total if size <= CHECKED_BYTES else max(1, min(total, int((CHECKED_BYTES - ends) / a_layer)))
    if layers == total or getattr(config, "hidden_size_per_layer_input", None):  # one tensor holds all layers' inputs
        return config, total, total
    config.num_hidden_layers = layers
    if len(getattr(config, "layer_types", None) or ()) > layers:
        config.layer_types = config.layer_types[:layers]
    return config, layers, total


@torch.inference_mode()
def logits(model: torch.nn.Module, rows: list[Encoded]) -> list[torch.Tensor]:
    """The logits (tokens, vocabulary) of each row, in float32 on the CPU."""
    model.eval()
    ids = (torch.tensor([list(row.input_ids)], device=model.device) for row in rows)
    return [model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in ids]
