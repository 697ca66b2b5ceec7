"""merge: add the adapter to the base model's weights, shard by shard, and write a plain transformers folder.

W' = W + scale B A, with W the original weight (merge.base: full) or what 4 bits left of it (dequantized: the weights
that training saw). Only one shard is in memory at a time; all files but the weights are the base model's own.
"""

import gc
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from stages import base_model, chat, models, packing
from stages.console import Refusal, run_stage, summary
from stages.outputs import new_folder, write_json
from stages.params import Merge, Quantization, load_params

ADAPTER = Path("models/adapter")
SAMPLE_ROWS = 8
# Mean difference of the logits over their spread. Two orders of rounding to bfloat16 differ by about 0.02; a wrong
# scale or a missed layer by far more once the adapter has learned something.
TOLERANCE = 0.1


def main() -> None:
    params = load_params()
    base = base_model.locate(ADAPTER)
    updates = read_updates(ADAPTER)
    shards = base_model.shards(base)
    quantization = models.read_quantization(ADAPTER)
    check_space(shards, params.merge)
    tokenizer = chat.load_tokenizer(base)
    rows = sample_rows(tokenizer, base)

    with new_folder(Path("models/merged")) as output:
        copy_other_files(base, output, params.merge)
        merged = set()
        for shard in tqdm(shards, desc="merging", unit=" shards"):
            merged |= merge_shard(shard, output / shard.name, updates, params.merge, quantization)
        if missing := sorted(updates.keys() - merged):
            raise Refusal(f"the adapter changes {missing[0]} (of {len(missing)}), which the base model does not have")
        check_plain(output)
        shutil.copy(ADAPTER / base_model.RECORD, output)
        difference = check_against_adapter(base, output, rows, params.merge, quantization)
    summary(
        "merge",
        {
            "base": params.merge.base,
            "layers changed": len(merged),
            "weights": f"{base_model.weights_bytes(Path('models/merged')) / 1e9:.2f} GB of {params.merge.dtype}",
            "against the adapter": f"logits differ by {difference:.4f} of their spread on {len(rows)} rows",
        },
    )


@dataclass(frozen=True)
class Update:
    """A layer's low-rank update: scale * b @ a, with b (out, r) and a (r, in)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` (out, in) with the update, in float32."""
        device = weight.device
        return torch.addmm(
            weight.float(), self.b.to(device, torch.float32), self.a.to(device, torch.float32), alpha=self.scale
        )


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


def merge_shard(
    shard: Path, output: Path, updates: dict[str, Update], merge: Merge, quantization: Quantization
) -> set[str]:
    """Write one shard with its updates added; return the names of the tensors that were changed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, merge.dtype)
    tensors, merged = {}, set()
    try:
        with safe_open(shard, "pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                tensor = file.get_tensor(name)
                if name in updates:
                    weight = tensor.to(device)
                    if merge.base == "dequantized":
                        weight = through_4_bits(weight, quantization)
                    tensor = updates[name].add_to(weight).to(dtype).cpu()
                    merged.add(name)
                tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    except SafetensorError as error:
        raise Refusal(f"{shard}: broken ({error}); fetch the base model again") from None
    save_file(tensors, output, metadata)
    return merged


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


def check_plain(folder: Path) -> None:
    """Raise Refusal if a quantized tensor or setting is left: llama.cpp's converter would fail on it, or worse, not."""
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise Refusal("model.id: the base model is quantized already; merging needs its full-precision original")
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                if file.get_slice(name).get_dtype() in {"U8", "I8"}:
                    raise Refusal(f"model.id: the base model holds the quantized tensor {name}; take its original")


def sample_rows(tokenizer, base: Path) -> list[chat.Encoded]:
    """The first rows of the validation split."""
    with Path("data/prepared/validation.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for _, line in zip(range(SAMPLE_ROWS), file, strict=False)]
    return [chat.encode(tokenizer, line["messages"], chat.stop_ids(tokenizer, base)) for line in lines]


def check_against_adapter(
    base: Path, merged: Path, rows: list[chat.Encoded], merge: Merge, quantization: Quantization
) -> float:
    """The mean difference between the logits of the merged model and of PEFT's adapter on the same base.

    In units of the logits' standard deviation, over the sample rows. This checks the merge's arithmetic; what the
    4-bit base costs is what `evaluate` measures.

    Raises:
        Refusal: if they differ by more than rounding.
    """
    dtype = getattr(torch, merge.dtype)
    model = models.load_base(base, quantization) if merge.base == "dequantized" else models.load_plain(base, dtype)
    with_adapter = logits(PeftModel.from_pretrained(model, ADAPTER), rows)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    after_merge = logits(models.load_plain(merged, dtype), rows)
    pairs = list(zip(with_adapter, after_merge, strict=True))
    difference = sum(float((x - y).abs().mean() / x.std()) for x, y in pairs) / len(pairs)
    if not difference <= TOLERANCE:  # also when it is not a number
        raise Refusal(
            f"the merged model's logits differ from the adapter's by {difference:.3f} of their spread (at most "
            f"{TOLERANCE}); models/adapter does not belong to this base model, or merge.dtype is too coarse"
        )
    return difference


@torch.inference_mode()
def logits(model: torch.nn.Module, rows: list[chat.Encoded]) -> list[torch.Tensor]:
    """The logits (tokens, vocabulary) of each row, in float32 on the CPU."""
    model.eval()
    return [model(**packing.pack_tensors([row], model.device)).logits[0].float().cpu() for row in rows]


if __name__ == "__main__":
    run_stage(main)
