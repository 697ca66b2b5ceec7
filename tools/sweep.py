"""sweep: each combination of some parameters' values as a DVC experiment, on DVC's queue, one worker a GPU.

    python -m tools.sweep lora.r=8,16,64 train.learning_rate=1e-4,2e-4

Stages that depend on no swept parameter run once, before; experiments that share a stage's run wait for the first of
them. The same command retries what failed, was stopped or is missing. Writes results/sweep: a table (Markdown, CSV)
and, for each parameter, a picture of the score.
"""

import argparse
import subprocess

from qlora.recipe.load import load_params
from qlora.runtime.console import Refusal, run_stage
from tools import clone, one_run
from tools.sweep_grid import check_committed, combinations, next_wave, swept_parameters_by_stage
from tools.sweep_queue import OUTPUT, finished, run_wave, worker_devices
from tools.sweep_results import write_results

from tqdm import tqdm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("grid", nargs="+", metavar="PARAMETER=VALUE,VALUE", help="such as lora.r=8,16,64")
    parser.add_argument("--workers", type=int, help="experiments at once; default: one a GPU, one on a CPU")
    arguments = parser.parse_args()
    if arguments.workers is not None and arguments.workers < 1:
        parser.error("--workers must be at least 1")

    artifact = load_params().evaluate.artifacts[-1]
    lock = one_run.hold("make sweep")  # the queue's workers inherit it
    experiments = combinations(arguments.grid)
    for obstacle in clone.obstacles():
        raise Refusal(obstacle)
    check_committed()
    reach = swept_parameters_by_stage(next(iter(experiments.values())))
    devices = worker_devices(arguments.workers)

    shared = [stage for stage, parameters in reach.items() if not parameters]
    print(f"once for all {len(experiments)} experiments: {', '.join(shared) or 'nothing'}", flush=True)
    if shared and subprocess.run(["dvc", "repro", *shared]).returncode:
        raise Refusal("what all experiments share did not run; the message above says why")

    done, failed = finished(), {}
    known = len(experiments.keys() & done)
    with tqdm(total=len(experiments), initial=known, desc="sweep", unit="exp", disable=None) as bar:
        while wave := next_wave(experiments, reach, done, failed):
            failed |= run_wave(wave, devices, lock.fileno(), bar)
            done = finished()

    if experiments.keys() & done:
        print(write_results(experiments, done, artifact, OUTPUT))
    if failed:
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in failed.items())
        raise Refusal(f"{len(failed)} of {len(experiments)} experiments failed; the same command retries them{reasons}")


if __name__ == "__main__":
    run_stage(main)
