"""quantize-load-train: load the base model in NF4, train a LoRA adapter on it, write the adapter and the run's record.

Writes models/adapter (what PEFT saves, and the base model's record) and results/train (log.csv, metrics.json,
environment.json). Checkpoints live outside of these outputs, in .checkpoints/<hash of what decides the result>, because
DVC removes outputs before a stage runs: a killed run goes on from there and ends with the same adapter.
"""

import csv
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import signal
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from stages import base_model, chat, compressed, device, fast_path, layout, models, packed_attention, packing
from stages.console import Refusal, run_stage, summary
from stages.memory_plan import MemoryPlan
from stages.outputs import new_folder, room_in, write_json
from stages.params import Params, Train, load_params

PREPARED = Path("data/prepared")
SPLITS = ("train", "validation")
COMPLETE = "complete"  # written into a checkpoint when all else is: the digests of its files
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def main() -> None:
    params = load_params()
    # Set before the first allocation: packs of changing lengths leave gaps in memory otherwise.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    base = base_model.locate(Path("models/base"))
    skeleton = models.skeleton(base)
    models.check_target_modules(skeleton, params.lora)
    if params.vllm.types:  # found here, and not after hours of training
        compressed.check(skeleton, params.vllm.group_size)
    tokenizer = chat.load_tokenizer(base)
    stops = chat.stop_ids(tokenizer, base)
    rows = {split: read_encoded(PREPARED / f"{split}.jsonl", params.train, tokenizer, stops) for split in SPLITS}
    lengths = [len(row.input_ids) for row in rows["train"]]
    shape = layout.shape_of(skeleton, params.lora)
    here = device.gpu() if torch.cuda.is_available() else device.cpu()
    checkpoints = checkpoint_folder(params)

    tokens = sum(layout.step_tokens(lengths, params.train))

    def run(plan: MemoryPlan) -> tuple[Trainer, dict]:
        summary(f"plan for {here.name}", layout.describe(shape, plan, tokens, here))
        steps = plan_steps(rows["train"], plan.pack_tokens, params.train)
        set_seed(params.train.seed)
        trainer = make_trainer(params, base, tokenizer, rows, steps, plan, checkpoints)
        return trainer, train(trainer, rows, steps, checkpoints)

    trainer, metrics = layout.run_fitted(run, shape, lengths, params.train, here)

    with new_folder(Path("results/train")) as output:
        write_log(output / "log.csv", trainer.state.log_history)
        write_json(output / "metrics.json", metrics)
        write_json(output / "environment.json", environment(params))
    with new_folder(Path("models/adapter")) as output:
        trainer.model.save_pretrained(output)
        (output / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, all blanks
        name_base(output / "adapter_config.json", params)
        write_json(output / models.QUANTIZATION, params.quantization.model_dump())
        shutil.copy(Path("models/base") / base_model.RECORD, output)
    shutil.rmtree(checkpoints)
    summary("quantize-load-train", metrics)


def read_encoded(path: Path, train: Train, tokenizer, stops: list[int]) -> list[chat.Encoded]:
    """The rows of a prepared split as ids and labels, cut to train.max_length."""
    encoded = []
    with path.open(encoding="utf-8") as file:
        for line in tqdm(file, desc=f"tokenize {path.stem}", unit=" rows"):
            row = chat.encode(tokenizer, json.loads(line)["messages"], stops)
            encoded.append(chat.cut(row, train.max_length))
    return encoded


def plan_steps(encoded: list[chat.Encoded], pack_tokens: int, train: Train) -> list[list[list[int]]]:
    """Steps of packs of row numbers."""
    lengths = [len(row.input_ids) for row in encoded]
    return packing.plan(lengths, train.batch_size, pack_tokens, train.epochs, train.max_steps, train.seed)


def checkpoint_folder(params: Params) -> Path:
    """.checkpoints/<hash> of all that decides the result: parameters, rows and the base model.

    Under DVC_ROOT, the repository that a person works in, also when DVC runs this stage in a temporary copy of it.
    """
    digest = hashlib.sha256()
    for section in (params.quantization, params.lora, params.train):
        digest.update(section.model_dump_json().encode())
    for path in (PREPARED / "train.jsonl", PREPARED / "validation.jsonl", Path("models/base") / base_model.RECORD):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints" / digest.hexdigest()[:16]


def usable_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end and is still what was written; others after it are removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        last = Path(last)
        if (last / COMPLETE).exists():
            written, found = json.loads((last / COMPLETE).read_text()), digests(last)
            damaged = [name for name in written if found.get(name) != written[name]]
            if not damaged:
                return last
            print(f"{last.name} is damaged ({', '.join(damaged)}): going on from the one before it", flush=True)
        shutil.rmtree(last)
    return None


def digests(checkpoint: Path) -> dict[str, str]:
    """File name -> digest of its content."""
    found = {}
    for path in sorted(path for path in checkpoint.iterdir() if path.name != COMPLETE):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return found


class Guard(TrainerCallback):
    """Shows the progress; stops a run that has gone wrong before it can spoil a checkpoint, and one that was asked to
    end after saving."""

    def __init__(self):
        self.terminated = False
        self.shown: dict[str, str] = {}
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_) -> None:
        self.terminated = True
        print("\nSIGTERM: writing a checkpoint after this step", flush=True)

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()

    def on_log(self, args, state, control, logs, **_) -> None:
        """Log comes before save, so a step that is not finite never reaches a checkpoint."""
        self.shown |= {name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs}
        self.bar.set_postfix(self.shown)
        for name in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise Refusal(
                    f"{name} is {logs[name]} at step {state.global_step}; the last good checkpoint is kept. Lower "
                    "train.learning_rate or train.max_grad_norm, or set quantization.compute_dtype to bfloat16"
                )

    def on_step_end(self, args, state, control, **_) -> None:
        self.bar.update()
        if self.terminated:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **_) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(checkpoint / COMPLETE, digests(checkpoint))


