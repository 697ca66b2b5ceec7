"""How much each tensor's quantization changes the answers: the KL divergence that it adds, predicted to second order.

The divergence of a model whose weights change by small d is d' F d / 2, with F the Fisher information of the weights.
Rounding errors of different weights are nearly independent, so the diagonal of F suffices. It is measured on the
answers of training rows, with one backward pass for each row, and holds for every type that a tensor may get.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qlora.gguf import file
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.runtime.console import Refusal

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

ROWS = 4096  # of a tensor that are compared with its quantized version; more say the same


@dataclass(frozen=True)
class Fisher:
    """The diagonal of a weight's Fisher information, as the product of a factor for each column and each row.

    Attributes:
        columns: (inputs,) nats for one token of an answer; the mean over the rows.
        rows: (outputs,) with mean 1; None where they count alike. llama.cpp permutes the rows of some weights, so only
            vocabulary tables, whose rows differ most, have it.
    """

    columns: np.ndarray
    rows: np.ndarray | None = None


def measure(model: PreTrainedModel, rows: Iterable[Encoded], seed: int = 0) -> dict[str, Fisher]:
    """The Fisher information of the weight of each linear layer and of the vocabulary table, by module name.

    Nothing is sampled but signs: the gradient of sum_y e_y sqrt(p_y) log p_y with random signs e_y has the information
    as its second moment.
    """
    model.requires_grad_(False)
    model.enable_input_require_grads()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    watched = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) or module is table
    }
    sums = {name: _Sums() for name in watched}
    hooks = [
        module.register_forward_hook(
            _watch_table(sums[name]) if module is table else _watch(sums[name], module is head)
        )
        for name, module in watched.items()
    ]
    generator, tokens = torch.Generator().manual_seed(seed), 0
    for row in tqdm(rows, desc="sensitivity", unit=" rows"):
        before = [at - 1 for at, label in enumerate(row.labels) if label != IGNORED]
        ids = torch.tensor([list(row.input_ids)], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(before, device=ids.device)).logits
        roots = logits.detach().float().softmax(-1).sqrt()
        signed = roots * (torch.randint(0, 2, roots.shape, generator=generator) * 2 - 1).to(roots)
        logits.backward((signed - roots.square() * signed.sum(-1, keepdim=True)).to(logits.dtype))
        tokens += len(before)
    for hook in hooks:
        hook.remove()
    return {name: found.fisher(tokens) for name, found in sums.items() if found.columns is not None}


@dataclass
class _Sums:
    """Sums over rows of a weight's squared gradient: the mean of each column, the sum of each row."""

    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def add(self, columns: torch.Tensor, rows: torch.Tensor | None) -> None:
        self.columns = columns.cpu() + (0 if self.columns is None else self.columns)
        if rows is not None:
            self.rows = rows.cpu() + (0 if self.rows is None else self.rows)

    def fisher(self, tokens: int) -> Fisher:
        rows = None if self.rows is None else (self.rows / self.rows.mean()).numpy()
        return Fisher((self.columns / tokens).numpy(), rows)


def _watch(sums: _Sums, with_rows: bool):
    def forward(_: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        def backward(gradient: torch.Tensor) -> None:
            a, e = given.flatten(0, -2).float(), gradient.flatten(0, -2).float()  # (tokens, inputs), (tokens, outputs)
            # The weight's gradient is e' a; these are the sums of its squares, without forming it.
            columns = ((e @ e.T) @ a * a).sum(0) / e.shape[1]
            sums.add(columns, ((a @ a.T) @ e * e).sum(0) if with_rows else None)

        given = inputs[0].detach()
        if output.requires_grad:
            output.register_hook(backward)

    return forward


def _watch_table(sums: _Sums):
    def forward(table: nn.Embedding, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        def backward(gradient: torch.Tensor) -> None:
            used, place = ids.unique(return_inverse=True)
            squares = gradient.new_zeros(len(used), gradient.shape[-1], dtype=torch.float32)
            squares.index_add_(0, place, gradient.flatten(0, -2).float() * scale).square_()
            rows = squares.new_zeros(len(table.weight)).index_add_(0, used, squares.sum(1))
            sums.add(squares.sum(0) / len(table.weight), rows)

        ids = inputs[0].flatten()
        scale = output.detach().float().norm() / table.weight[ids].float().norm()  # Gemma's is not 1
        output.register_hook(backward)

    return forward


def by_tensor(found: dict[str, Fisher], contents: file.Contents) -> dict[str, list[Fisher]]:
    """Tensor of the GGUF with these `contents` -> the information of the modules that use it; a tied table has two.

    Raises:
        Refusal: if the package gguf does not know the architecture.
    """
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if contents.architecture not in kinds:
        raise Refusal(
            f"gguf.sensitivity: the package gguf knows no architecture {contents.architecture}; set it to false"
        )
    names, tensors = gguf.get_tensor_name_map(kinds[contents.architecture], contents.layers), {}
    for module, fisher in found.items():
        name = f"{names.get_name(module.replace('language_model.', ''))}.weight"  # multimodal models have that prefix
        if name == "output.weight" and name not in contents.shapes:
            name = "token_embd.weight"
        tensors.setdefault(name, []).append(fisher)
    return tensors


def divergence(source: gguf.ReaderTensor, quantized: gguf.ReaderTensor, found: dict[str, list[Fisher]]) -> float:
    """The KL divergence of the answers' tokens, in nats a token, that this quantized tensor alone adds.

    A tensor that no linear layer of the model is, such as all experts of a layer, counts as the median of the others.
    """
    width = int(source.shape[0])
    uses = [fisher for fisher in found.get(source.name, []) if len(fisher.columns) == width]
    if not uses:
        typical = np.median([fisher.columns.mean() for fishers in found.values() for fisher in fishers])
        uses = [Fisher(np.full(width, typical))]
    return sum(_divergence(source, quantized, fisher) for fisher in uses)


def _divergence(source: gguf.ReaderTensor, quantized: gguf.ReaderTensor, fisher: Fisher) -> float:
    count = int(source.n_elements // source.shape[0])
    if fisher.rows is None or len(fisher.rows) != count:
        weights, picked = np.ones(count), np.arange(min(count, ROWS)) * count // min(count, ROWS)
    else:
        weights, picked = fisher.rows, np.sort(np.argsort(fisher.rows)[-ROWS:])
    plain, rounded = (
        dequantize(tensor.data.reshape(count, -1)[picked], tensor.tensor_type) for tensor in (source, quantized)
    )
    errors = np.square(rounded - plain) @ fisher.columns * weights[picked]
    return float(errors.sum() * weights.sum() / weights[picked].sum() / 2)
