"""merge: add the adapter to the base model's weights, shard by shard, and write a plain transformers folder.

W' = W + scale B A, with W the original weight (merge.base: full) or what 4 bits left of it (dequantized: the weights
that training saw). Two tensors at most are in memory at a time; all files but the weights are the base model's own.
"""

import gc
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from qlora.recipe.params import Merge, Quantization, load_params
from qlora.rows import chat
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model
from qlora.training import packing
from qlora.weights import loading as models

ADAPTER = Path("models/adapter")
SAMPLE_ROWS = 8
# Mean difference of the logits over their spread. Two orders of rounding to bfloat16 differ by about 0.02; a wrong
# scale or a missed layer by far more once the adapter has learned something.
TOLERANCE = 0.1
CHECKED_BYTES = 3e9
CHECKED_TENSORS = 16
CPU_ROWS = 64
ROUNDING = 0.02  # of a product: bfloat16 alone gives 0.002, float16 less
DEVICE_NAME = {"cpu": "CPU", "cuda": "GPU"}


def main() -> None:
    params = load_params()
    base = base_model.locate(ADAPTER)
    updates = read_updates(ADAPTER)
    shards = base_model.shards(base)
    quantization = models.read_quantization(ADAPTER)
    largest = check_base(shards, updates)
    check_space(shards, params.merge)
    tokenizer = chat.load_tokenizer(base)
    rows = sample_rows(tokenizer, base)

    device = free_device(largest)

    with new_folder(Path("models/merged")) as output:
        copy_other_files(base, output, params.merge)
        for shard in tqdm(shards, desc=f"merging on the {DEVICE_NAME[device]}", unit=" shards"):
            merge_shard(shard, output / shard.name, updates, params.merge, quantization, device)
        shutil.copy(ADAPTER / base_model.RECORD, output)
        products = check_products(base, output, updates, params.merge, quantization)
        difference, layers = check_against_adapter(base, output, rows, params.merge, quantization)
    summary(
        "merge",
        {
            "base": params.merge.base,
            "tensors changed": f"{len(updates)}; {products} read back and recomputed",
            "weights": f"{base_model.weights_bytes(Path('models/merged')) / 1e9:.2f} GB of {params.merge.dtype}",
            "against the adapter": f"logits of {layers} differ by {difference:.4f} of their spread on {len(rows)} rows",
        },
    )


@dataclass(frozen=True)
class Update:
    """A layer's low-rank update: scale * b @ a, with b (out, r) and a (r, in)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def add_to(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`weight` (out, in) with the update, added in float32, as `dtype`."""
        a, b = (matrix.to(weight.device, torch.float32) for matrix in (self.a, self.b))
        merged = torch.empty_like(weight, dtype=dtype)
        # On a CPU few rows at a time, which stay in its cache: three times as fast.
        rows = CPU_ROWS if weight.device.type == "cpu" else len(weight)
        for part, of_b, to in zip(weight.split(rows), b.split(rows), merged.split(rows), strict=True):
            to.copy_(torch.addmm(part.float(), of_b, a, alpha=self.scale))
        return merged


