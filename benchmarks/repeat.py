"""Whether a GPU gives the same adapter twice, and what that costs.

    python -m benchmarks.repeat --shape llama3-8b

Trains the same rows as quantize-load-train does, in processes of their own that compile everything anew: twice as the
pipeline has it, and twice as PyTorch would by default. The rows' tokens are few (1,000), so that there is something to
learn and differences can grow. Prints seconds a step, a digest of each adapter and how far the losses of two equal
runs are apart; exits with status 1 if those of the pipeline are further apart than 1e-3 at any step.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.shapes import SHAPES
from benchmarks.train_speed import Job, measure, random_rows
from stages.params import Train

TOKENS = 1000  # different ones in the rows
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", choices=("short", "full"), default="short", help="145 tokens on average, or 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain", action="store_true", help="without compiled layers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark measures a GPU and there is none")

    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
    apart = {}
    for kind, (first, second) in runs.items():
        apart[kind] = max(abs(a - b) for a, b in zip(first["losses"], second["losses"], strict=True))
        print(f"{kind:<26} {apart[kind]:.6f}")
    if apart["as the pipeline trains"] > TOLERANCE:
        sys.exit("error: two equal runs differ")


def alone(job: Job) -> dict:
    """Measure in a process of its own, with nothing compiled before."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(dict.fromkeys(CACHES, cache))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, "project", job).result()


if __name__ == "__main__":
    main()
