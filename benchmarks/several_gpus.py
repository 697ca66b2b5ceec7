"""How much faster several GPUs train than one, and which models fit on several GPUs only.

    python -m benchmarks.several_gpus --shape llama3-8b --devices 1
    python -m benchmarks.several_gpus --shape llama3-8b --devices 2 --parallel ddp
    python -m benchmarks.several_gpus --shape llama-33b --devices 2 --parallel fsdp --capacity-gb 24

Trains with the pipeline's trainer on rows of 1,024 random tokens; the model has the given shape and random weights in
NF4. Prints one line of JSON: tokens per second of all GPUs together, the peak memory of each (allocated by tensors, and
reserved by torch's allocator), and each step's loss.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.parts.clock import WARM_UP
from benchmarks.parts.nf4_model import random_model
from benchmarks.parts.settings import blank_tokenizer
from benchmarks.parts.shapes import SHAPES
from benchmarks.parts.training import random_rows, shape_of
from qlora.processes import group, launch
from qlora.recipe.load import load_params
from qlora.rows.chat import Chat
from qlora.runtime.console import run_stage
from qlora.training import layout, packing
from qlora.training.device import devices_of_run
from qlora.training.gpu import attention, be_repeatable, prepare_gpu
from qlora.training.memory import MemoryPlan
from qlora.training.run import to_the_end
from stages.quantize_load_train import make_trainer

import torch
from transformers import TrainerCallback, set_seed


class Times(TrainerCallback):
    """Notes when each step ends, and leaves the validation after the last step out."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = False
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(arguments: argparse.Namespace) -> None:
    """Train and print the figures. Every process calls this; only rank 0's output is shown."""
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
    length = 1024 if torch.cuda.is_available() else 64
    rows = [
        replace(row, input_ids=row.input_ids[-length:], labels=row.labels[-length:])
        for row in random_rows("full", arguments.batch_size * arguments.steps, config.vocab_size)
    ]
    lengths = [len(row.input_ids) for row in rows]
    here = devices_of_run(train)
    if arguments.capacity_gb:
        torch.cuda.set_per_process_memory_fraction(arguments.capacity_gb * 1e9 / torch.cuda.mem_get_info()[1])
        believed = arguments.capacity_gb * 1e9 * arguments.overestimate
        here = replace(here, free=int(min(believed, launch.memory_limit())))
    shape = shape_of(arguments.shape)
    tokenizer = blank_tokenizer()
    chat = Chat(tokenizer, [tokenizer.eos_token_id], tokenizer.pad_token_id)
    times = Times()

    def run(plan: MemoryPlan) -> dict:
        steps = packing.plan(lengths, train, plan.pack_tokens, here.count)
        for label, text in layout.describe(shape, plan, steps.tokens, here).items():
            print(f"{label}: {text}", flush=True)
        begin = time.perf_counter()
        if here.is_gpu:
            be_repeatable(plan)
        model = random_model(config, attention(plan), group.state().device, here.sharded)
        print(f"made the model in {time.perf_counter() - begin:.1f} s", flush=True)
        set_seed(train.seed)
        split = {"train": rows, "validation": rows[:2]}
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(params, model, chat, split, steps, plan, here, Path(folder))
            trainer.add_callback(times)
            to_the_end(trainer, steps, Path(folder))
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
        memory = group.gathered((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
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
    parser.add_argument("--capacity-gb", type=float, help="memory of each GPU to use at most, as on smaller cards")
    parser.add_argument(
        "--overestimate",
        type=float,
        default=1.0,
        help="plan for so many times --capacity-gb, to provoke a lighter layout",
    )
    parser.add_argument("--plain", action="store_true", help="without compiled layers")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    prepare_gpu()
    if arguments.devices > 1 and not launch.is_started():
        launch.start("benchmarks.several_gpus", arguments.devices, *sys.argv[1:], count=launch.machines())
    else:
        measure(arguments)


if __name__ == "__main__":
    launch.work(main) if launch.is_started() else run_stage(main)