def read_updates(adapter: Path) -> dict[str, Update]:
    """The adapter's updates by the base model's tensor names.

    Raises:
        Refusal: if the adapter is missing or broken, or is of a kind that this merge does not know.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise Refusal(f"{adapter}: cannot be read ({error}); run `dvc repro quantize-load-train`") from None
    if config["use_dora"] or config.get("modules_to_save"):
        raise Refusal(f"{adapter}: DoRA and modules_to_save cannot be merged shard by shard; train plain LoRA")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    updates = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            updates[f"{layer}.weight"] = Update(a, tensors[name.replace("lora_A", "lora_B")], scale)
    return updates


def check_base(shards: list[Path], updates: dict[str, Update]) -> int:
    """Check the base model's tensors against the updates, from the shards' headers alone.

    Returns:
        Number of elements of the largest tensor that will be changed.

    Raises:
        Refusal: if a shard is broken or holds quantized tensors (llama.cpp's converter would fail on those, or worse,
            not), or if an update has no tensor of its shape.
    """
    shapes = {}
    for shard in shards:
        with opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                part = file.get_slice(name)
                if part.get_dtype() in {"U8", "I8"}:
                    raise Refusal(f"model.id: the base model holds the quantized tensor {name}; take its original")
                shapes[name] = tuple(part.get_shape())
    if missing := sorted(updates.keys() - shapes.keys()):
        raise Refusal(f"the adapter changes {missing[0]} (of {len(missing)}), which the base model does not have")
    for name, update in updates.items():
        if (wanted := (update.b.shape[0], update.a.shape[1])) != shapes[name]:
            raise Refusal(f"{name} has the shape {shapes[name]}, and the adapter changes one of {wanted}")
    return max(math.prod(shapes[name]) for name in updates)


@contextmanager
def opened(shard: Path) -> Iterator[safe_open]:
    """A safetensors file; its tensors are mapped, not read. Raises Refusal if it is broken."""
    try:
        with safe_open(shard, "pt") as file:
            yield file
    except SafetensorError as error:
        raise Refusal(f"{shard}: broken ({error}); fetch the base model again") from None


def check_space(shards: list[Path], merge: Merge) -> None:
    """Raise Refusal if the disk cannot take the merged model beside what is there."""
    growth = 2 if merge.dtype == "float32" else 1
    needed = sum(shard.stat().st_size for shard in shards) * growth
    Path("models").mkdir(exist_ok=True)
    free = shutil.disk_usage("models").free
    if free < needed * 1.05:
        raise Refusal(
            f"the merged model needs {needed / 1e9:.1f} GB under models/ and {free / 1e9:.1f} GB are free; make room "
            "(`dvc gc --workspace` drops what no commit of this workspace uses)"
        )


def free_device(largest: int) -> str:
    """The GPU if it has room for four float32 copies of the largest tensor (`largest` elements), else the CPU."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 4 * 4 * largest else "cpu"


def merge_shard(
    shard: Path, output: Path, updates: dict[str, Update], merge: Merge, quantization: Quantization, device: str
) -> None:
    """Write one shard with its updates added; two tensors at most are in memory."""
    dtype = getattr(torch, merge.dtype)
    with opened(shard) as file:
        names = file.offset_keys()

        def make(name: str) -> torch.Tensor:
            tensor = file.get_tensor(name)
            if name in updates:
                weight = tensor.to(device)
                if merge.base == "dequantized":
                    weight = through_4_bits(weight, quantization)
                tensor = updates[name].add_to(weight, dtype).cpu()
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        header, end = {"__metadata__": file.metadata() or {"format": "pt"}}, 0
        for name in names:
            tensor = file.get_tensor(name)  # mapped: this reads nothing
            floats = tensor.is_floating_point()
            begin, end = end, end + tensor.numel() * (dtype if floats else tensor.dtype).itemsize
            kind = SAFETENSORS_NAME[dtype] if floats else file.get_slice(name).get_dtype()
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        with ThreadPoolExecutor(1) as pool:  # makes the next tensor while one is written
            write_safetensors(output, header, ahead(pool, make, names))


def ahead(pool: ThreadPoolExecutor, make: Callable[[str], torch.Tensor], names: list[str]) -> Iterator[torch.Tensor]:
    """Yield what `make` makes of each name, one made ahead."""
    coming = pool.submit(make, names[0])
    for name in names[1:]:
        made, coming = coming.result(), pool.submit(make, name)
        yield made
    yield coming.result()


