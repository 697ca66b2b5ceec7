"""quantize-load-train: load the base model in NF4, train a LoRA adapter on it, and write the adapter with its record.

The adapter is new, or an earlier one (lora.start_from). The base stays in 16 bits if quantization.type is none.

Writes models/adapter (what PEFT saves, the quantization and the base model's record) and results/train (log.csv,
metrics.json, environment.json). A killed run resumes from its last checkpoint and ends with the same adapter.

On several GPUs this stage starts itself in several processes, which share the rows of each step (DDP) or the model as
well (FSDP). What a step learns from, and so the adapter, is the same; rank 0 writes.
"""

import shutil
from pathlib import Path

from qlora.kernels import compiled_layers, nf4_experts, nf4_linear
from qlora.processes import group, launch
from qlora.recipe.artifacts import ARTIFACTS, MODELS
from qlora.recipe.load import load_params
from qlora.recipe.schema import Lora, Params
from qlora.reporting import trackers
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import read_encoded
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import check_writable, new_folder, write_json
from qlora.source import base_model
from qlora.training import captured, checkpoints, layout, packing, record
from qlora.training.device import Device, devices_of_run
from qlora.training.gpu import be_repeatable, prepare_gpu
from qlora.training.memory import MemoryPlan
from qlora.training.packing import Steps
from qlora.training.run import to_the_end
from qlora.training.start import earlier_adapter, load_model, start_from
from qlora.training.tracked import Tracked
from qlora.training.trainer import Trainer
from qlora.weights import compressed, experts, loading, quantized
from qlora.weights.architecture import kept_plain, skeleton
from qlora.weights.quantized import Quantized

import torch
from peft import LoraConfig
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, set_seed
from trl import SFTConfig

RESULTS = Path("results/train")


def main() -> None:
    # Settings
    params = load_params()
    train, machines = params.train, launch.machines()
    trackers.check(train.report_to)
    check_writable(RESULTS.parent, MODELS, checkpoints.FOLDER)
    if not launch.is_started() and (processes := launch.wanted(train)) * machines > 1:
        launch.start("stages.quantize_load_train", processes, count=machines)
        return
    prepare_gpu()
    base = base_model.locate(ARTIFACTS["base"].folder)

    # Checks
    model_shape = skeleton(base)
    loading.check_target_modules(model_shape, params.lora)
    if params.vllm.types:  # refused now, not after hours of training
        compressed.check(model_shape, params.vllm.types, params.vllm.group_size)
    shape = layout.shape_of(model_shape, params.lora, params.quantization)
    earlier = earlier_adapter(params.lora, lora_config(params.lora, model_shape), model_shape, base)

    # The recipe
    chat = base_model.load_chat(ARTIFACTS["base"].folder)
    rows = {split: read_encoded(split, chat, train.max_length) for split in ("train", "validation")}
    lengths = [len(row.input_ids) for row in rows["train"]]
    here = devices_of_run(train)
    saved = checkpoints.folder_of(params)

    def run(plan: MemoryPlan) -> tuple[Trainer, dict, MemoryPlan, Quantized]:
        steps = packing.plan(lengths, train, plan.pack_tokens, here.count, alone=bool(shape.alone))
        summary(f"plan for {here.name}", layout.describe(shape, plan, steps.tokens, here))
        set_seed(train.seed)
        if here.is_gpu:
            be_repeatable(plan)
        model, in_4_bits = load_model(params, base, plan, here)
        trainer = make_trainer(params, model, chat, rows, steps, plan, here, saved)
        start_from(trainer.model, earlier)
        trainer.add_callback(Tracked(train.report_to, trackers.run_of(params, saved.name)))
        return trainer, to_the_end(trainer, steps, saved), plan, in_4_bits

    trainer, figures, plan, in_4_bits = layout.run_fitted(run, shape, lengths, train, here)
    adapter = trainer.kept_adapter()
    if not group.is_first():
        return

    # Outputs
    with new_folder(RESULTS) as output:
        record.write_log(output / "log.csv", trainer.state.log_history)
        write_json(output / "metrics.json", {"run": saved.name} | figures)
        write_json(output / "environment.json", record.environment_of(params, here, plan))
    with new_folder(ARTIFACTS["adapter"].folder) as output:
        record.write_adapter(output, trainer.model, adapter, params, base)
        quantized.write(output, in_4_bits)
    shutil.rmtree(saved)
    summary("quantize-load-train", figures)


