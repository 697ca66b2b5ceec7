"""How much faster several GPUs train than one, and what fits on them that does not fit on one.

    python -m benchmarks.several_gpus --shape llama3-8b --devices 1
    python -m benchmarks.several_gpus --shape llama3-8b --devices 2 --parallel ddp
    python -m benchmarks.several_gpus --shape llama-33b --devices 2 --parallel fsdp --capacity-gb 24

Trains as quantize-load-train does, with its own trainer, on a model of the given shape whose random weights are made
in NF4 layer by layer, and on rows of 1,024 random tokens. Prints one line of JSON: tokens per second of all GPUs
together, the peak memory of each (of tensors, and with what torch's allocator holds beside them) and each step's loss.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from benchmarks.recipe import WARM_UP, blank_tokenizer, random_model
from benchmarks.shapes import SHAPES
from benchmarks.train_speed import random_rows, shape_of
from qlora.processes import several
from qlora.recipe.params import load_params
from qlora.runtime.console import run_stage
from qlora.training import layout
from qlora.training.memory_plan import MemoryPlan
from stages import quantize_load_train


class Times(TrainerCallback):
    """When each step ended; and no validation after the last."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = False
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(arguments: argparse.Namespace) -> None:
    """Train, in each of the processes, and let the first one print what came out."""
    config, adapter = SHAPES[arguments.shape]
    settings = load_params(Path("recipes/llama3-8b-sql.yaml"))
    train = settings.train.model_copy(
        update={
            "batch_size": arguments.batch_size,
            "parallel": arguments.parallel,
            "seed": arguments.seed,
            "compile": not arguments.plain,
            "eval_steps": 10**6,
            "checkpoint_steps": 10**6,
            "warmup_fraction": 0.0,
        }
    )
    params = settings.model_copy(update={"train": train, "lora": settings.lora.model_copy(update=adapter)})
    tokens_each = 1024 if torch.cuda.is_available() else 64
    rows = [
        replace(row, input_ids=row.input_ids[-tokens_each:], labels=row.labels[-tokens_each:])
        for row in random_rows("full", arguments.batch_size * arguments.steps, config.vocab_size)
    ]
    lengths = [len(row.input_ids) for row in rows]
    here = quantize_load_train.devices(train)
    if arguments.capacity_gb:
        torch.cuda.set_per_process_memory_fraction(arguments.capacity_gb * 1e9 / torch.cuda.mem_get_info()[1])
        believed = arguments.capacity_gb * 1e9 * arguments.overestimate
        here = replace(here, free=int(min(believed, several.memory_limit())))
    shape = shape_of(arguments.shape)
    device = several.state().device
    times = Times()

    def run(plan: MemoryPlan) -> dict:
        for label, text in layout.describe(shape, plan, layout.step_tokens(lengths, train), here).items():
            print(f"{label}: {text}", flush=True)
        steps = quantize_load_train.plan_steps(rows, plan.pack_tokens, train, here.count)
        begin = time.perf_counter()
        if here.is_gpu:
            quantize_load_train.be_repeatable(plan)
        model = random_model(config, quantize_load_train.attention(plan), device, here.sharded)
        print(f"made the model in {time.perf_counter() - begin:.1f} s", flush=True)
        set_seed(train.seed)
        split = {"train": rows, "validation": rows[:2]}
        with tempfile.TemporaryDirectory() as folder:
            trainer = quantize_load_train.make_trainer(
                params, model, blank_tokenizer(), split, steps, plan, here, Path(folder)
            )
            trainer.add_callback(times)
            quantize_load_train.train(trainer, split, steps, Path(folder))
        per_step = sum(lengths) / len(steps)
        timed = times.ends[-1] - times.ends[WARM_UP - 1]
        return {
            "tokens_per_second": round(per_step * (len(times.ends) - WARM_UP) / timed),
            "step_seconds": round(timed / (len(times.ends) - WARM_UP), 3),
            "planned_gb": round(plan.peak / 1e9, 2),
            "losses": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
        }

    result = layout.run_fitted(run, shape, lengths, train, here)
    if torch.cuda.is_available():
        memory = several.gathered((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
        result["peak_gb"] = [round(peak / 1e9, 2) for peak, _ in memory]
        result["reserved_gb"] = [round(reserved / 1e9, 2) for _, reserved in memory]
    print(json.dumps({"shape": arguments.shape, "devices": here.name, "parallel": arguments.parallel} | result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of 1,024 tokens a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and of the rows' order")
    parser.add_argument(
        "--capacity-gb", type=float, help="use no more memory of each GPU than this, like smaller cards"
    )
    parser.add_argument(
        "--overestimate", type=float, default=1.0, help="lay out for this times --capacity-gb, to see a run step down"
    )
    parser.add_argument("--plain", action="store_true", help="without compiled layers")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    quantize_load_train.prepare_gpu()
    if arguments.devices > 1 and not several.is_started():
        several.start("benchmarks.several_gpus", arguments.devices, *sys.argv[1:], count=several.machines())
    else:
        measure(arguments)


if __name__ == "__main__":
    several.work(main) if several.is_started() else run_stage(main)
