"""One recipe trained for a few steps on a GPU: random rows, the recipes' trainers, and the figures of a run."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.parts.clock import PROFILED, Clock, figures
from benchmarks.parts.nf4_model import random_model
from benchmarks.parts.settings import blank_tokenizer, settings
from benchmarks.parts.shapes import SHAPES, narrow
from qlora.kernels import compiled_layers, nf4_experts
from qlora.recipe.schema import Train
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.training import captured, device, layout, memory, packing
from qlora.training.gpu import attention, be_repeatable
from qlora.training.memory import MemoryPlan, Shape
from qlora.training.packing import Steps
from qlora.training.trainer import Trainer
from qlora.weights import experts
from qlora.weights.architecture import kept_plain

import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

ARTICLE_ROWS = 4  # rows of a micro-batch in the articles


@dataclass(frozen=True)
class Job:
    """What a recipe is measured on.

    Attributes:
        shape: A key of SHAPES.
        rows: Training rows.
        train: Batch size, memory and compile; the defaults for the rest.
        capacity: Bytes of GPU memory that the run may take.
        believed: Bytes that it is laid out for.
        profile: Whether one step is profiled.
        repeatable: Whether the GPU computes the same numbers in every run, as in the pipeline.
        dropout: Of LoRA, in this project's recipe.
        graphs: Whether micro-batches run as CUDA graphs where they can.
        rehearse: Whether a model of a few million parameters stands in for the shape, on the CPU if there is no GPU.
    """

    shape: str
    rows: list[Encoded]
    train: Train
    capacity: int
    believed: int
    profile: bool
    repeatable: bool = True
    dropout: float = 0.0
    graphs: bool = True
    rehearse: bool = False


def random_rows(kind: str, count: int, vocabulary: int) -> list[Encoded]:
    """Rows of random tokens; the last quarter of each is supervised.

    Args:
        kind: "full" for 1,024 tokens a row, "short" for text-to-SQL's lengths (log-normal, 145 tokens on average).
        count: Number of rows.
        vocabulary: Ids are drawn below it.
    """
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = 1024 if kind == "full" else max(40, min(1024, int(draw.lognormvariate(4.9, 0.45))))
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        masked = length * 3 // 4
        rows.append(Encoded(ids, [IGNORED] * masked + ids[masked:]))
    return rows


def shape_of(name: str) -> Shape:
    """The memory plan's sizes of one of SHAPES."""
    config, adapter = SHAPES[name]
    with torch.device("meta"):
        return memory.shape_of(AutoModelForCausalLM.from_config(config), **adapter)


def lora(
    dropout: float,
    r: int,
    target_modules: str | Sequence[str],
    exclude: Sequence[str] = (),
    adapted_experts: Sequence[str] = (),
) -> LoraConfig:
    return LoraConfig(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=dropout,
        target_modules=target_modules,
        exclude_modules=list(exclude) or None,
        target_parameters=list(adapted_experts) or None,
        task_type="CAUSAL_LM",
    )


def measure(recipe: str, job: Job) -> dict:
    """Train with the recipe "article" or "project" and return the run's figures.

    Call it in a fresh process: memory that an earlier recipe leaves behind would count as this one's.
    """
    if job.rehearse:
        config, adapter = SHAPES[job.shape]
        SHAPES[job.shape] = narrow(config), adapter
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(job.capacity / torch.cuda.mem_get_info()[1])
    lengths = [len(row.input_ids) for row in job.rows]
    if recipe == "article":
        clock, steps = Clock(job.profile), packing.plan(lengths, job.train)
        return _trained(article_trainer(job.shape, job.rows, steps, clock), clock, steps)
    shape = shape_of(job.shape)
    here = replace(device.gpu() if torch.cuda.is_available() else device.cpu(), free=job.believed)

    def run(plan: MemoryPlan) -> dict:
        plan = plan if job.graphs else replace(plan, captured=False)
        clock = Clock(job.profile)
        steps = packing.plan(lengths, job.train, plan.pack_tokens, alone=bool(shape.alone))
        for label, text in layout.describe(shape, plan, steps.tokens, here).items():
            print(f"{label}: {text}", flush=True)
        if job.repeatable and here.is_gpu:
            be_repeatable(plan)
        result = _trained(project_trainer(job.shape, job.rows, steps, plan, clock, job.dropout), clock, steps)
        passes = 2 + plan.recomputed_layers / shape.layers
        profiled = [steps.tokens[step] for step in PROFILED if step < len(steps)] or steps.tokens
        floor = sum(profiled) / len(profiled) * 2 * (shape.met or shape.quantized) * passes / here.rate
        planned = {"plan": asdict(plan), "planned_gb": round(plan.peak / 1e9, 2), "floor_ms": round(1000 * floor, 1)}
        return result | planned

    return layout.run_fitted(run, shape, lengths, job.train, here)


