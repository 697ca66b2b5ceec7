"""quantize-load-train: load the base model in NF4, train a LoRA adapter on it, write the adapter and the run's record.

Writes models/adapter (what PEFT saves, and the base model's record) and results/train (log.csv, metrics.json,
environment.json). Checkpoints live outside of these outputs, in .checkpoints/<hash of what decides the result>, because
DVC removes outputs before a stage runs: a killed run goes on from there and ends with the same adapter.

Where several GPUs are to be used this starts itself in several processes, which share the rows of each step (DDP), or
the model as well (FSDP). What a step learns from, and so the adapter, is the same; the first process writes.
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
import warnings
from array import array
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from datasets import disable_progress_bars
from peft import LoraConfig
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from qlora.kernels import compiled_layers as fast_path
from qlora.kernels import nf4_linear, packed_attention
from qlora.processes import several
from qlora.recipe.params import Params, Train, load_params
from qlora.rows import chat
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder, room_in, write_json
from qlora.source import base_model
from qlora.training import device, layout, packing
from qlora.training.device import Device
from qlora.training.memory_plan import MemoryPlan
from qlora.weights import compressed
from qlora.weights import loading as models

PREPARED = Path("data/prepared")
SPLITS = ("train", "validation")
COMPLETE = "complete"  # written into a checkpoint when all else is: the digests of its files
LAYOUT = {"devices", "parallel", "memory", "micro_batch_tokens", "compile"}  # of train: how, and not what it learns
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def main() -> None:
    params = load_params()
    machines = several.machines()
    if not several.is_started() and (processes := several.wanted(params.train)) * machines > 1:
        several.start("stages.quantize_load_train", processes, count=machines)
        return
    prepare_gpu()
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
    here = devices(params.train)
    checkpoints = checkpoint_folder(params)

    step_tokens = layout.step_tokens(lengths, params.train)

    def run(plan: MemoryPlan) -> tuple[Trainer, dict, MemoryPlan]:
        summary(f"plan for {here.name}", layout.describe(shape, plan, step_tokens, here))
        steps = plan_steps(rows["train"], plan.pack_tokens, params.train, here.count)
        set_seed(params.train.seed)
        if here.is_gpu:
            be_repeatable(plan)
        model = load_model(params, base, plan, here)
        trainer = make_trainer(params, model, tokenizer, rows, steps, plan, here, checkpoints)
        return trainer, train(trainer, rows, steps, checkpoints), plan

    trainer, metrics, plan = layout.run_fitted(run, shape, lengths, params.train, here)
    adapter = trainer.whole_adapter()
    if not several.is_first():
        return

    with new_folder(Path("results/train")) as output:
        write_log(output / "log.csv", trainer.state.log_history)
        write_json(output / "metrics.json", metrics)
        write_json(output / "environment.json", environment(params, here, plan))
    with new_folder(Path("models/adapter")) as output:
        trainer.model.save_pretrained(output, state_dict=adapter)
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
            row = chat.cut(chat.encode(tokenizer, json.loads(line)["messages"], stops), train.max_length)
            # Of all rows of a run at once: a list of Python's integers takes five times as much memory.
            encoded.append(chat.Encoded(array("i", row.input_ids), array("i", row.labels)))
    return encoded


def devices(train: Train) -> Device:
    """What this run is fitted to: the devices of all processes, each as good as the one that has least of it."""
    several.state()  # each process takes its own GPU
    here = device.gpu() if torch.cuda.is_available() else device.cpu()
    count = several.state().num_processes
    if count == 1:
        return here
    free = here.free if here.is_gpu else here.free // count
    free, rate = (min(values) for values in zip(*several.gathered((free, here.rate)), strict=True))
    free = int(min(free, several.memory_limit()))
    return Device(f"{count} x {here.name}", here.is_gpu, free, rate, count, train.parallel == "fsdp")


def plan_steps(encoded: list[chat.Encoded], pack_tokens: int, train: Train, processes: int) -> list[list[list[int]]]:
    """Steps of packs of row numbers."""
    lengths = [len(row.input_ids) for row in encoded]
    return packing.plan(lengths, train.batch_size, pack_tokens, train.epochs, train.max_steps, train.seed, processes)


def checkpoint_folder(params: Params) -> Path:
    """.checkpoints/<hash> of all that decides the result: parameters, rows and the base model.

    Devices and layout have no part in it: a run goes on with more of them, or with less memory. Under DVC_ROOT, the
    repository that a person works in, also when DVC runs this stage in a temporary copy of it.
    """
    digest = hashlib.sha256()
    for section in (params.quantization, params.lora, params.train):
        digest.update(section.model_dump_json(exclude=LAYOUT).encode())
    for path in (PREPARED / "train.jsonl", PREPARED / "validation.jsonl", Path("models/base") / base_model.RECORD):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints" / digest.hexdigest()[:16]


def usable_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end and is still what was written; others after it are removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        last = Path(last)
        if (last / COMPLETE).exists():
            found = digests(last)
            try:
                written = json.loads((last / COMPLETE).read_text())
            except ValueError:
                written = {COMPLETE: "what cannot be read"}
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


def random_states() -> list[torch.Tensor]:
    """Where torch's random numbers stand, of the CPU and of this process's GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def restore_random(states: list[torch.Tensor]) -> None:
    for set_state, state in zip((torch.set_rng_state, torch.cuda.set_rng_state), states, strict=False):
        set_state(state)


