"""How long `merge` takes and how much memory it needs, compared with copying the files.

    python -m benchmarks.merge --layers 4 --base full dequantized

Writes a model of Llama-3-8B's widths and an adapter, both with random weights, into a temporary folder; copies the
model; then runs the stage as the pipeline does. Exits with status 1 beyond these bounds: twice the seconds of copying
(the start of Python and torch not counted), and 6 GB of RAM above the largest shard.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts import folder_model, measure
from benchmarks.parts.measure import REPO
from benchmarks.parts.shapes import SHAPES
from qlora.merging.update import read_updates
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.schema import Model
from qlora.rows.prepared import split_file
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import quantized
from qlora.weights.files import shards, weights_bytes

import torch
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

MARGIN = 6e9  # bytes of RAM above the largest shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="of Llama-3-8B's 32, which take 16 GB and write as much")
    parser.add_argument("--shard-gb", type=float, default=5.0)
    parser.add_argument("--base", nargs="+", choices=("full", "dequantized"), default=["full", "dequantized"])
    parser.add_argument("--folder", type=Path, help="working folder; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        within = compare(Path(work), options)
    sys.exit(not within)


def compare(work: Path, options: argparse.Namespace) -> bool:
    """Print a line for each merge base; return whether all are within the bounds."""
    prepare(work, options.layers, options.shard_gb * 1e9)
    base = work / "base"
    shard = max(path.stat().st_size for path in shards(base))
    print(f"{weights_bytes(base) / 1e9:.1f} GB in {len(shards(base))} shards")
    copying = copy_seconds(base, work / "copy")
    print(f"{'copying':<20} {copying:6.1f} s", flush=True)
    _, start = measure.run([sys.executable, "-c", "import stages.merge"], REPO, work / "log")
    print(f"{'starting':<20} {start.seconds:6.1f} s  {start.ram / 1e9:6.2f} GB of RAM", flush=True)

    within = True
    params = YAML().load(REPO / "recipes/llama3-8b-sql.yaml")
    for kind in options.base:
        params["merge"]["base"] = kind
        YAML().dump(params, work / "params.yaml")
        (work / "log").write_text("")
        command = [sys.executable, "-m", "stages.merge"]
        status, usage = measure.run(command, work, work / "log")
        if status:
            print((work / "log").read_text()[-3000:])
        bounded = usage.ram + usage.mapped <= shard + MARGIN and usage.seconds - start.seconds <= 2 * copying
        within &= bounded and status == 0
        print(
            f"{'merge ' + kind:<20} {usage.seconds:6.1f} s  {usage.ram / 1e9:6.2f} GB of RAM, "
            f"{usage.mapped / 1e9:.2f} GB of mapped files, {usage.gpu / 1e9:.2f} GB on the GPU: "
            f"{'within' if bounded else 'NOT within'} bounds",
            flush=True,
        )
        print("  " + (work / "log").read_text().rpartition("\n\n")[2].strip().replace("\n", "\n  "))
        shutil.rmtree(work / ARTIFACTS["merged"].folder, ignore_errors=True)
    return within


def prepare(work: Path, layers: int, shard_bytes: float) -> None:
    """Write what merge reads: base model, adapter, a few validation rows."""
    config, _ = SHAPES["llama3-8b"]
    config.num_hidden_layers = layers
    folder_model.write(work / "base", config, shard_bytes)
    record = base_model.describe(Model(id=str(work / "base")), work / "base")
    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    adapter = work / ARTIFACTS["adapter"].folder
    adapter.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name.replace(".default", ""): torch.empty(p.shape).normal_(0, 0.02, generator=generator)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.peft_config["default"].save_pretrained(adapter)
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    write_json(adapter / BASE_RECORD, record)
    quantized.write(adapter, quantized.Quantized(tensors=list(read_updates(adapter))))
    messages = [
        {"role": "user", "content": "How many singers are there?"},
        {"role": "assistant", "content": "SELECT 1"},
    ]
    prepared = work / split_file("validation")
    prepared.parent.mkdir(parents=True)
    prepared.write_text((json.dumps({"messages": messages}) + "\n") * 8)


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds for copying the files, the shorter of two runs."""
    best = float("inf")
    for _ in range(2):
        begin = time.monotonic()
        shutil.copytree(source, target)
        best = min(best, time.monotonic() - begin)
        shutil.rmtree(target)
    return best


if __name__ == "__main__":
    main()
