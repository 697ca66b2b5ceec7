"""How much faster the default recipe trains on this CPU than trl does with its usual settings, on the same rows.

    python -m benchmarks.cpu_speed              # after `dvc repro prepare-dataset`

Trains params.yaml with the pipeline's own trainer, and with trl's with padded rows and dropout 0.05 (no checkpointing,
which would be slower still). The two take turns step by step, so that whatever else runs on the machine disturbs both
alike; printed are the medians.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from qlora.recipe.params import load_params
from qlora.rows import chat
from qlora.runtime.console import run_stage
from qlora.source import base_model
from qlora.training import device, layout, memory_plan
from qlora.weights import loading as models
from stages.quantize_load_train import PREPARED, SPLITS, load_model, make_trainer, plan_steps, read_encoded

WARM_UP = 1  # steps that are not timed
PATIENCE = 600  # seconds


class Turns(TrainerCallback):
    """Lets a trainer do one step whenever it is its turn, and notes the seconds."""

    def __init__(self, mine: threading.Semaphore, others: threading.Semaphore):
        self.mine, self.others = mine, others
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        if not self.mine.acquire(timeout=PATIENCE):
            raise TimeoutError(f"the other trainer has not ended its step within {PATIENCE} seconds")
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.begin)
        self.others.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    params = load_params()
    train = params.train.model_copy(
        update={
            "max_steps": arguments.steps,
            "eval_steps": arguments.steps + 1,
            "checkpoint_steps": arguments.steps + 1,
        }
    )
    params = params.model_copy(update={"train": train})
    base = base_model.fetch(params.model)
    tokenizer = chat.load_tokenizer(base)
    stops = chat.stop_ids(tokenizer, base)
    rows = {split: read_encoded(PREPARED / f"{split}.jsonl", train, tokenizer, stops) for split in SPLITS}
    shape = layout.shape_of(models.skeleton(base), params.lora)
    plan = memory_plan.predict_on_cpu(shape, layout.CPU_PACK_TOKENS, train.optimizer)
    here = device.cpu()
    steps = plan_steps(rows["train"], plan.pack_tokens, train, here.count)

    first, second = threading.Semaphore(1), threading.Semaphore(0)
    turns = {"trl": Turns(first, second), "here": Turns(second, first)}
    with tempfile.TemporaryDirectory() as checkpoints:
        set_seed(train.seed)
        trainers = {
            "trl": trl_trainer(params, base, tokenizer, rows["train"], steps, checkpoints),
            "here": make_trainer(
                params, load_model(params, base, plan, here), tokenizer, rows, steps, plan, here, Path(checkpoints)
            ),
        }
        for name, trainer in trainers.items():
            trainer.add_callback(turns[name])
        other = threading.Thread(target=trainers["trl"].train, daemon=True)
        other.start()
        trainers["here"].train()  # in the main thread, since it minds signals
        other.join()

    lengths = [len(row.input_ids) for row in rows["train"]]
    tokens = [sum(lengths[row] for pack in step for row in pack) for step in steps]
    rates = {
        name: statistics.median(
            count / seconds for count, seconds in list(zip(tokens, turn.seconds, strict=True))[WARM_UP:]
        )
        for name, turn in turns.items()
    }
    print(f"\n{len(steps)} steps of {train.batch_size} rows, {sum(tokens) / len(tokens):.0f} tokens")
    for name, rate in rates.items():
        loss = [entry["loss"] for entry in trainers[name].state.log_history if "loss" in entry]
        print(f"{name:<5} {rate:>7.1f} tokens a second, loss {loss[0]:.3f} to {loss[-1]:.3f}")
    print(f"{rates['here'] / rates['trl']:.2f} times as fast")


def trl_trainer(params, base: Path, tokenizer, rows, steps, output: str) -> SFTTrainer:
    """trl's trainer with dropout, on padded batches of the same rows."""
    lora, train = params.lora, params.train
    order = [rows[at] for step in steps for pack in step for at in pack]
    return SFTTrainer(
        models.load_base(base, params.quantization),
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
        processing_class=tokenizer,
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