class LeftValidation(Exception):
    """Validation was left before its end, because the run was asked to end."""


class LeftStep(Exception):
    """A step was left between two of its packs, because the run was asked to end."""


class Guard(TrainerCallback):
    """Shows the progress; stops a run that has gone wrong before it can spoil a checkpoint, and one that was asked to
    end after saving. What this cuts short, a step or a validation, leaves no trace and is made when the run goes on."""

    def __init__(self):
        self.terminated = False
        self.validated = True
        self.shown: dict[str, str] = {}

    def terminate(self, *_) -> None:
        self.terminated = True
        print("\nSIGTERM: writing a checkpoint", flush=True)

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")
        at = state.global_step
        due = at > 0 and (at % args.eval_steps == 0 or at == state.max_steps)
        done = any("eval_loss" in entry for entry in state.log_history if entry["step"] == at)
        args.eval_on_start = due and not done

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

    def on_step_begin(self, args, state, control, **_) -> None:
        self.random_states = random_states()

    def on_step_end(self, args, state, control, **_) -> None:
        self.bar.update()
        self.terminated = several.in_any(self.terminated)  # the signal reaches no two processes in the same step
        if self.terminated:
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args, state, control, **_) -> None:
        self.terminated = several.in_any(self.terminated)
        self.validated = not self.terminated
        if self.terminated:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            raise LeftValidation

    def on_save(self, args, state, control, **_) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        several.state().wait_for_everyone()  # each process writes a file of its own
        if several.is_first():
            write_json(checkpoint / COMPLETE, digests(checkpoint))


