"""Whether the fast path learns what the plain path does: loss curves of the default recipe on the same rows.

    python -m benchmarks.loss_curves            # after `dvc repro prepare-dataset`; meant for a GPU

Trains params.yaml three times with the pipeline's own trainer, on the same rows in the same order: plain, plain with
another seed (of the adapter's first values) and fast. Prints how far the smoothed curves are apart, and exits with
status 1 if the fast one is farther from the plain one than the second seed is.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from qlora.recipe.params import Params, load_params
from qlora.rows import chat
from qlora.runtime.console import run_stage
from qlora.source import base_model
from qlora.training import layout, memory_plan
from qlora.weights import loading as models
from stages.quantize_load_train import (
    PREPARED,
    SPLITS,
    be_repeatable,
    devices,
    load_model,
    make_trainer,
    plan_steps,
    prepare_gpu,
    read_encoded,
)

SMOOTHED = 10  # steps
RUNS = {"plain": (False, 0), "plain, another seed": (False, 1), "fast": (True, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", help="write the curves there as well")
    arguments = parser.parse_args()
    prepare_gpu()
    params = load_params()
    base = base_model.fetch(params.model)
    tokenizer = chat.load_tokenizer(base)
    stops = chat.stop_ids(tokenizer, base)
    rows = {split: read_encoded(PREPARED / f"{split}.jsonl", params.train, tokenizer, stops) for split in SPLITS}

    curves = {}
    for name, (compiled, seed) in RUNS.items():
        begin = time.monotonic()
        curves[name] = losses(compiled, seed, arguments.steps, params, base, tokenizer, rows)
        print(f"{name}: {time.monotonic() - begin:.0f} s, last losses {np.mean(curves[name][-50:]):.4f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(curves))

    reference = smooth(curves["plain"])
    print(f"\n{'against plain':<20} {'mean difference':>16} {'largest':>8}   of curves smoothed over {SMOOTHED} steps")
    apart = {}
    for name in list(RUNS)[1:]:
        difference = np.abs(smooth(curves[name]) - reference)
        apart[name] = float(difference.mean())
        print(f"{name:<20} {apart[name]:>16.4f} {difference.max():>8.4f}")
    if apart["fast"] > apart["plain, another seed"]:
        sys.exit("error: the fast path does not learn what the plain path does")


def losses(compiled: bool, seed: int, count: int, params: Params, base: Path, tokenizer, rows) -> list[float]:
    """The loss of each step."""
    train = params.train.model_copy(
        update={
            "seed": seed,
            "max_steps": count,
            "epochs": 1000.0,
            "eval_steps": count + 1,
            "checkpoint_steps": count + 1,
        }
    )
    shape = layout.shape_of(models.skeleton(base), params.lora)
    plan = memory_plan.predict(shape, layout.CPU_PACK_TOKENS, 0, train.optimizer, compiled)
    here = devices(train)
    steps = plan_steps(rows["train"], plan.pack_tokens, train.model_copy(update={"seed": 0}), here.count)
    set_seed(seed)
    if here.is_gpu:
        be_repeatable(plan)
    variant = params.model_copy(update={"train": train})
    model = load_model(variant, base, plan, here)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = make_trainer(variant, model, tokenizer, rows, steps, plan, here, Path(checkpoints))
        trainer.train()
    torch._dynamo.reset()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def smooth(curve: list[float]) -> np.ndarray:
    steps = min(SMOOTHED, len(curve))
    return np.convolve(curve, np.full(steps, 1 / steps), "valid")


if __name__ == "__main__":
    run_stage(main)
