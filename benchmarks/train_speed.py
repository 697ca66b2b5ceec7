"""How fast this project trains on this GPU, compared with the recipe of the articles it grew from, on the same rows.

    python -m benchmarks.train_speed --shape llama3-8b --rows short --capacity-gb 24

Makes a model of the given shape with random weights in NF4 on the GPU (no download, no folder), trains a few steps with
each recipe and prints a table: tokens per second (padding not counted), seconds a step, peak memory (measured and
planned) and the losses. `--profile` shows where the time of a step goes. Exits with status 1 if the losses of two
recipes differ.

Unsloth needs other releases of the same libraries, so it runs in an environment of its own:

    python -m venv unsloth-env && unsloth-env/bin/pip install unsloth
    python -m benchmarks.train_speed --rows short --capacity-gb 24 --unsloth unsloth-env/bin/python
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.parts.clock import PROFILED, WARM_UP
from benchmarks.parts.shapes import REHEARSAL, SHAPES
from benchmarks.parts.training import ARTICLE_ROWS, Job, measure, random_rows
from qlora.recipe.schema import Train
from qlora.runtime.machine import available_memory
from qlora.training import packing
from qlora.training.gpu import prepare_gpu

import torch

TOLERANCE = 0.02  # between two recipes' losses at the same step: bf16 sums in another order


def unsloth(python: str, job: Job, pack_tokens: int) -> dict:
    """Train with Unsloth's recipe and return the run's figures.

    Args:
        python: Of Unsloth's environment.
        job: What it is measured on.
        pack_tokens: Tokens of a pack, at most.
    """
    steps = packing.plan([len(row.input_ids) for row in job.rows], job.train, pack_tokens)
    rows = [[row.input_ids, row.labels] for row in job.rows]
    task = {"shape": job.shape, "capacity": job.capacity, "rows": rows, "steps": steps.steps}
    command = [python, "-m", "benchmarks.unsloth_recipe"]
    run = subprocess.run(command, input=json.dumps(task), stdout=subprocess.PIPE, text=True)
    *said, last = run.stdout.splitlines() or [""]
    print(*said, sep="\n", flush=True)
    if run.returncode:
        sys.exit(f"{last}\nerror: Unsloth's recipe ended with status {run.returncode}; its output is above")
    return json.loads(last)


def check_unsloth(python: str) -> None:
    """Exit if Unsloth is not installed for the interpreter `python`."""
    look = "import importlib.util as util, sys; sys.exit(not util.find_spec('unsloth'))"
    try:
        found = subprocess.run([python, "-c", look]).returncode == 0
    except OSError as error:
        sys.exit(f"error: --unsloth {python}: {error.strerror}; give the Python of an environment with Unsloth")
    if not found:
        sys.exit(f"error: --unsloth {python} has no Unsloth: {python} -m pip install unsloth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", choices=("short", "full"), default="short", help="145 tokens on average, or 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step, a multiple of 4 (the articles: 16)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--capacity-gb", type=float, help="GPU memory to use at most, as on a smaller card")
    parser.add_argument("--memory", choices=("auto", "low", "high"), default="auto")
    parser.add_argument("--recipes", nargs="*", choices=("article", "project"), default=("article", "project"))
    parser.add_argument("--unsloth", metavar="PYTHON", help="measure Unsloth, too, with the Python of its environment")
    parser.add_argument("--unsloth-pack", type=int, default=4096, help="tokens in one of its packs")
    parser.add_argument("--plain", action="store_true", help="this project's recipe without compiled layers")
    parser.add_argument("--without-graphs", action="store_true", help="compiled layers launched by Python")
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA, in this project's recipe")
    parser.add_argument("--profile", action="store_true", help="show where the time of a step goes")
    parser.add_argument("--rehearse", action="store_true", help="a model of a few million parameters instead")
    parser.add_argument(
        "--overestimate", type=float, default=1.0, help="plan for so many times the memory, to provoke a lighter layout"
    )
    parser.add_argument("--json", help="write the results to this file, too")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    if "article" in arguments.recipes and arguments.batch_size % ARTICLE_ROWS:
        sys.exit(
            f"error: --batch-size {arguments.batch_size}: the articles' micro-batches have {ARTICLE_ROWS} rows: "
            "give a multiple, or leave that recipe out with --recipes project"
        )
    on_gpu = torch.cuda.is_available()
    if not on_gpu and (not arguments.rehearse or arguments.recipes != ["project"]):
        sys.exit("error: this benchmark measures a GPU and there is none; try it with --rehearse --recipes project")
    if not arguments.recipes and not arguments.unsloth:
        sys.exit("error: nothing to measure: --recipes names none, and --unsloth is not given")
    if arguments.profile and arguments.steps < PROFILED.stop:
        sys.exit(f"error: --profile needs at least {PROFILED.stop} --steps")

    prepare_gpu()
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory()
    capacity = min(free, int((arguments.capacity_gb or 1000) * 1e9))
    vocabulary = REHEARSAL["vocab_size"] if arguments.rehearse else SHAPES[arguments.shape][0].vocab_size
    rows = random_rows(arguments.rows, arguments.batch_size * arguments.steps, vocabulary)
    name = torch.cuda.get_device_name() if on_gpu else "the CPU"
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
        compile=on_gpu and not arguments.plain,
    )
    believed = int(capacity * arguments.overestimate)
    job = Job(arguments.shape, rows, train, capacity, believed, arguments.profile)
    job = replace(job, graphs=not arguments.without_graphs, dropout=arguments.dropout, rehearse=arguments.rehearse)
    print(
        f"{arguments.shape} on {name}, {capacity / 1e9:.1f} GB: {arguments.batch_size} {arguments.rows} rows a step",
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
            print(f"\n{recipe}: {whole:.0f} ms of a step; its products at full speed: {result.get('floor_ms', '-')} ms")
            for kind, spent in result["profile_ms"].items():
                print(f"  {kind:<30} {spent:>8.1f} ms {spent / whole:>6.1%}")
    if arguments.json:
        document = vars(arguments) | {"gpu": name, "results": results}
        Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    if len(results) > 1:
        losses_of_steps = zip(*(result["losses"] for result in results.values()), strict=True)
        apart = max(max(losses) - min(losses) for losses in losses_of_steps)
        print(f"\nlargest difference of the losses at a step: {apart:.4f} (at most {TOLERANCE} expected)")
        if apart > TOLERANCE:
            sys.exit("error: the recipes do not learn the same")


if __name__ == "__main__":
    main()