SAFETENSORS_NAME = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def write_safetensors(path: Path, header: dict, tensors: Iterable[torch.Tensor]) -> None:
    """Write a safetensors file tensor by tensor; the library's own writer wants all of them in memory at once.

    The format (https://github.com/huggingface/safetensors): the header's length as 8 bytes, little-endian; the header
    as JSON, padded with spaces to a multiple of 8; the tensors' bytes behind one another.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def through_4_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """What training saw of `weight`: quantized to 4 bits and back, in the compute dtype."""
    packed, state = bnb.quantize_4bit(
        weight.to(getattr(torch, quantization.compute_dtype)),
        compress_statistics=quantization.double_quantization,
        quant_type=quantization.type,
    )
    return bnb.dequantize_4bit(packed, state)


def copy_other_files(base: Path, output: Path, merge: Merge) -> None:
    """Ship the base model's own tokenizer, template and settings; only config.json's dtype may change."""
    for path in base.iterdir():
        if path.is_file() and path.suffix in {".json", ".model", ".jinja", ".txt"}:
            shutil.copyfile(path, output / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_json(output / "config.json", config | {"dtype": merge.dtype})


def sample_rows(tokenizer, base: Path) -> list[chat.Encoded]:
    """The first rows of the validation split."""
    with Path("data/prepared/validation.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for _, line in zip(range(SAMPLE_ROWS), file, strict=False)]
    return [chat.encode(tokenizer, line["messages"], chat.stop_ids(tokenizer, base)) for line in lines]


def check_products(base: Path, merged: Path, updates: dict[str, Update], merge: Merge, quantization) -> int:
    """Read some of the merged tensors back, drawn by lot, and multiply them by a vector as an adapter would:
    W x + scale B (A x). Return how many.

    Raises:
        Refusal: if a product differs by more than rounding.
    """
    names = random.Random(0).sample(sorted(updates), min(CHECKED_TENSORS, len(updates)))
    shards = {name: shard.name for shard in base_model.shards(base) for name in tensor_names(shard)}
    for name in tqdm(names, desc="checking", unit=" tensors"):
        with opened(base / shards[name]) as before, opened(merged / shards[name]) as after:
            weight, found = before.get_tensor(name), after.get_tensor(name)
        if merge.base == "dequantized":
            weight = through_4_bits(weight, quantization)
        vector = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
        update = updates[name]
        expected = weight.float() @ vector + update.scale * (update.b.float() @ (update.a.float() @ vector))
        difference = float((found.float() @ vector - expected).norm() / expected.norm())
        if not difference <= ROUNDING:  # also when it is not a number
            raise Refusal(
                f"{merged / shards[name]}: {name} is {difference:.3f} off the base model's with the adapter; "
                "merge.dtype is too coarse, or the disk is failing"
            )
    return len(names)


def tensor_names(shard: Path) -> list[str]:
    with opened(shard) as file:
        return list(file.keys())


def check_against_adapter(
    base: Path, merged: Path, rows: list[chat.Encoded], merge: Merge, quantization: Quantization
) -> tuple[float, str]:
    """The mean difference between the logits of the merged model and of PEFT's adapter on the same base.

    In units of the logits' standard deviation, over the sample rows. This checks the merge's arithmetic and its files
    as transformers and PEFT read them; what the 4-bit base costs is what `evaluate` measures. Models above
    CHECKED_BYTES are cut to their first layers, in memory, so that any machine that can merge can check.

    Returns:
        The difference, and which layers were compared.

    Raises:
        Refusal: if they differ by more than rounding.
    """
    dtype = getattr(torch, merge.dtype)
    config, layers, total = first_layers(merged)
    logging.set_verbosity_error()  # it would list the layers that are left out
    if merge.base == "dequantized":
        model = models.load_base(base, quantization, config=config)
    else:
        model = models.load_plain(base, dtype, config=config)
    with_adapter = logits(models.load_adapter(model, ADAPTER), rows)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    after_merge = logits(models.load_plain(merged, dtype, config=config), rows)
    pairs = list(zip(with_adapter, after_merge, strict=True))
    difference = sum(float((x - y).abs().mean() / x.std()) for x, y in pairs) / len(pairs)
    if not difference <= TOLERANCE:  # also when it is not a number
        raise Refusal(
            f"the merged model's logits differ from the adapter's by {difference:.3f} of their spread (at most "
            f"{TOLERANCE}); models/adapter does not belong to this base model, or merge.dtype is too coarse"
        )
    return difference, "all layers" if layers == total else f"the first {layers} of {total} layers"


def first_layers(folder: Path) -> tuple[PreTrainedConfig, int, int]:
    """The model's config with as many of its layers as fit CHECKED_BYTES, at least one; that number; that of all."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    total, size = text.num_hidden_layers, base_model.weights_bytes(folder)
    # Embeddings and head are there whatever the number of layers.
    ends = 2 * text.vocab_size * text.hidden_size * config.dtype.itemsize
    a_layer = max(1, size - ends) / total
    layers = total if size <= CHECKED_BYTES else max(1, min(total, int((CHECKED_BYTES - ends) / a_layer)))
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config, layers, total


@torch.inference_mode()
def logits(model: torch.nn.Module, rows: list[chat.Encoded]) -> list[torch.Tensor]:
    """The logits (tokens, vocabulary) of each row, in float32 on the CPU."""
    model.eval()
    return [model(**packing.pack_tensors([row], model.device)).logits[0].float().cpu() for row in rows]


if __name__ == "__main__":
    run_stage(main)