class Trainer(SFTTrainer):
    """trl's trainer, with the guard in place, no model card in its checkpoints, and on a GPU a rehearsal.

    Args:
        adapter_dtype: precision of the adapter.
        longest_pack: index of the longest example of the training set.
    """

    def __init__(self, adapter_dtype: torch.dtype, longest_pack: int, **kwargs):
        self.guard = Guard()
        self.adapter_dtype = adapter_dtype
        self.longest_pack = longest_pack
        self.rehearsed = False
        super().__init__(callbacks=[self.guard], **kwargs)
        self.remove_callback(PrinterCallback)

    @property
    def interrupted(self) -> bool:
        return self.guard.terminated and self.state.global_step < self.state.max_steps

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.rehearsed and self.args.device.type == "cuda":
            self.rehearse(model)
        self.rehearsed = True
        return super().training_step(model, inputs, num_items_in_batch)

    def rehearse(self, model) -> None:
        """Go through the longest pack once, without a step of the optimizer and before the first: if the memory does
        not suffice, it shows now and not hours later."""
        longest = self.data_collator([self.train_dataset[self.longest_pack]])
        with torch.random.fork_rng([self.args.device]):
            moments = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            super().training_step(model, longest)
        del moments
        model.zero_grad()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean negative log-likelihood (nats) of the supervised tokens, over `num_items_in_batch` of them if given.

        trl's, without what it measures on the way: its entropy and accuracy wait for the GPU in every micro-batch, and
        without a GPU it scores every position.
        """
        labels = inputs["labels"]
        supervised = (labels[:, 1:] != chat.IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        if self.args.device.type == "cuda":
            loss = -model(**inputs, fused_lm_head=True).log_probs.sum()
        else:
            labels = inputs.pop("labels")[0, 1:]
            where = torch.nonzero(labels != chat.IGNORED).flatten()
            logits = model(**inputs, use_cache=False, logits_to_keep=where).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[where], reduction="sum")
        return loss / torch.as_tensor(supervised).clamp(min=1)

    def cast_adapter(self) -> None:
        """Let the adapter have the precision that was asked for: trl makes it bfloat16, PEFT float32."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.adapter_dtype)

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self.cast_adapter()

    def create_model_card(self, *args, **kwargs) -> None:
        pass


