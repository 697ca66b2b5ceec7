"""How fast this project trains on this GPU, next to the recipe of the articles it grew from, on the same rows.

    python -m benchmarks.train_speed --shape llama3-8b --rows short --capacity-gb 24

Builds a model of the given shape with random weights, in NF4 on the GPU (nothing is downloaded, nothing is written to
disk), trains a few steps with each recipe and prints a table: tokens per second (of real tokens, not of padding),
seconds a step, peak memory (measured, and as it was planned) and the loss of each step. `--profile` says where the
time of one step goes. Exits with status 1 if the losses of two recipes disagree.

Unsloth joins the table from an environment of its own, since it wants other releases of the same libraries:

    python -m venv unsloth-env && unsloth-env/bin/pip install unsloth ruamel.yaml
    python -m benchmarks.train_speed --rows short --capacity-gb 24 --unsloth unsloth-env/bin/python
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from benchmarks.recipe import PROFILED, WARM_UP, Clock, blank_tokenizer, figures, random_model, settings
from benchmarks.shapes import SHAPES
from qlora.kernels import compiled_layers as fast_path
from qlora.recipe.params import Train
from qlora.rows.chat import IGNORED, Encoded
from qlora.training import device, layout, memory_plan, packing
from qlora.training.memory_plan import MemoryPlan, Shape
from stages.quantize_load_train import Trainer, attention, be_repeatable, prepare_gpu

ARTICLE_ROWS = 4  # rows of a micro-batch of the articles
TOLERANCE = 0.02  # between the losses of two recipes at the same step: bf16 in another order of summation


def random_rows(kind: str, count: int, vocabulary: int) -> list[Encoded]:
    """Rows of random tokens whose last quarter is to be learned: `full` has 1,024 tokens each, `short` what
    text-to-SQL has (log-normal, 145 tokens on average)."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = 1024 if kind == "full" else max(40, min(1024, int(draw.lognormvariate(4.9, 0.45))))
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        masked = length * 3 // 4
        rows.append(Encoded(ids, [IGNORED] * masked + ids[masked:]))
    return rows


def lora(dropout: float, **shape) -> LoraConfig:
    return LoraConfig(lora_alpha=2 * shape["r"], lora_dropout=dropout, task_type="CAUSAL_LM", **shape)


def article_trainer(shape: str, rows: list[Encoded], steps: list[list[list[int]]], clock: Clock) -> SFTTrainer:
    """The articles' recipe: k-bit preparation, dropout 0.05, checkpointing, 8-bit paged AdamW, padded rows, 4 by 4."""
    config, adapter = SHAPES[shape]
    model = prepare_model_for_kbit_training(random_model(config, "sdpa", torch.device("cuda")))
    order = [row for step in steps for pack in step for row in pack]
    dataset = Dataset.from_list([{"input_ids": rows[row].input_ids, "labels": rows[row].labels} for row in order])
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
        train_dataset=dataset,
        processing_class=blank_tokenizer(),
        peft_config=lora(0.05, **adapter),
        callbacks=[clock],
    )


