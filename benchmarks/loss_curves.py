"""Whether compiled layers learn what plain layers do: loss curves of params.yaml on the same rows.

    python -m benchmarks.loss_curves            # after `dvc repro prepare-dataset`; meant for a GPU

Trains three times with the pipeline's trainer, on the same rows in the same order: with plain layers, with plain layers
and another seed for the adapter, and with compiled layers. Prints how far the smoothed curves are apart. Exits with
status 1 if compiled layers are farther from plain ones than the other seed is.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import read_encoded
from qlora.runtime.console import run_stage
from qlora.source import base_model, tokenizer
from qlora.training import layout, memory, packing
from qlora.training.device import devices_of_run
from qlora.training.gpu import be_repeatable, prepare_gpu
from qlora.training.start import load_model
from qlora.weights.architecture import skeleton
from stages.quantize_load_train import make_trainer

import numpy as np
import torch
from transformers import set_seed

SMOOTHED = 10  # steps
RUNS = {"plain": (False, 0), "plain, another seed": (False, 1), "compiled": (True, 0)}  # compiled, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", help="write the curves to this file, too")
    arguments = parser.parse_args()
    prepare_gpu()
    params = load_params()
    base = base_model.fetch(params.model)
    chat, _ = tokenizer.settled(base, params.model)
    rows = {split: read_encoded(split, chat, params.train.max_length) for split in ("train", "validation")}

    curves = {}
    for name, (compiled, seed) in RUNS.items():
        begin = time.monotonic()
        curves[name] = losses(compiled, seed, arguments.steps, params, base, chat, rows)
        print(f"{name}: {time.monotonic() - begin:.0f} s, last losses {np.mean(curves[name][-50:]):.4f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(curves))

    reference = smooth(curves["plain"])
    print(f"\n{'against plain':<20} {'mean difference':>16} {'largest':>8}   (curves smoothed over {SMOOTHED} steps)")
    apart = {}
    for name in list(RUNS)[1:]:
        difference = np.abs(smooth(curves[name]) - reference)
        apart[name] = float(difference.mean())
        print(f"{name:<20} {apart[name]:>16.4f} {difference.max():>8.4f}")
    if apart["compiled"] > apart["plain, another seed"]:
        sys.exit("error: compiled layers do not learn what plain layers do")


def losses(
    compiled: bool, seed: int, count: int, params: Params, base: Path, chat: Chat, rows: dict[str, list[Encoded]]
) -> list[float]:
    """The loss of each step.

    Args:
        compiled: Compiled layers, or plain ones.
        seed: Of the adapter; the rows' order is the same for all.
        count: Steps.
        params: The recipe.
        base: The base model's folder.
        chat: Its tokenizer.
        rows: Training and validation rows.
    """
    never = count + 1
    train = params.train.model_copy(
        update={"seed": seed, "max_steps": count, "epochs": 1000.0, "eval_steps": never, "checkpoint_steps": never}
    )
    shape = layout.shape_of(skeleton(base), params.lora, params.quantization)
    lengths = [len(row.input_ids) for row in rows["train"]]
    here = devices_of_run(train)
    plan = memory.predict(shape, max(layout.CPU_PACK_TOKENS, *lengths), 0, train.optimizer, compiled)
    steps = packing.plan(lengths, train.model_copy(update={"seed": 0}), plan.pack_tokens, here.count)
    set_seed(seed)
    if here.is_gpu:
        be_repeatable(plan)
    variant = params.model_copy(update={"train": train})
    model, _ = load_model(variant, base, plan, here)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = make_trainer(variant, model, chat, rows, steps, plan, here, Path(checkpoints))
        trainer.train()
    torch._dynamo.reset()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def smooth(curve: list[float]) -> np.ndarray:
    steps = min(SMOOTHED, len(curve))
    return np.convolve(curve, np.full(steps, 1 / steps), "valid")


if __name__ == "__main__":
    run_stage(main)
