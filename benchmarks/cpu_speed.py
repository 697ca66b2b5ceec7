"""How much faster params.yaml trains on this CPU than the same rows do with trl's usual settings.

    python -m benchmarks.cpu_speed              # after `dvc repro prepare-dataset`

Compares the pipeline's trainer with trl's on padded rows with dropout 0.05 (without activation checkpointing, which
would be slower still). The two take turns step by step, so other work on the machine slows both equally. Prints median
speeds and the losses.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import read_encoded
from qlora.runtime.console import run_stage
from qlora.source import base_model, tokenizer
from qlora.training import device, layout, packing
from qlora.training.packing import Steps
from qlora.training.start import load_model
from qlora.weights import loading
from qlora.weights.architecture import skeleton
from stages.quantize_load_train import make_trainer

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

WARM_UP = 1  # steps that are not timed
PATIENCE = 600  # seconds to wait for the other trainer's step


class Turns(TrainerCallback):
    """Lets two trainers take turns step by step, and measures the seconds of each step."""

    def __init__(self, own: threading.Semaphore, other: threading.Semaphore):
        self.own, self.other = own, other
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        if not self.own.acquire(timeout=PATIENCE):
            raise TimeoutError(f"the other trainer has not ended its step within {PATIENCE} seconds")
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.begin)
        self.other.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    params = load_params()
    never = arguments.steps + 1
    train = params.train.model_copy(
        update={"max_steps": arguments.steps, "eval_steps": never, "checkpoint_steps": never}
    )
    params = params.model_copy(update={"train": train})
    base = base_model.fetch(params.model)
    chat, _ = tokenizer.settled(base, params.model)
    rows = {split: read_encoded(split, chat, train.max_length) for split in ("train", "validation")}
    lengths = [len(row.input_ids) for row in rows["train"]]
    here = device.cpu()
    plan = layout.lay_out(layout.shape_of(skeleton(base), params.lora, params.quantization), lengths, train, here)
    steps = packing.plan(lengths, train, plan.pack_tokens)

    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = {"trl": Turns(first, second), "here": Turns(second, first)}
    with tempfile.TemporaryDirectory() as checkpoints:
        set_seed(train.seed)
        trainers = {
            "trl": trl_trainer(params, base, chat, rows["train"], steps, checkpoints),
            "here": make_trainer(
                params, load_model(params, base, plan, here)[0], chat, rows, steps, plan, here, Path(checkpoints)
            ),
        }
        for name, trainer in trainers.items():
            trainer.add_callback(turns[name])
        other = threading.Thread(target=trainers["trl"].train, daemon=True)
        other.start()
        trainers["here"].train()  # in the main thread, because it handles signals
        other.join()

    rates = {
        name: statistics.median(
            count / seconds for count, seconds in list(zip(steps.tokens, turn.seconds, strict=True))[WARM_UP:]
        )
        for name, turn in turns.items()
    }
    print(f"\n{len(steps)} steps of {train.batch_size} rows, {sum(steps.tokens) / len(steps):.0f} tokens")
    for name, rate in rates.items():
        loss = [entry["loss"] for entry in trainers[name].state.log_history if "loss" in entry]
        print(f"{name:<5} {rate:>7.1f} tokens a second, loss {loss[0]:.3f} to {loss[-1]:.3f}")
    print(f"{rates['here'] / rates['trl']:.2f} times as fast")


def trl_trainer(params: Params, base: Path, chat: Chat, rows: list[Encoded], steps: Steps, output: str) -> SFTTrainer:
    """trl's trainer with dropout, on padded batches of the same rows."""
    lora, train = params.lora, params.train
    order = [rows[row] for pack in steps.packs for row in pack]
    return SFTTrainer(
        loading.load_base(base, params.quantization),
        SFTConfig(
            output_dir=output,
            per_device_train_batch_size=train.batch_size,
            max_steps=len(steps),
            train_sampling_strategy="sequential",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.lr_scheduler,
            warmup_steps=train.warmup_fraction,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in order]
        ),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=0.05,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        ),
    )


if __name__ == "__main__":
    run_stage(main)