def lora_config(lora: Lora, model: PreTrainedModel) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        target_parameters=list(experts.parameters_of(model)) if lora.experts else None,
        exclude_modules=kept_plain(model) or None,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )


def sft_config(params: Params, steps: Steps, plan: MemoryPlan, here: Device, saved: Path) -> SFTConfig:
    """trl's settings. One example is one pack: `steps` has settled order, step size and number of packs already."""
    train = params.train
    config = SFTConfig(
        output_dir=str(saved),
        seed=train.seed,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=steps.packs_a_step // here.count,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        padding_free=True,
        pad_to_multiple_of=compiled_layers.PACK_MULTIPLE if plan.compiled else None,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant_with_warmup" if train.lr_scheduler == "constant" else train.lr_scheduler,
        warmup_steps=train.warmup_fraction if len(steps) > 1 else 0,  # a single step would have a rate of 0
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim={"adamw": "adamw_torch_fused" if here.is_gpu else "adamw_torch"}.get(train.optimizer, train.optimizer),
        bf16=params.quantization.compute_dtype == "bfloat16",
        use_cpu=not here.is_gpu,
        gradient_checkpointing=here.is_gpu and not plan.compiled,  # compiled layers checkpoint their activations
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        fsdp=here.sharded or None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        accelerator_config={"non_blocking": here.is_gpu},  # packs are copied to the GPU while it computes
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,  # the guard shows one bar, not a line a step
    )
    if here.sharded:
        # Adapter and activations keep the dtype that was asked for; gradients are summed in 32 bits.
        config.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        # Each process keeps these whole: trl reads the head's weight past FSDP; if tied it is the embeddings' as well.
        config.fsdp_plugin_args["ignored_modules"] = r".*\.(embed_tokens|lm_head)"
    _ = config.device  # counts the GPUs, by which transformers would multiply the packs of a batch
    config._n_gpu = min(config._n_gpu, 1)
    return config


def make_trainer(
    params: Params, model, chat: Chat, rows: dict[str, list[Encoded]], steps: Steps, plan: MemoryPlan, here, saved: Path
) -> Trainer:
    """The trainer of `model` with a new adapter, on the training and validation rows in packs."""
    chat.tokenizer.pad_token = chat.tokenizer.convert_ids_to_tokens(chat.pad)  # trl pads packs with it
    lengths = [len(row.input_ids) for row in rows["validation"]]
    validation_packs = packing.pack_evaluation(lengths, max(plan.validation_tokens, *lengths), steps.alone)
    with experts.shown_to_peft(model):
        trainer = Trainer(
            getattr(torch, params.lora.dtype),
            steps.longest_pack,
            sum(row.supervised for row in rows["validation"]) / len(validation_packs),
            params.train.keep == "best",
            params.train.patience,
            captured.sizes_of(steps, rows["train"]) if plan.captured else None,
            model=model,
            args=sft_config(params, steps, plan, here, saved),
            train_dataset=packing.pack_dataset(steps.packs, rows["train"], chat.pad),
            eval_dataset=packing.pack_dataset(validation_packs, rows["validation"], chat.pad),
            processing_class=chat.tokenizer,
            peft_config=lora_config(params.lora, model),
        )
    nf4_experts.use_fast_experts(trainer.model)
    trainer.cast_adapter()
    if here.sharded:
        nf4_linear.prepare_sharding(trainer.model, trainer.args.device)
    if plan.compiled:
        compiled_layers.speed_up(trainer.model, plan.recomputed_layers, sharded=here.sharded)
    return trainer


if __name__ == "__main__":
    launch.work(main) if launch.is_started() else run_stage(main, __doc__)
