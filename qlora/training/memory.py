"""The memory plan: the peak GPU memory of a training run, and the fastest layout that fits.

Nothing here uses a GPU. Sizes follow from the model's shape. The constants are fitted to peaks measured on an H200 with
the shapes of Llama-3-8B, Mistral-7B and Llama-2-13B (`benchmarks/train_speed.py`); predictions are within 10 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora.recipe.schema import Train
from qlora.runtime.console import Refusal
from qlora.training.device import Device
from qlora.weights import architecture, experts

from torch import nn
from transformers import PreTrainedConfig

BF16 = 2  # bytes
NF4 = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes a weight: 4 bits, an 8-bit scale for 64, a 32-bit scale for 256 scales
TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_topk")  # in a config: experts that a token is sent to
ROUTED_COPIES = 2  # of what experts work on, at once in a backward pass
HEAD_CHUNK = 32768  # vocabulary entries for which trl computes logits at once
USABLE = 0.92  # of the free memory; the rest is lost to fragmentation
MIXED_INTO = ("o_proj", "out_proj", "dense")  # the linear layer that takes the result of attention or of a recurrence
ASIDE = 4  # copies of the per-layer inputs: looked up, projected, normalized, added
VALIDATION_TOKENS = 2048
PACK_TOKENS = (16384, 8192, 4096, 3072, 2048, 1536, 1024, 768, 512)

# Speeds, relative to the matrix products of one token's forward pass, fitted on the H200.
RECOMPUTED = 0.73  # recomputing a layer repeats its products, except the last
PACK_COST = 400  # fixed cost of a pack (dequantization, launches), in tokens of a forward pass
GATHER_COST = 600  # fixed cost of gathering a sharded model's layers over NVLink, in the same unit
FAST_EFFICIENCY = 0.60  # of the GPU's rate on large matrix products
PLAIN_EFFICIENCY = 0.33
COMPILE_SECONDS = 20.0  # two graphs for two lengths; 16 measured on 16 cores with empty caches, 9 in later runs
# Seconds that Python takes to launch one layer's kernels for one pack, forward and backward. A small model or a short
# pack makes the GPU wait for it (5 to 9 ms compiled, depending on the host; 17 ms plain).
FAST_LAUNCH = 0.006
PLAIN_LAUNCH = 0.017

# On a CPU activations are float32, all are kept and nothing is fused; measured with the default recipe: 3.9 GB.
CPU_ACTIVATIONS = 8
CPU_LIBRARIES = 10**9  # bytes


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and its adapter that decide a run's memory. Widths are in elements."""

    layers: int
    hidden: int
    kept: int  # a token, that a layer (their mean) keeps for backward if it recomputes norms and activation functions
    intermediate: int  # the widest input of a linear layer in a decoder layer
    aside: int  # a token, computed before the layers for all of them (Gemma's per-layer inputs)
    vocabulary: int
    quantized: int  # weights of the linear layers and experts
    unquantized: int  # all other weights: embeddings, head, norms, routers
    largest: int  # weights of the largest tensor in 4 bits
    trainable: int
    trainable_bytes: int  # a weight
    met: int = 0  # of `quantized`, those that one token passes through; 0 for all
    routed: int = 0  # elements a token in the copies that its experts work on; 0 without experts
    plain: str = ""  # why the layers have no compiled form; empty if they have
    alone: str = ""  # why rows cannot share a pack; empty if they can
    weight_bytes: float = NF4  # a weight of `quantized`

    @property
    def parameters(self) -> int:
        return self.quantized + self.unquantized

    @property
    def in_4_bits(self) -> bool:
        return self.weight_bytes == NF4


