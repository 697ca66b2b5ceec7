"""Whether a GPU makes the same adapter twice, and what that costs.

    python -m benchmarks.repeat --shape llama3-8b

Trains the same rows four times, each in a fresh process with nothing compiled: twice with the pipeline's settings, and
twice with PyTorch's defaults. The rows use 1,000 different tokens only, so that there is something to learn and
differences can grow. Prints seconds a step, a hash of each adapter, and how far the losses of two equal runs are apart.
Exits with status 1 if the pipeline's two adapters differ in a byte.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

from benchmarks.parts.clock import WARM_UP
from benchmarks.parts.shapes import SHAPES
from benchmarks.parts.training import Job, measure, random_rows
from qlora.recipe.schema import Train
from qlora.training.gpu import prepare_gpu

import torch

TOKENS = 1000  # of the vocabulary that rows use
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", choices=("short", "full"), default="short", help="145 tokens on average, or 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain", action="store_true", help="without compiled layers")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"error: the first {WARM_UP} steps are not timed: take more --steps")
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark measures a GPU and there is none")

    prepare_gpu()
    rows = random_rows(arguments.rows, arguments.batch_size * arguments.steps, TOKENS)
    train = Train(
        batch_size=arguments.batch_size, max_length=1024, learning_rate=2e-4, memory="auto", compile=not arguments.plain
    )
    free = torch.cuda.mem_get_info()[0]
    print(f"{'':<26} {'s/step':>7}  adapter", flush=True)
    runs = {}
    for kind, repeatable in (("as the pipeline trains", True), ("as PyTorch would", False)):
        job = Job(arguments.shape, rows, train, free, free, profile=False, repeatable=repeatable)
        runs[kind] = []
        for _ in range(2):
            runs[kind].append(alone(job))
            print(f"{kind:<26} {runs[kind][-1]['step_seconds']:>7.3f}  {runs[kind][-1]['adapter']}", flush=True)

    print(f"\n{'':<26} largest difference of the losses at a step")
    for kind, (first, second) in runs.items():
        apart = max(abs(a - b) for a, b in zip(first["losses"], second["losses"], strict=True))
        print(f"{kind:<26} {apart:.6f}")
    first, second = runs["as the pipeline trains"]
    if first["adapter"] != second["adapter"]:
        sys.exit("error: two equal runs of the pipeline made different adapters")


def alone(job: Job) -> dict:
    """Measure in a fresh process, with empty compilation caches."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(dict.fromkeys(CACHES, cache))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, "project", job).result()


if __name__ == "__main__":
    main()