def project_trainer(shape: str, rows: list[Encoded], steps: list, plan: MemoryPlan, clock: Clock) -> Trainer:
    """This project's recipe: packs, flex_attention, compiled layers, fused AdamW."""
    config, adapter = SHAPES[shape]
    gpu = torch.device("cuda")
    tokenizer = blank_tokenizer()
    packs = [pack for step in steps for pack in step]
    pack_tokens = [sum(len(rows[row].input_ids) for row in pack) for pack in packs]
    model = random_model(config, attention(plan), gpu)
    torch.manual_seed(0)
    trainer = Trainer(
        torch.bfloat16,
        pack_tokens.index(max(pack_tokens)),
        model=model,
        args=settings(
            1,
            len(steps[0]),
            len(steps),
            optim="adamw_torch_fused",
            gradient_checkpointing=not plan.compiled,
            padding_free=True,
            pad_to_multiple_of=fast_path.PACK_MULTIPLE if plan.compiled else None,
        ),
        train_dataset=packing.pack_dataset(packs, rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=lora(0.0, **adapter),
    )
    trainer.add_callback(clock)
    if plan.compiled:
        fast_path.speed_up(trainer.model, plan.recomputed_layers)
    return trainer


def digest(model: torch.nn.Module) -> str:
    """Of the adapter's bytes."""
    seen = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            seen.update(parameter.detach().cpu().view(torch.uint8).numpy())
    return seen.hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """What a recipe is measured on."""

    shape: str
    rows: list[Encoded]
    train: Train
    capacity: int  # bytes of GPU memory that it may take
    believed: int  # bytes that it is laid out for
    profile: bool
    repeatable: bool = True  # as the pipeline trains


def shape_of(name: str) -> Shape:
    config, adapter = SHAPES[name]
    with torch.device("meta"):
        return memory_plan.shape_of(AutoModelForCausalLM.from_config(config), **adapter)


def measure(recipe: str, job: Job) -> dict:
    """Train with a recipe; the first WARM_UP steps are not timed.

    Meant to run in a process of its own: what one recipe leaves behind would count as the memory of the next.
    """
    torch.cuda.set_per_process_memory_fraction(job.capacity / torch.cuda.mem_get_info()[1])
    lengths = [len(row.input_ids) for row in job.rows]
    shape = shape_of(job.shape)
    here = replace(device.gpu(), free=job.believed)

    def run(plan: MemoryPlan | None) -> dict:
        clock = Clock(job.profile)
        pack_tokens = sum(lengths) if plan is None else plan.pack_tokens
        steps = packing.plan(lengths, job.train.batch_size, pack_tokens, 1, None, 0)
        if plan is None:
            trainer = article_trainer(job.shape, job.rows, steps, clock)
        else:
            for label, text in layout.describe(shape, plan, layout.step_tokens(lengths, job.train), here).items():
                print(f"{label}: {text}", flush=True)
            if job.repeatable:
                be_repeatable(plan)
            trainer = project_trainer(job.shape, job.rows, steps, plan, clock)
        trainer.train()
        tokens = [sum(lengths[row] for pack in step for row in pack) for step in steps]
        result = figures(trainer, clock, tokens) | {"adapter": digest(trainer.model)}
        if plan is not None:
            passes = 2 + plan.recomputed_layers / shape.layers
            floor = tokens[PROFILED % len(tokens)] * 2 * shape.quantized * passes / here.rate
            result |= {
                "plan": asdict(plan),
                "planned_gb": round(plan.peak / 1e9, 2),
                "floor_ms": round(1000 * floor, 1),
            }
        if job.profile:
            result["profile_ms"] = clock.profile()
        return result

    if recipe == "article":
        return run(None)
    return layout.run_fitted(run, shape, lengths, job.train, here)


def unsloth(python: str, job: Job, pack_tokens: int) -> dict:
    """Train with Unsloth's recipe, in packs of at most so many tokens, under the interpreter of its environment."""
    steps = packing.plan([len(row.input_ids) for row in job.rows], job.train.batch_size, pack_tokens, 1, None, 0)
    rows = [[row.input_ids, row.labels] for row in job.rows]
    task = {"shape": job.shape, "capacity": job.capacity, "rows": rows, "steps": steps}
    command = [python, "-m", "benchmarks.unsloth_recipe"]
    run = subprocess.run(command, input=json.dumps(task), stdout=subprocess.PIPE, text=True)
    *said, last = run.stdout.splitlines() or [""]
    print(*said, sep="\n", flush=True)
    if run.returncode:
        sys.exit(f"{last}\nerror: Unsloth's recipe ended with status {run.returncode}; it says why above")
    return json.loads(last)


def check_unsloth(python: str) -> None:
    """Stop before anything is measured if that interpreter cannot run the recipe."""
    look = "import importlib.util as util, sys; sys.exit(not (util.find_spec('unsloth') and util.find_spec('ruamel')))"
    try:
        found = subprocess.run([python, "-c", look]).returncode == 0
    except OSError as error:
        sys.exit(f"error: --unsloth {python}: {error.strerror}; give the Python of an environment with Unsloth")
    if not found:
        sys.exit(f"error: --unsloth {python} lacks packages: {python} -m pip install unsloth ruamel.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", choices=("short", "full"), default="short", help="145 tokens on average, or 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step, a multiple of 4 (the articles: 16)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--capacity-gb", type=float, help="use no more GPU memory than this, like a smaller card")
    parser.add_argument("--memory", choices=("auto", "low", "high"), default="auto")
    parser.add_argument("--recipes", nargs="*", choices=("article", "project"), default=("article", "project"))
    parser.add_argument("--unsloth", metavar="PYTHON", help="measure Unsloth, too: the Python of its environment")
    parser.add_argument("--unsloth-pack", type=int, default=4096, help="tokens in one of its packs")
    parser.add_argument("--plain", action="store_true", help="this project's recipe without compiled layers")
    parser.add_argument("--profile", action="store_true", help="where the time of one step goes")
    parser.add_argument(
        "--overestimate", type=float, default=1.0, help="lay out for this times the memory, to see a run step down"
    )
    parser.add_argument("--json", help="write the results there as well")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    if "article" in arguments.recipes and arguments.batch_size % ARTICLE_ROWS:
        sys.exit(
            f"error: --batch-size {arguments.batch_size}: the articles' recipe takes {ARTICLE_ROWS} rows at a time: "
            "take a multiple, or leave it out with --recipes project"
        )
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark measures a GPU and there is none")
    if not arguments.recipes and not arguments.unsloth:
        sys.exit("error: --recipes names none, and there is no --unsloth: nothing to measure")
    if arguments.profile and arguments.steps <= PROFILED:
        sys.exit(f"error: --profile looks at step {PROFILED + 1}: take more --steps")

    prepare_gpu()
    capacity = min(torch.cuda.mem_get_info()[0], int((arguments.capacity_gb or 1000) * 1e9))
    rows = random_rows(arguments.rows, arguments.batch_size * arguments.steps, SHAPES[arguments.shape][0].vocab_size)
    longest = max(len(row.input_ids) for row in rows)
    if arguments.unsloth:
        if longest > arguments.unsloth_pack:
            sys.exit(f"error: --unsloth-pack {arguments.unsloth_pack}: a row has {longest} tokens and is not split")
        check_unsloth(arguments.unsloth)
    train = Train(
        batch_size=arguments.batch_size,
        max_length=1024,
        learning_rate=2e-4,
        memory=arguments.memory,
        compile=not arguments.plain,
    )
    job = Job(arguments.shape, rows, train, capacity, int(capacity * arguments.overestimate), profile=arguments.profile)
    print(
        f"{arguments.shape} on {torch.cuda.get_device_name()}, {capacity / 1e9:.1f} GB: {arguments.batch_size} "
        f"{arguments.rows} rows a step",
        flush=True,
    )
    results = {}
    if arguments.unsloth:
        results["unsloth"] = unsloth(arguments.unsloth, job, arguments.unsloth_pack)
    for recipe in arguments.recipes:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results[recipe] = process.submit(measure, recipe, job).result()
    print(
        f"\n{'recipe':<8} {'tok/s':>7} {'s/step':>7} {'peak GB':>8} {'planned':>8} {'warm-up s':>10}  "
        "loss, first and last step"
    )
    for recipe, result in results.items():
        planned = f"{result['planned_gb']:.2f}" if "planned_gb" in result else ""
        print(
            f"{recipe:<8} {result['tokens_per_second']:>7,} {result['step_seconds']:>7.3f} {result['peak_gb']:>8.2f} "
            f"{planned:>8} {result['warm_up_seconds']:>10.1f}  {result['losses'][0]:.4f} {result['losses'][-1]:.4f}"
        )
    for recipe, result in results.items():
        if "profile_ms" in result:
            whole = sum(result["profile_ms"].values())
            print(
                f"\n{recipe}: {whole:.0f} ms of one step; its products at full speed: {result.get('floor_ms', '-')} ms"
            )
            for kind, spent in result["profile_ms"].items():
                print(f"  {kind:<30} {spent:>8.1f} ms {spent / whole:>6.1%}")
    if arguments.json:
        document = vars(arguments) | {"gpu": torch.cuda.get_device_name(), "results": results}
        Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    if len(results) > 1:
        at_a_step = zip(*(result["losses"] for result in results.values()), strict=True)
        apart = max(max(losses) - min(losses) for losses in at_a_step)
        print(f"\nlargest difference of the losses at a step: {apart:.4f} (at most {TOLERANCE} expected)")
        if apart > TOLERANCE:
            sys.exit("error: the recipes do not learn the same")


if __name__ == "__main__":
    main()
