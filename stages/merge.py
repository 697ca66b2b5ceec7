"""merge: add the adapter to the base model's weights, shard by shard, and write a plain transformers folder.

W' = W + scale B A, with W the weights that training saw (merge.base: dequantized) or the original ones (full). At most
two tensors are in memory at a time. All files but the weights are the base model's own.
"""

import json
import shutil
from pathlib import Path

from qlora.merging.checks import check_against_adapter, check_products
from qlora.merging.shards import merge_shard
from qlora.merging.update import check_base, read_updates
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, MODELS
from qlora.recipe.load import load_params
from qlora.recipe.schema import Merge
from qlora.rows.chat import load_chat
from qlora.rows.prepared import encode_rows, first
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import check_disk, new_folder, write_json
from qlora.source import base_model
from qlora.weights.files import shards, weights_bytes
from qlora.weights.loading import read_quantization

import torch
from tqdm import tqdm

SAMPLE_ROWS = 8  # validation rows on which merged model and adapter are compared
DEVICE_NAME = {"cpu": "CPU", "cuda": "GPU"}


def main() -> None:
    # Settings
    params = load_params()
    merge = params.merge
    adapter, merged = ARTIFACTS["adapter"].folder, ARTIFACTS["merged"].folder
    base = base_model.locate(adapter)
    quantization = read_quantization(adapter)

    # Checks
    updates = read_updates(adapter)
    largest = check_base(shards(base), updates)
    MODELS.mkdir(exist_ok=True)
    growth = 2 if merge.dtype == "float32" else 1
    check_disk("the merged model", 1.05 * growth * weights_bytes(base), MODELS)
    rows = list(encode_rows(first("validation", SAMPLE_ROWS), load_chat(base), params.train.max_length))

    # The merge
    device = free_device(largest)
    with new_folder(merged) as output:
        copy_other_files(base, output, merge)
        for shard in tqdm(shards(base), desc=f"merging on the {DEVICE_NAME[device]}", unit=" shards"):
            merge_shard(shard, output / shard.name, updates, merge, quantization, device)
        shutil.copy(adapter / BASE_RECORD, output)
        products = check_products(base, output, updates, merge, quantization)
        difference, layers = check_against_adapter(base, output, adapter, rows, merge, quantization)
    summary(
        "merge",
        {
            "base": merge.base,
            "tensors changed": f"{len(updates)}; {products} read back and recomputed",
            "weights": f"{weights_bytes(merged) / 1e9:.2f} GB of {merge.dtype}",
            "against the adapter": f"logits of {layers} differ by {difference:.4f} of their spread on {len(rows)} rows",
        },
    )


def free_device(largest: int) -> str:
    """The GPU if it has room for four float32 copies of the largest tensor (`largest` elements), else the CPU."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 4 * 4 * largest else "cpu"


def copy_other_files(base: Path, output: Path, merge: Merge) -> None:
    """Copy the base model's tokenizer, template and settings; only config.json's dtype may change."""
    for path in base.iterdir():
        if path.is_file() and path.suffix in {".json", ".model", ".jinja", ".txt"}:
            shutil.copyfile(path, output / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_json(output / "config.json", config | {"dtype": merge.dtype})


if __name__ == "__main__":
    run_stage(main)
