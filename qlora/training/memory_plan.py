"""How much GPU memory a training run needs, and how to lay it out so that it fits and is fast.

Nothing here touches a GPU. The shares are counted from the model's shape; the constants are fitted to peaks measured
on an H200 with Llama-3-8B, Mistral-7B and Llama-2-13B shapes (`benchmarks/train_speed.py`), within 10 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig

from qlora.runtime.console import Refusal
from qlora.weights import architecture

BF16 = 2  # bytes
NF4 = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes a weight: 4 bits, an 8-bit scale for 64, a 32-bit scale for 256 of those
HEAD_CHUNK = 32768  # vocabulary entries of which trl computes the logits at once
USABLE = 0.92  # of the free memory: the allocator cannot place everything without gaps
PACK_TOKENS = (16384, 8192, 4096, 3072, 2048, 1536, 1024, 768, 512)

# Speeds, relative to the matrix products of one forward pass through a token (as fitted on the H200).
RECOMPUTED = 0.73  # recomputing a layer repeats its products, except the last
PACK_COST = 400  # tokens whose forward pass takes as long as what is paid once a pack: dequantization, launches
GATHER_COST = 600  # the same for fetching the layers of a sharded model, over NVLink
FAST_EFFICIENCY = 0.60  # of the GPU's rate on large matrix products
PLAIN_EFFICIENCY = 0.33
COMPILE_SECONDS = 20.0  # both graphs and both lengths: 16 measured on 16 cores with nothing cached, 9 in later runs
# Seconds that Python takes to start a layer's work of one pack, forward and back: a small model's or a short pack's GPU
# waits for it (5 to 9 ms compiled, by host, and 17 ms plain).
FAST_LAUNCH = 0.006
PLAIN_LAUNCH = 0.017

# On a CPU activations are in 32 bits, all are kept and nothing is fused: with the default recipe 3.9 GB were measured.
CPU_ACTIVATIONS = 8
CPU_LIBRARIES = 10**9  # bytes


@dataclass(frozen=True)
class Shape:
    """What the memory of a run depends on. Widths are in elements."""

    layers: int
    hidden: int
    query: int  # heads times head size
    key_value: int  # of keys alone, or values
    intermediate: int
    vocabulary: int
    quantized: int  # weights of the linear layers
    unquantized: int  # all others: embeddings, head, norms
    largest: int  # weights of the largest linear layer
    trainable: int
    trainable_bytes: int  # a weight

    @property
    def parameters(self) -> int:
        return self.quantized + self.unquantized

    @property
    def kept(self) -> int:
        """Elements a token that a layer keeps for the backward pass if it recomputes norms and activations only."""
        return 2 * self.hidden + 2 * self.query + 2 * self.key_value + 2 * self.intermediate


@dataclass(frozen=True)
class MemoryPlan:
    """A layout, and the peak memory that it is predicted to need, in bytes."""

    pack_tokens: int
    recomputed_layers: int
    compiled: bool
    weights: int
    adapter: int  # with its gradients
    optimizer: int
    activations: int
    logits: int
    libraries: int = 0  # code and their own buffers; on a GPU they are there before its free memory is asked for
    shards: int = 1  # devices that share the layers

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part. Logits and the activations of a backward pass are never there at the same time, so
        `activations` is what is kept beside the larger of the two, plus what exceeds it."""
        names = ("weights", "adapter", "optimizer", "activations", "logits", "libraries")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def shape_of(skeleton: nn.Module, r: int, target_modules: str | list[str], trainable_bytes: int = BF16) -> Shape:
    """Read a shape off a model; one on the meta device will do.

    Args:
        skeleton: a causal language model, whose linear layers all become 4-bit except for the head.
        r: rank of the adapter.
        target_modules: last parts of the names of the layers that get an adapter, or "all-linear".
        trainable_bytes: of a weight of the adapter, of its gradient and of each of its moments in AdamW.

    Raises:
        Refusal: if the model is not built as training takes it.
    """
    architecture.check(skeleton)
    config: PreTrainedConfig = skeleton.config
    head = skeleton.get_output_embeddings()
    linear = {
        name: module
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    adapted = [
        module
        for name, module in linear.items()
        if target_modules == "all-linear" or name.endswith(tuple(f".{target}" for target in target_modules))
    ]
    quantized = sum(module.weight.numel() for module in linear.values())
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=config.num_attention_heads * head_size,
        key_value=config.num_key_value_heads * head_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        quantized=quantized,
        unquantized=sum(p.numel() for p in skeleton.parameters()) - quantized,
        largest=max(module.weight.numel() for module in linear.values()),
        trainable=sum(r * (module.in_features + module.out_features) for module in adapted),
        trainable_bytes=trainable_bytes,
    )


