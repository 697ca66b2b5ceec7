"""How long `merge` takes and how much memory it needs, next to copying the files.

    python -m benchmarks.merge --layers 4 --base full dequantized

Writes a model of Llama-3-8B's widths with random weights (and as many layers as asked for) into a temporary folder,
and an adapter of random matrices; copies the model; then runs the stage, as the pipeline does. The bounds that it is
held to: at most twice the seconds of copying (and what Python and torch take to start), at most 6 GB of RAM above the
largest shard.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from benchmarks import measure, random_model
from benchmarks.shapes import SHAPES
from qlora.recipe.params import Model, Quantization
from qlora.runtime.outputs import write_json
from qlora.source import base_model

REPO = Path(__file__).parents[1]
MARGIN = 6e9  # bytes of RAM above the largest shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="of Llama-3-8B's; 32 are 16 GB, and as much is written")
    parser.add_argument("--shard-gb", type=float, default=5.0)
    parser.add_argument("--base", nargs="+", choices=("full", "dequantized"), default=["full", "dequantized"])
    parser.add_argument("--folder", type=Path, help="where to work; the system's temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        within = compare(Path(work), options)
    sys.exit(not within)


def compare(work: Path, options: argparse.Namespace) -> bool:
    """Print a line for each way; return whether all are within the bounds."""
    prepare(work, options.layers, options.shard_gb * 1e9)
    base = work / "base"
    shard = max(path.stat().st_size for path in base_model.shards(base))
    print(f"{base_model.weights_bytes(base) / 1e9:.1f} GB in {len(base_model.shards(base))} shards")
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
        shutil.rmtree(work / "models/merged", ignore_errors=True)
    return within


def prepare(work: Path, layers: int, shard_bytes: float) -> None:
    """The folder as merge finds it: base model, adapter, a few validation rows."""
    config, _ = SHAPES["llama3-8b"]
    config.num_hidden_layers = layers
    random_model.write(work / "base", config, shard_bytes)
    record = base_model.describe(Model(id=str(work / "base")), work / "base")
    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    adapter = work / "models/adapter"
    adapter.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name.replace(".default", ""): torch.empty(p.shape).normal_(0, 0.02, generator=generator)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.peft_config["default"].save_pretrained(adapter)
    random_model.save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    write_json(adapter / base_model.RECORD, record)
    write_json(adapter / "quantization.json", Quantization().model_dump())
    messages = [
        {"role": "user", "content": "How many singers are there?"},
        {"role": "assistant", "content": "SELECT 1"},
    ]
    (work / "data/prepared").mkdir(parents=True)
    (work / "data/prepared/validation.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 8)


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds that copying the files takes, the better of two."""
    best = float("inf")
    for _ in range(2):
        begin = time.monotonic()
        shutil.copytree(source, target)
        best = min(best, time.monotonic() - begin)
        shutil.rmtree(target)
    return best


if __name__ == "__main__":
    main()
