"""Micro-batches as CUDA graphs: the GPU runs forward and backward of a whole pack without waiting for Python.

A graph holds the kernels of one micro-batch with their addresses and shapes
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). So packs are padded to one of a few sizes, and the
gradients stay in the same memory from step to step. Only for compiled layers in one process: layers of several
processes wait for each other between kernels.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qlora.kernels.compiled_layers import PACK_MULTIPLE
from qlora.kernels.head import negative_log_likelihood
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.training.packing import Steps

import torch
from peft import PeftModel
from torch import Tensor

SIZES = 6  # graphs of a run: more would pad less, and take longer to record


@dataclass(frozen=True, order=True)
class Size:
    """Tokens of a pack, a multiple of PACK_MULTIPLE, and the supervised ones among them, at most."""

    tokens: int
    supervised: int


def sizes_of(steps: Steps, rows: Sequence[Encoded], most: int = SIZES) -> list[Size]:
    """The sizes, ascending, to which packs are padded: at most `most`, with the least padding in all.

    Args:
        steps: Of the whole run.
        rows: The rows that they number.
        most: Number of sizes.
    """
    learned = [row.supervised for row in rows]
    counts: Counter[int] = Counter()
    supervised: dict[int, int] = {}
    for pack, tokens in zip(steps.packs, steps.pack_tokens, strict=True):
        length = max(1, -(-tokens // PACK_MULTIPLE)) * PACK_MULTIPLE
        counts[length] += 1
        supervised[length] = max(supervised.get(length, 1), sum(learned[row] for row in pack))
    lengths = sorted(counts)
    # best[n]: padding of the first n lengths in the sizes so far, and the lengths of these sizes
    best: list[tuple[float, list[int]]] = [(0, [])] + [(float("inf"), [])] * len(lengths)
    for _ in range(min(most, len(lengths))):
        better = list(best)
        for end, start in itertools.combinations_with_replacement(range(len(lengths), 0, -1), 2):
            longest = lengths[end - 1]
            padding = sum((longest - length) * counts[length] for length in lengths[start - 1 : end])
            better[end] = min(better[end], (best[start - 1][0] + padding, [*best[start - 1][1], longest]))
        best = better
    sizes, shorter = [], 0
    for longest in best[-1][1]:
        sizes.append(Size(longest, max(supervised[length] for length in lengths if shorter < length <= longest)))
        shorter = longest
    return sizes


class MicroBatches:
    """The micro-batches of a model as graphs, one for each size. They add to the gradients of its adapter.

    Args:
        model: With compiled layers, on a GPU, in training mode.
        sizes: Ascending.
        dtype: What the model computes in (autocast); None for that of its weights.
        pad: Token that fills a pack up.
    """

    def __init__(self, model: PeftModel, sizes: list[Size], dtype: torch.dtype | None, pad: int):
        self.model, self.sizes, self.dtype = model.get_base_model(), sizes, dtype
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        self.graphs: dict[Size, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        longest, device = sizes[-1].tokens, learned[0].device
        self.filler = {"input_ids": pad, "position_ids": 0, "labels": IGNORED}
        # Each token of the filling is a row of its own (position 0), which nothing attends to and nothing learns from.
        self.inputs = {
            name: torch.full((1, longest), value, dtype=torch.int64, device=device)
            for name, value in self.filler.items()
        }
        self.supervised = torch.ones((), device=device)  # tokens of the step, which the loss is divided by

    def rehearse(self) -> None:
        """Run each size once, without a graph: it compiles and loads what recording a graph cannot.

        Raises:
            torch.OutOfMemoryError: if the largest does not fit.
        """
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for size in reversed(self.sizes):
                self.compute(size)
        torch.cuda.current_stream().wait_stream(beside)

    def record(self) -> None:
        """Record the graphs, the largest first, in memory that all of them share.

        Raises:
            RuntimeError: if the model does something that a graph cannot hold, such as waiting for the GPU.
        """
        torch.cuda.empty_cache()  # the rehearsal's memory, which graphs cannot use
        pool = torch.cuda.graph_pool_handle()
        graphs = {}
        for size in reversed(self.sizes):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                loss = self.compute(size)
            graphs[size] = graph, loss
        self.graphs = graphs

    def compute(self, size: Size) -> Tensor:
        """Forward and backward of what the inputs hold; the loss, which is part of the step's."""
        inputs = {name: tensor[:, : size.tokens] for name, tensor in self.inputs.items()}
        labels = inputs.pop("labels")[0]
        with torch.autocast(labels.device.type, self.dtype, enabled=self.dtype is not None):
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[0]
            loss = negative_log_likelihood(self.model, hidden, labels, size.supervised) / self.supervised
        loss.backward()
        return loss.detach()

    def run(self, pack: dict[str, Tensor], supervised: Tensor) -> Tensor:
        """Add a pack's gradients.

        Args:
            pack: `input_ids`, `position_ids` and `labels`, each (1, tokens).
            supervised: Tokens of the step, which the loss is divided by.

        Returns:
            The pack's part of the step's loss; the next call overwrites it.
        """
        graph, loss = self.graphs[self.fill(pack, supervised)]
        graph.replay()
        return loss

    def fill(self, pack: dict[str, Tensor], supervised: Tensor) -> Size:
        """Copy a pack to where the graphs read it; its size."""
        tokens = pack["input_ids"].shape[1]
        size = next(size for size in self.sizes if size.tokens >= tokens)
        for name, tensor in self.inputs.items():
            tensor[:, :tokens].copy_(pack[name])
            tensor[:, tokens : size.tokens].fill_(self.filler[name])
        self.supervised.copy_(supervised)
        return size