def make_trainer(params: Params, base: Path, tokenizer, rows, steps, plan: MemoryPlan, checkpoints: Path) -> Trainer:
    """Put model, adapter, data and settings together."""
    lora, train = params.lora, params.train
    on_gpu = torch.cuda.is_available()
    disable_progress_bars()
    schedule = "constant_with_warmup" if train.lr_scheduler == "constant" else train.lr_scheduler
    lengths = [len(row.input_ids) for row in rows["validation"]]
    packs = [pack for step in steps for pack in step]
    pack_tokens = [sum(len(rows["train"][row].input_ids) for row in pack) for pack in packs]
    datasets = {
        "train": packing.pack_dataset(packs, rows["train"], tokenizer.pad_token_id),
        "validation": packing.pack_dataset(
            packing.pack_evaluation(lengths, max(plan.pack_tokens, *lengths)),
            rows["validation"],
            tokenizer.pad_token_id,
        ),
    }
    config = SFTConfig(
        output_dir=str(checkpoints),
        seed=train.seed,
        # One example is one pack: the plan has settled order, step size and number of packs already.
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=len(steps[0]),
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        padding_free=True,
        pad_to_multiple_of=fast_path.PACK_MULTIPLE if plan.compiled else None,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=train.warmup_fraction,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim={"adamw": "adamw_torch_fused" if on_gpu else "adamw_torch"}.get(train.optimizer, train.optimizer),
        bf16=params.quantization.compute_dtype == "bfloat16",
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu and not plan.compiled,  # compiled layers recompute inside
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,  # the guard shows one bar, not a line a step
    )
    _ = config.device  # settles the number of GPUs, by which the trainer would multiply the packs of a batch
    config._n_gpu = min(config._n_gpu, 1)
    if plan.compiled:
        attention = fast_path.attention_implementation(config.device)
    else:
        attention = "sdpa" if on_gpu else packed_attention.NAME
    model = models.load_base(base, params.quantization, attention)
    room = device.available_memory() - plan.peak
    if not on_gpu and train.memory != "low" and base_model.weights_bytes(base) < room:
        models.dequantize(model)  # once, not in each pass of each step: the same numbers, a twelfth sooner
    trainer = Trainer(
        getattr(torch, lora.dtype),
        pack_tokens.index(max(pack_tokens)),
        model=model,
        args=config,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_rslora=lora.use_rslora,
            task_type="CAUSAL_LM",
        ),
    )
    trainer.cast_adapter()
    if plan.compiled:
        fast_path.speed_up(trainer.model, plan.recomputed_layers)
    return trainer


def train(trainer: Trainer, rows, steps, checkpoints: Path) -> dict:
    """Train to the end, from the last checkpoint if there is one, and return what is to be said of the run."""
    started = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    resumed = usable_checkpoint(checkpoints)
    print(
        f"training: {len(steps)} steps of {max(sum(map(len, step)) for step in steps)} rows"
        + (f", from {resumed.name}" if resumed else ""),
        flush=True,
    )
    begin = time.monotonic()
    checkpoints.mkdir(parents=True, exist_ok=True)
    with room_in(checkpoints):
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    seconds = time.monotonic() - begin
    if trainer.interrupted:
        raise Refusal(f"interrupted after step {trainer.state.global_step}; `dvc repro` goes on from there")
    check_trained(trainer.model, started)
    return run_metrics(trainer, rows, steps, seconds, resumed)


def check_trained(model, started: dict[str, torch.Tensor]) -> None:
    """Raise Refusal unless every LoRA matrix B has moved away from where it started (all zeros)."""
    still = [
        name for name, p in model.named_parameters() if "lora_B" in name and torch.equal(p.detach(), started[name])
    ]
    if not started or len(still) == sum("lora_B" in name for name in started):
        raise Refusal("the adapter did not change in training; raise train.learning_rate or check lora.target_modules")


def run_metrics(trainer: Trainer, rows, steps, seconds: float, resumed: Path | None) -> dict:
    """What the summary and results/train/metrics.json say of the run."""
    history = trainer.state.log_history
    seen = [row for step in steps for pack in step for row in pack]
    tokens = sum(len(rows["train"][row].input_ids) for row in seen)
    first_step = int(resumed.name.split("-")[1]) if resumed else 0
    done = sum(len(rows["train"][row].input_ids) for step in steps[first_step:] for pack in step for row in pack)
    validating = sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > first_step)
    trainable, total = trainer.model.get_nb_trainable_parameters()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return {
        "trainable_parameters": trainable,
        "parameters": total,
        "steps": len(steps),
        "rows": len(seen),
        "tokens": tokens,
        "tokens_per_second": round(done / (seconds - validating), 1),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(peak / 1e9, 2),
        "train_loss": round(sum(losses[-10:]) / len(losses[-10:]), 4),
        "validation_loss": round(validation[-1], 4) if validation else None,
    }


def write_log(path: Path, history: list[dict]) -> None:
    """The loss curve, one line a step."""
    columns = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    lines: dict[int, dict] = {}
    for entry in history:
        lines.setdefault(entry["step"], {}).update({name: entry[name] for name in columns if name in entry})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines[step] for step in sorted(lines))


def environment(params: Params) -> dict:
    """What differs between machines: versions, device, threads. No host name, no path, no variable of the shell."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
        "seeds": {"data": params.data.seed, "train": params.train.seed},
    }


def name_base(path: Path, params: Params) -> None:
    """Let adapter_config.json name the base model as params.yaml does, not by its folder on this machine."""
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": params.model.id, "revision": params.model.revision}
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set: its order changes from run to run
    write_json(path, config)


if __name__ == "__main__":
    run_stage(main)
