"""merge: add the adapter to the base model's weights, shard by shard, and write a plain transformers folder.

W' = W + scale B A, with W the weights that training saw (merge.base: dequantized) or the original ones (full). Training
saw every quantized tensor through 4 bits, so a dequantized base changes those without an update, too. Where nothing was
quantized both are the same, and the merge is exact but for rounding to merge.dtype. At most two tensors are in memory
at a time. All files but the weights are the base model's own.
"""

import json
import math
import shutil
from pathlib import Path

from qlora.merging.checks import check_against_adapter, check_products
from qlora.merging.parameters import Reader
from qlora.merging.shards import Merger, merge_shard
from qlora.merging.update import check_base, read_changes
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, MODELS
from qlora.recipe.load import load_params
from qlora.recipe.schema import Merge
from qlora.rows.chat import Chat
from qlora.rows.prepared import encode_rows, first
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import check_disk, new_folder, write_json
from qlora.source import base_model, tokenizer
from qlora.weights import quantized
from qlora.weights.files import INDEX, shards, weights_bytes
from qlora.weights.made import check_made

import torch
from tqdm import tqdm

SAMPLE_ROWS = 8  # validation rows on which merged model and adapter are compared
DEVICE_NAME = {"cpu": "CPU", "cuda": "GPU"}


def main() -> None:
    # Settings
    params = load_params()
    merge = params.merge
    adapter, merged = ARTIFACTS["adapter"].folder, ARTIFACTS["merged"].folder
    check_made(ARTIFACTS["adapter"])
    base = base_model.locate(adapter)
    dtype = getattr(torch, merge.dtype)

    # Checks
    in_4_bits, dequantized = quantized.read(adapter), merge.base == "dequantized"
    changes = read_changes(adapter, base, in_4_bits, from_4_bits=dequantized)
    largest = check_base(shards(base), changes)
    MODELS.mkdir(exist_ok=True)
    growth = 2 if merge.dtype == "float32" else 1
    trained = sum(math.prod(weight.shape) for weight in changes.trained.values())
    check_disk("the merged model", 1.05 * max(growth * weights_bytes(base), dtype.itemsize * trained), MODELS)
    chat = base_model.load_chat(adapter)
    rows = list(encode_rows(first("validation", SAMPLE_ROWS), chat, params.train.max_length))

    # The merge
    device = free_device(largest)
    with new_folder(merged) as output, Reader(base) as reader:
        merger = Merger(reader, changes, dtype, device)
        copy_other_files(base, chat, output, merge, merger)
        for shard in tqdm(shards(base), desc=f"merging on the {DEVICE_NAME[device]}", unit=" shards"):
            merge_shard(shard, output / shard.name, merger)
        shutil.copy(adapter / BASE_RECORD, output)
        products = check_products(base, output, changes)
        seen = in_4_bits if dequantized else None
        difference, layers = check_against_adapter(base, output, adapter, rows, dtype, seen)
    summary(
        "merge",
        {
            "base": merge.base if in_4_bits.in_4_bits else "the original weights, which training saw",
            "tensors changed": f"{len(changes.names)}; {products} read back and recomputed",
            "weights": f"{weights_bytes(merged) / 1e9:.2f} GB of {merge.dtype}",
            "against the adapter": f"logits of {layers} differ by {difference:.4f} of their spread on {len(rows)} rows",
        },
    )


def free_device(largest: int) -> str:
    """The GPU if it has room for four float32 copies of the largest tensor (`largest` elements), else the CPU."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 4 * 4 * largest else "cpu"


def copy_other_files(base: Path, chat: Chat, output: Path, merge: Merge, merger: Merger) -> None:
    """Write tokenizer and template as training had them, and copy the settings; of config.json the dtype may change.

    Where experts were in MXFP4, config.json no longer says so, and the index has the names of the new tensors.
    """
    tokenizer.save(chat, base, output)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):  # a vision tower keeps its own
        part.pop("torch_dtype", None)
        part["dtype"] = merge.dtype
    config.pop("quantization_config", None)
    write_json(output / "config.json", config)
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        files = {merger.written(name): file for name, file in index["weight_map"].items() if merger.written(name)}
        write_json(output / INDEX, index | {"weight_map": files})


if __name__ == "__main__":
    run_stage(main, __doc__)