@dataclass(frozen=True)
class MemoryPlan:
    """A layout of a run, and its predicted peak memory in bytes."""

    pack_tokens: int
    recomputed_layers: int
    compiled: bool
    weights: int
    adapter: int  # with its gradients
    optimizer: int
    activations: int
    logits: int
    libraries: int = 0  # code and buffers; on a GPU these are loaded before the free memory is read
    shards: int = 1  # devices that share the layers
    captured: bool = False  # whether micro-batches are CUDA graphs
    validation: int = 0  # of validation, which cannot use the graphs' memory

    @property
    def validation_tokens(self) -> int:
        """Tokens of a validation pack, at most, unless a row is longer."""
        return min(self.pack_tokens, VALIDATION_TOKENS) if self.captured else self.pack_tokens

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part.

        A layer's backward pass and the head's logits are never live at once, so the peak counts the larger of the two:
        activations = kept + backward; logits = max(0, head - backward).
        """
        names = ("weights", "adapter", "optimizer", "activations", "logits", "validation", "libraries")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def peak(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())


def shape_of(
    skeleton: nn.Module,
    r: int,
    target_modules: str | list[str],
    trainable_bytes: int = BF16,
    adapt_experts: bool = False,
    weight_bytes: float = NF4,
) -> Shape:
    """The sizes of a model and its adapter.

    Args:
        skeleton: A causal language model, on any device; all its linear layers but the head and what weights experts
            are to be 4-bit (or stay as they are, by `weight_bytes`), and its experts.
        r: Rank of the adapter.
        target_modules: The adapted layers, by the last parts of their names, or "all-linear".
        trainable_bytes: Bytes of one adapter weight, of its gradient, and of each of its moments in AdamW.
        adapt_experts: Whether the adapter reaches experts.
        weight_bytes: Bytes of one weight of the linear layers and experts.

    Raises:
        Refusal: if training does not support the architecture.
    """
    architecture.check(skeleton)
    config: PreTrainedConfig = skeleton.config
    head, unquantized = skeleton.get_output_embeddings(), set(architecture.kept_plain(skeleton))
    linear = {
        name: module
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name not in unquantized
    }
    fused = [skeleton.get_parameter(name) for name in experts.parameters_of(skeleton)]
    adapted = [
        module
        for name, module in linear.items()
        if target_modules == "all-linear" or name.endswith(tuple(f".{target}" for target in target_modules))
    ]
    trainable = sum(r * (module.in_features + module.out_features) for module in adapted)
    if adapt_experts:
        trainable += sum(r * len(weight) * (weight.shape[1] + weight.shape[2]) for weight in fused)
    dense = sum(module.weight.numel() for module in linear.values())
    quantized = dense + sum(weight.numel() for weight in fused)
    k, routed = experts_a_token(config), [0]
    for module in experts.of_model(skeleton).values():
        first, second = (module.get_parameter(name) for name in experts.weights_of(module))
        routed.append(k * (first.numel() + second.numel()) // (len(first) * config.hidden_size))
    layers = skeleton.get_submodule(architecture.LAYERS)
    kept = [kept_width(layer, experts_a_token(config)) for layer in layers]
    inside = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    per_layer = getattr(config, "hidden_size_per_layer_input", None) or 0
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kept=sum(kept) // len(kept),
        intermediate=max(module.in_features for module in inside),
        aside=ASIDE * len(kept) * per_layer,
        vocabulary=config.vocab_size,
        quantized=quantized,
        unquantized=sum(p.numel() for p in skeleton.parameters()) - quantized,
        largest=max(weight.numel() for weight in [*(module.weight for module in linear.values()), *fused]),
        trainable=trainable,
        trainable_bytes=trainable_bytes,
        met=dense + sum(k * weight.numel() // len(weight) for weight in fused),
        routed=k * config.hidden_size + max(routed) if fused else 0,
        plain=architecture.without_compiled_form(skeleton),
        alone=architecture.mixing_layers(skeleton),
        weight_bytes=weight_bytes,
    )


def experts_a_token(config: PreTrainedConfig) -> int:
    """Experts that a token is sent to."""
    return next((count for name in TOP_K if (count := getattr(config, name, None))), 0)


def kept_width(layer: nn.Module, k: int) -> int:
    """Elements a token that a layer keeps if it recomputes only norms, rotary embeddings and activation functions.

    They are the results of its linear layers, of `k` experts and of attention, and its input instead of the last
    layer's result, which is as wide.
    """
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    mixed = sum(module.in_features for name, module in linear.items() if name.endswith(MIXED_INTO))
    routed = 0
    for module in experts.of_model(layer).values():
        at = 2 if module.is_transposed else 1
        routed += k * sum(module.get_parameter(name).shape[at] for name in experts.weights_of(module))
    return sum(module.out_features for module in linear.values()) + mixed + routed


def predict(
    shape: Shape,
    pack_tokens: int,
    recomputed_layers: int,
    optimizer: str,
    compiled: bool = True,
    shards: int = 1,
    captured: bool = False,
) -> MemoryPlan:
    """The peak memory of a layout.

    Args:
        shape: Of model and adapter.
        pack_tokens: Tokens of a pack (a micro-batch).
        recomputed_layers: Layers with activation checkpointing, which keep only their input
            (`qlora.kernels.compiled_layers.speed_up`).
        optimizer: "adamw" or "paged_adamw_8bit".
        compiled: Compiled layers, or plain ones, which checkpoint all activations and fuse nothing.
        shards: Devices that share the layers. Each also holds the embeddings, the head, the scales of all 4-bit
            weights, and two whole layers: the one being computed and the one being gathered.
        captured: Whether micro-batches run as CUDA graphs, whose memory nothing else can use.
    """
    codes, scales, dequantized = shape.quantized / 2, shape.quantized * (NF4 - 0.5), shape.largest * BF16
    if not shape.in_4_bits:
        codes, scales, dequantized = shape.quantized * shape.weight_bytes, 0, 0
    layer = (codes + shape.trainable * shape.trainable_bytes) / shape.layers
    gathered = 0 if shards == 1 else 2 * layer
    trainable = shape.trainable / shards
    token = pack_tokens * BF16
    if compiled:
        kept_layers = shape.layers - recomputed_layers
        # During backward at most one recomputed layer's activations are live.
        kept = recomputed_layers * shape.hidden + max(kept_layers, 1) * shape.kept
        working = 2 * shape.intermediate + 3 * shape.hidden
    else:
        kept = shape.layers * shape.hidden
        working = 5 * shape.intermediate + 8 * shape.hidden
    in_backward = token * (working + ROUTED_COPIES * shape.routed) + dequantized
    # For each token the hidden state twice, and its gradient in 32 and in 16 bits.
    in_head = min(pack_tokens, 4096) * HEAD_CHUNK * BF16 + token * 5 * shape.hidden
    validated = min(pack_tokens, VALIDATION_TOKENS)
    in_validation = validated * BF16 * (working + ROUTED_COPIES * shape.routed) + dequantized
    in_validation = max(in_validation, validated * (HEAD_CHUNK + 5 * shape.hidden) * BF16)
    return MemoryPlan(
        pack_tokens=pack_tokens,
        recomputed_layers=recomputed_layers,
        compiled=compiled,
        weights=round(codes / shards + scales + gathered) + shape.unquantized * BF16,
        adapter=round(trainable * 2 * shape.trainable_bytes),
        optimizer=round(trainable * 2 * (1 if optimizer == "paged_adamw_8bit" else shape.trainable_bytes)),
        activations=token * (kept + shape.aside) + in_backward,
        logits=max(0, in_head - in_backward),
        shards=shards,
        captured=captured,
        validation=in_validation if captured else 0,
    )


def predict_on_cpu(shape: Shape, pack_tokens: int, optimizer: str) -> MemoryPlan:
    """The peak memory of training on a CPU, without activation checkpointing."""
    plan = replace(predict(shape, pack_tokens, 0, optimizer), compiled=False, libraries=CPU_LIBRARIES)
    return replace(plan, activations=CPU_ACTIVATIONS * plan.activations)


def pack_lengths(longest_row: int, step_tokens: int) -> list[int]:
    """Candidate pack lengths: no shorter than the longest row, no longer than the largest step."""
    between = [length for length in PACK_TOKENS if longest_row < length < step_tokens]
    return sorted({*between, longest_row, max(longest_row, min(step_tokens, PACK_TOKENS[0]))})


def choose(
    shape: Shape,
    device: Device,
    train: Train,
    longest_row: int,
    step_tokens: int,
    compiled: bool = True,
    lengths: Sequence[int] | None = None,
) -> MemoryPlan:
    """The fastest layout that fits.

    Args:
        shape: Of model and adapter.
        device: Its free memory and rate; with `sharded`, also the number of devices that share the model.
        train: Optimizer and memory. "low" checkpoints all layers, in packs of at most about 2,048 tokens; "high"
            checkpoints none; "auto" chooses the fastest pack length and number of checkpointed layers.
        longest_row: Tokens of the longest row; no pack can be shorter.
        step_tokens: Tokens of the largest optimizer step; no pack need be longer.
        compiled: Compiled layers, or plain ones, which checkpoint all layers whatever train.memory says.
        lengths: Candidate pack lengths; by default those of `pack_lengths`.

    Raises:
        Refusal: if the longest row does not fit.
    """
    if lengths is None:
        lengths = pack_lengths(longest_row, step_tokens)
    most = 2048 if train.memory == "low" else PACK_TOKENS[0]
    nearest = min(lengths, key=lambda length: abs(length - most))
    lengths = [length for length in lengths if length <= nearest]
    compiled = compiled and not shape.plain
    levels = range(shape.layers + 1)
    if train.memory == "low" or not compiled:
        levels = [shape.layers]
    elif train.memory == "high":
        levels = [0]
    shards = device.count if device.sharded else 1
    layouts = [
        predict(shape, length, level, train.optimizer, compiled, shards, captured)
        for length in lengths
        for level in levels
        for captured in ([True, False] if compiled and device.count == 1 else [False])
    ]
    fitting = [layout for layout in layouts if layout.peak <= device.free * USABLE]
    if not fitting:
        least = min(layouts, key=lambda layout: layout.peak)
        ways = [f"lower train.max_length (the longest row has {longest_row} tokens)"]
        ways += ["lower train.micro_batch_tokens"] if len(lengths) == 1 and lengths[0] > longest_row else []
        ways += ["set train.memory to auto"] if train.memory == "high" else []
        ways += [] if shape.in_4_bits else ["set quantization.type to nf4"]
        ways += [] if compiled else ["set train.compile to auto"]
        raise Refusal(
            f"training needs about {least.peak / USABLE / 1e9:.1f} GB of GPU memory and {device.free / 1e9:.1f} GB are "
            f"free: {', '.join(ways)} or choose a smaller model"
        )
    many = 10**9  # tokens, so that compilation time is negligible
    return min(fitting, key=lambda layout: seconds(shape, layout, many, many / layout.pack_tokens, device.rate))


def seconds(shape: Shape, plan: MemoryPlan, tokens: float, packs: float, rate: float) -> float:
    """Expected seconds of training on a GPU, compilation included.

    Args:
        shape: Of model and adapter.
        plan: The layout.
        tokens: Of all steps, on one device.
        packs: Of all steps, on one device.
        rate: Floating point operations a second of the GPU on large bf16 matrix products.
    """
    met = shape.met or shape.quantized
    work, launches = tokens * 2 * met / rate, packs * shape.layers
    if not plan.compiled:
        return max(work * 3 / PLAIN_EFFICIENCY, launches * PLAIN_LAUNCH)
    # In units of a forward pass: forward, backward (as much, without weight gradients), and recomputation.
    share = plan.recomputed_layers / shape.layers
    once = PACK_COST * shape.quantized / met + (GATHER_COST if plan.shards > 1 else 0)
    passes = 2 + RECOMPUTED * share + (2 + share) * once / plan.pack_tokens
    computing = work * passes / FAST_EFFICIENCY
    return COMPILE_SECONDS + (computing if plan.captured else max(computing, launches * FAST_LAUNCH))