def _trained(trainer: SFTTrainer, clock: Clock, steps: Steps) -> dict:
    trainer.train()
    result = figures(trainer, clock, steps.tokens) | {"adapter": digest(trainer.model)}
    if clock.profiler:
        result["profile_ms"] = clock.profile()
    return result


def article_trainer(shape: str, rows: list[Encoded], steps: Steps, clock: Clock) -> SFTTrainer:
    """The articles' recipe: padded micro-batches, dropout 0.05, activation checkpointing, paged 8-bit AdamW."""
    config, adapter = SHAPES[shape]
    model = prepare_model_for_kbit_training(random_model(config, "sdpa", torch.device("cuda")))
    order = [rows[row] for pack in steps.packs for row in pack]
    torch.manual_seed(0)  # of the adapter
    return SFTTrainer(
        model,
        settings(
            ARTICLE_ROWS,
            len(order) // len(steps) // ARTICLE_ROWS,
            len(steps),
            optim="paged_adamw_8bit",
            gradient_checkpointing=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in order]),
        processing_class=blank_tokenizer(),
        peft_config=lora(0.05, **adapter),
        callbacks=[clock],
    )


def project_trainer(
    shape: str, rows: list[Encoded], steps: Steps, plan: MemoryPlan, clock: Clock, dropout: float = 0.0
) -> Trainer:
    """This project's recipe: packs, flex_attention, compiled layers, fused AdamW."""
    config, adapter = SHAPES[shape]
    tokenizer = blank_tokenizer()
    on_gpu = torch.cuda.is_available()
    model = random_model(config, attention(plan), torch.device("cuda" if on_gpu else "cpu"))
    adapted = list(experts.parameters_of(model)) if adapter.get("adapt_experts") else []
    adapter = {name: value for name, value in adapter.items() if name != "adapt_experts"}
    torch.manual_seed(0)  # of the adapter
    with experts.shown_to_peft(model):
        trainer = Trainer(
            torch.bfloat16,
            steps.longest_pack,
            sizes=captured.sizes_of(steps, rows) if plan.captured else None,
            model=model,
            args=settings(
                1,
                steps.packs_a_step,
                len(steps),
                use_cpu=not on_gpu,
                optim="adamw_torch_fused" if on_gpu else "adamw_torch",
                gradient_checkpointing=not plan.compiled,
                accelerator_config={"non_blocking": on_gpu},
                padding_free=True,
                pad_to_multiple_of=compiled_layers.PACK_MULTIPLE if plan.compiled else None,
            ),
            train_dataset=packing.pack_dataset(steps.packs, rows, tokenizer.pad_token_id),
            processing_class=tokenizer,
            peft_config=lora(dropout, exclude=kept_plain(model), **adapter, adapted_experts=adapted),
        )
    nf4_experts.use_fast_experts(trainer.model)
    trainer.add_callback(clock)
    if plan.compiled:
        compiled_layers.speed_up(trainer.model, plan.recomputed_layers)
    return trainer


def digest(model: torch.nn.Module) -> str:
    """A hash of the adapter's bytes."""
    seen = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            seen.update(parameter.detach().cpu().view(torch.uint8).numpy())
    return seen.hexdigest()[:16]