def predict(
    shape: Shape, pack_tokens: int, recomputed_layers: int, optimizer: str, compiled: bool = True, shards: int = 1
) -> MemoryPlan:
    """The peak memory of a layout.

    Args:
        shape: of model and adapter.
        pack_tokens: tokens that go through the model at once.
        recomputed_layers: layers that keep their input alone (see `qlora.kernels.compiled_layers.speed_up`).
        optimizer: "adamw" or "paged_adamw_8bit".
        compiled: the fast path, or the plain one (which recomputes all layers and keeps intermediate results apart).
        shards: devices that share the layers; each has all of the rest (embeddings, head, scales of the 4-bit weights),
            and besides its share the whole of the layer that computes and of the one that is fetched meanwhile.
    """
    codes, scales = shape.quantized / 2, shape.quantized * (NF4 - 0.5)
    layer = (codes + shape.trainable * shape.trainable_bytes) / shape.layers
    gathered = 0 if shards == 1 else 2 * layer
    trainable = shape.trainable / shards
    token = pack_tokens * BF16
    if compiled:
        kept_layers = shape.layers - recomputed_layers
        # A recomputed layer's results are there while its gradients are computed, when those of the others are gone.
        kept = recomputed_layers * shape.hidden + max(kept_layers, 1) * shape.kept
        working = 2 * shape.intermediate + 3 * shape.hidden
    else:
        kept = shape.layers * shape.hidden
        working = 5 * shape.intermediate + 8 * shape.hidden
    in_backward = token * working + shape.largest * BF16
    # Of each position: its hidden state twice, and the gradient in 32 and 16 bits.
    in_head = min(pack_tokens, 4096) * HEAD_CHUNK * BF16 + token * 5 * shape.hidden
    return MemoryPlan(
        pack_tokens=pack_tokens,
        recomputed_layers=recomputed_layers,
        compiled=compiled,
        weights=round(codes / shards + scales + gathered) + shape.unquantized * BF16,
        adapter=round(trainable * 2 * shape.trainable_bytes),
        optimizer=round(trainable * 2 * (1 if optimizer == "paged_adamw_8bit" else shape.trainable_bytes)),
        activations=token * kept + in_backward,
        logits=max(0, in_head - in_backward),
        shards=shards,
    )


def predict_on_cpu(shape: Shape, pack_tokens: int, optimizer: str) -> MemoryPlan:
    """The peak memory of training on a CPU, where nothing is recomputed."""
    plan = replace(predict(shape, pack_tokens, 0, optimizer), compiled=False, libraries=CPU_LIBRARIES)
    return replace(plan, activations=CPU_ACTIVATIONS * plan.activations)


def pack_lengths(longest_row: int, step_tokens: int) -> list[int]:
    """Lengths of packs to choose from, where none need be longer than a step nor can be shorter than a row."""
    between = [length for length in PACK_TOKENS if longest_row < length < step_tokens]
    return sorted({*between, longest_row, max(longest_row, min(step_tokens, PACK_TOKENS[0]))})


def choose(
    shape: Shape,
    free: int,
    memory: Literal["auto", "low", "high"],
    longest_row: int,
    step_tokens: int,
    optimizer: str,
    rate: float,
    compiled: bool = True,
    lengths: Sequence[int] | None = None,
    shards: int = 1,
) -> MemoryPlan:
    """The fastest layout that fits.

    Args:
        shape: of model and adapter.
        free: bytes that the run may take, the model included.
        memory: "low" takes no more than training without loss of speed in packs of 2,048 tokens needs; "high" never
            recomputes a layer; "auto" trades the length of packs and the number of recomputed layers for speed.
        longest_row: tokens of the longest row, which no pack can be shorter than.
        step_tokens: tokens of the largest optimizer step, which no pack need be longer than.
        optimizer: "adamw" or "paged_adamw_8bit".
        rate: floating point operations a second of the GPU on large bf16 matrix products.
        compiled: the fast path, or the plain one, which recomputes all layers whatever `memory` says.
        lengths: of packs, to choose from; by default those of `pack_lengths`.
        shards: devices that share the model.

    Raises:
        Refusal: if the longest row does not fit.
    """
    if lengths is None:
        lengths = pack_lengths(longest_row, step_tokens)
    most = 2048 if memory == "low" else PACK_TOKENS[0]
    nearest = min(lengths, key=lambda length: abs(length - most))
    lengths = [length for length in lengths if length <= nearest]
    levels = range(shape.layers + 1)
    if memory == "low" or not compiled:
        levels = [shape.layers]
    elif memory == "high":
        levels = [0]
    layouts = [predict(shape, length, level, optimizer, compiled, shards) for length in lengths for level in levels]
    fitting = [layout for layout in layouts if layout.peak <= free * USABLE]
    if not fitting:
        least = min(layouts, key=lambda layout: layout.peak)
        ways = [f"lower train.max_length (the longest row has {longest_row} tokens)"]
        ways += ["lower train.micro_batch_tokens"] if len(lengths) == 1 and lengths[0] > longest_row else []
        ways += ["set train.memory to auto"] if memory == "high" else []
        ways += [] if compiled else ["set train.compile to auto"]
        raise Refusal(
            f"training needs about {least.peak / USABLE / 1e9:.1f} GB of GPU memory and {free / 1e9:.1f} GB are free: "
            f"{', '.join(ways)} or choose a smaller model"
        )
    many = 10**9  # tokens, beside which compilation is nothing
    return min(fitting, key=lambda layout: seconds(shape, layout, many, many / layout.pack_tokens, rate))


def seconds(shape: Shape, plan: MemoryPlan, tokens: float, packs: float, rate: float) -> float:
    """Seconds that training on `tokens` tokens in `packs` packs takes, compilation included, where `rate` is the
    floating point operations a second of the GPU on large bf16 matrix products."""
    work, launches = tokens * 2 * shape.quantized / rate, packs * shape.layers
    if not plan.compiled:
        return max(work * 3 / PLAIN_EFFICIENCY, launches * PLAIN_LAUNCH)
    # Forward passes that a token costs: forward, backward, and what is repeated.
    share = plan.recomputed_layers / shape.layers
    once = PACK_COST + (GATHER_COST if plan.shards > 1 else 0)
    passes = 2 + RECOMPUTED * share + (2 + share) * once / plan.pack_tokens
    return COMPILE_SECONDS + max(work * passes / FAST_EFFICIENCY, launches * FAST_LAUNCH)