class Trainer(SFTTrainer):
    """trl's trainer, with the guard in place, no model card in its checkpoints, and on a GPU a rehearsal.

    A checkpoint holds adapter and optimizer whole also where FSDP shards them, so it suits any number of processes.

    Args:
        adapter_dtype: precision of the adapter.
        longest_pack: index of the longest example of the training set.
        validation_tokens: supervised tokens of a validation pack, on average.
    """

    def __init__(self, adapter_dtype: torch.dtype, longest_pack: int, validation_tokens: float = 1.0, **kwargs):
        self.guard = Guard()
        self.adapter_dtype = adapter_dtype
        self.longest_pack = longest_pack
        self.validation_tokens = validation_tokens
        self.rehearsed = False
        super().__init__(callbacks=[self.guard], **kwargs)
        self.remove_callback(PrinterCallback)

    @property
    def interrupted(self) -> bool:
        to_do = self.state.global_step < self.state.max_steps or not self.guard.validated
        return self.guard.terminated and to_do

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.rehearsed and self.args.device.type == "cuda":
            self.rehearse(model)
        self.rehearsed = True
        if self.guard.terminated and self.accelerator.num_processes == 1:  # several have to agree: at the step's end
            raise LeftStep
        return super().training_step(model, inputs, num_items_in_batch)

    def rehearse(self, model) -> None:
        """Go through the longest pack once, without a step of the optimizer and before the first: if the memory does
        not suffice, it shows now and not hours later."""
        longest = self.data_collator([self.train_dataset[self.longest_pack]])
        apart = self.accelerator.num_processes > 1 and not self.is_fsdp_enabled
        # DDP's processes meet in nothing here, so that one that fails leaves none waiting.
        unsynchronized = self.accelerator.no_sync(model) if apart else nullcontext()
        if self.is_fsdp_enabled:  # else gradients would be kept where zero_grad does not reach
            model.set_requires_gradient_sync(True)
        try:
            with torch.random.fork_rng([self.args.device]), unsynchronized:
                resumed = bool(self.optimizer.state)  # then AdamW's moments are there already
                learning = [] if resumed else [p for p in model.parameters() if p.requires_grad]
                moments = [torch.empty_like(p) for p in learning for _ in range(2)]
                super().training_step(model, longest)
            del moments
            fits = True
        except torch.OutOfMemoryError:
            if self.accelerator.num_processes == 1:
                raise
            fits = False
        # FSDP's other processes cannot be asked: they wait for this one inside the model.
        if not fits if self.is_fsdp_enabled else several.in_any(not fits):
            raise layout.TooLarge
        model.zero_grad()
        if self.is_fsdp_enabled:
            model.set_requires_gradient_sync(self.accelerator.sync_gradients)

    def train(self, *args, **kwargs) -> None:
        before = signal.signal(signal.SIGTERM, self.guard.terminate)
        try:
            super().train(*args, **kwargs)
        except LeftStep:
            self.guard.bar.close()
            step = self.state.global_step
            if step > 0 and not (Path(self.args.output_dir) / f"checkpoint-{step}" / COMPLETE).exists():
                restore_random(self.guard.random_states)
                self._save_checkpoint(self.model, trial=None)
                self.guard.on_save(self.args, self.state, self.control)
        finally:
            signal.signal(signal.SIGTERM, before)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        try:
            return super().evaluate(*args, **kwargs)
        except LeftValidation:
            return {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean negative log-likelihood (nats) of the supervised tokens, over `num_items_in_batch` of them if given.

        In validation the mean over its packs is the mean over all tokens, however they are packed.

        trl's, without what it measures on the way: its entropy and accuracy wait for the GPU in every micro-batch, and
        without a GPU it scores every position.
        """
        labels = inputs["labels"]
        if not model.training:
            supervised = self.validation_tokens
        elif num_items_in_batch is None:
            supervised = (labels[:, 1:] != chat.IGNORED).sum()
        else:  # those of all processes, whose mean is taken next
            supervised = num_items_in_batch / self.accelerator.num_processes
        if self.args.device.type == "cuda":
            loss = -model(**inputs, fused_lm_head=True).log_probs.sum()
        else:
            labels = inputs.pop("labels")[0, 1:]
            where = torch.nonzero(labels != chat.IGNORED).flatten()
            logits = model(**inputs, use_cache=False, logits_to_keep=where).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[where], reduction="sum")
        return loss / torch.as_tensor(supervised).clamp(min=1)

    def floating_point_ops(self, inputs) -> int:
        return 0  # nothing reads the sum, and it would count all parameters again in each micro-batch

    def cast_adapter(self) -> None:
        """Let the adapter have the precision that was asked for: trl makes it bfloat16, PEFT float32."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.adapter_dtype)

    def whole_adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by name, where they are sharded put together; each process has to ask."""
        return {name: whole(p.detach()) for name, p in self.model.named_parameters() if p.requires_grad}

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if model is None:  # else FSDP has sharded what was loaded before
            super()._load_from_checkpoint(resume_from_checkpoint)
            self.cast_adapter()

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        model.zero_grad = self.optimizer.optimizer.zero_grad  # its own goes through all modules in each step
        return model, train_dataloader

    def _clip_grad_norm(self, model):
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        return self.accelerator.clip_grad_norm_(learned, self.args.max_grad_norm)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        adapter = self.whole_adapter()
        if self.args.should_save:
            self._save(output_dir, adapter)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        state = self.optimizer.state_dict()
        moments = {at: {name: whole(value) for name, value in of.items()} for at, of in state["state"].items()}
        if self.args.should_save:
            torch.save(state | {"state": moments}, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        if self.is_fsdp_enabled:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            for at, moments in state["state"].items():
                mesh, placements = parameters[at].device_mesh, parameters[at].placements
                for name, value in moments.items():
                    if value.shape == parameters[at].shape:
                        moments[name] = distribute_tensor(value.to(self.args.device), mesh, placements)
        self.optimizer.load_state_dict(state)
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)

    def create_model_card(self, *args, **kwargs) -> None:
        pass


def whole(value):
    """A tensor put together from its shards, on the CPU; anything else as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def attention(plan: MemoryPlan) -> str:
    """The attention to load the model with."""
    if plan.compiled:
        return fast_path.attention_implementation(several.state().device)
    return packed_attention.NAME


def prepare_gpu() -> None:
    """Set what has to be there before the first allocation on a GPU."""
    # Packs of changing lengths leave gaps in memory otherwise.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what be_repeatable asks for


def be_repeatable(plan: MemoryPlan) -> None:
    """Let a GPU compute the same numbers in every run of this plan.

    Left to itself torch.compile times several kernels for a sum and takes the fastest of the moment, and
    FlashAttention's backward pass adds up in the order in which its blocks happen to end
    (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    torch.use_deterministic_algorithms(not plan.compiled)
    if plan.compiled:
        torch._inductor.config.deterministic = True
    else:
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would write all memory twice


def load_model(params: Params, base: Path, plan: MemoryPlan, here: Device):
    """The model to train: in 4 bits, and on a CPU with room for it as what these stand for."""
    model = models.load_base(base, params.quantization, attention(plan), sharded=here.sharded)
    room = device.available_memory() // here.count - plan.peak
    if not here.is_gpu and params.train.memory != "low" and base_model.weights_bytes(base) < room:
        models.dequantize(model)  # once, not in each pass of each step: the same numbers, a twelfth sooner
    return model


def make_trainer(
    params: Params, model, tokenizer, rows, steps, plan: MemoryPlan, here: Device, checkpoints: Path
) -> Trainer:
    """Put model, adapter, data and settings together."""
    lora, train = params.lora, params.train
    on_gpu = torch.cuda.is_available()
    disable_progress_bars()
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # in accelerate's call, not here
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
    supervised = sum(label != chat.IGNORED for row in rows["validation"] for label in row.labels)
    config = SFTConfig(
        output_dir=str(checkpoints),
        seed=train.seed,
        # One example is one pack: the plan has settled order, step size and number of packs already.
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=len(steps[0]) // here.count,
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
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        fsdp=here.sharded or None,
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
    if here.sharded:
        # Adapter and activations have the precision that was asked for; gradients are added up in 32 bits.
        config.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        # Each process keeps these whole: trl reads the head's weight past FSDP, and tied it is the embeddings' as well.
        config.fsdp_plugin_args["ignored_modules"] = r".*\.(embed_tokens|lm_head)"
    _ = config.device  # settles the number of GPUs, by which the trainer would multiply the packs of a batch
    config._n_gpu = min(config._n_gpu, 1)
    trainer = Trainer(
        getattr(torch, lora.dtype),
        pack_tokens.index(max(pack_tokens)),
        supervised / len(datasets["validation"]),
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
    if here.sharded:
        shardable(trainer.model, config.device)
    if plan.compiled:
        fast_path.speed_up(trainer.model, plan.recomputed_layers, sharded=here.sharded)
    return trainer


def shardable(model, gpu: torch.device) -> None:
    """Prepare a 4-bit model for FSDP: its scales, which are no parameters, go to the GPU at once."""
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.quant_state.to(gpu)
    nf4_linear.use_fast_linears(model, sharded=True)


def train(trainer: Trainer, rows, steps, checkpoints: Path) -> dict:
    """Train to the end, from the last checkpoint if there is one, and return what is to be said of the run."""
    started = {name: p.to("cpu", copy=True) for name, p in trainer.whole_adapter().items()}
    size = trainer.model.get_nb_trainable_parameters()
    resumed = several.of_first(usable_checkpoint(checkpoints) if several.is_first() else None)
    if several.in_any(resumed is not None and not resumed.is_dir()):
        raise Refusal(f"{resumed} is not on each machine: several machines need one folder that all of them see")
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
        step = trainer.state.global_step
        if step == 0:
            raise Refusal("interrupted in the first step; `dvc repro` starts anew")
        raise Refusal(f"interrupted after step {step}; `dvc repro` goes on from there")
    check_trained(trainer.whole_adapter(), started)
    return run_metrics(trainer, size, rows, steps, seconds, resumed)


def check_trained(adapter: dict[str, torch.Tensor], started: dict[str, torch.Tensor]) -> None:
    """Raise Refusal unless every LoRA matrix B has moved away from where it started (all zeros)."""
    still = [name for name, p in adapter.items() if "lora_B" in name and torch.equal(p.cpu(), started[name])]
    if not started or len(still) == sum("lora_B" in name for name in started):
        raise Refusal("the adapter did not change in training; raise train.learning_rate or check lora.target_modules")


def run_metrics(trainer: Trainer, size: tuple[int, int], rows, steps, seconds: float, resumed: Path | None) -> dict:
    """What the summary and results/train/metrics.json say of the run."""
    history = trainer.state.log_history
    seen = [row for step in steps for pack in step for row in pack]
    tokens = sum(len(rows["train"][row].input_ids) for row in seen)
    first_step = int(resumed.name.split("-")[1]) if resumed else 0
    done = sum(len(rows["train"][row].input_ids) for step in steps[first_step:] for pack in step for row in pack)
    validated = [entry for entry in history if entry["step"] > first_step - trainer.args.eval_on_start]
    validating = sum(entry.get("eval_runtime", 0.0) for entry in validated)
    trainable, total = size
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
        "peak_memory_gb": round(max(several.gathered(peak)) / 1e9, 2),  # of a device
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


def environment(params: Params, here: Device, plan: MemoryPlan) -> dict:
    """What differs between machines: versions, device, threads, and the layout that fits them, on which rounding
    depends. No host name, no path, no variable of the shell."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "devices": here.count,
        "threads": torch.get_num_threads(),
        "layout": {name: getattr(plan, name) for name in ("pack_tokens", "compiled", "recomputed_layers")},
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
    several.work(main) if several.is_started() else run_stage(main)
