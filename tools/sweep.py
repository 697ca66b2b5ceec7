"""sweep: each combination of some parameters' values as a DVC experiment, on DVC's queue, one worker a GPU.

    python -m tools.sweep lora.r=8,16,64 train.learning_rate=1e-4,2e-4

Stages that no swept parameter reaches run once, before; experiments that share a stage's run wait for the first of
them. What failed, was stopped or is missing is what the same command runs the next time. Writes results/sweep: a table
(Markdown, CSV) and, for each parameter, a picture of the score.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from statistics import mean

import networkx
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from dvc.repo.experiments.queue.remove import remove_tasks
from dvc.stage import PipelineStage
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hydra.errors import HydraException
from matplotlib.figure import Figure
from tqdm import tqdm

from qlora.recipe.params import load_params
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text
from tools import one_run

OUTPUT = Path("results/sweep")
GENERATED = ("dvc.lock", "metrics/", "plots/")  # what a run changes of Git's files
SCORES = ("execution_accuracy", "next_token_accuracy")
STOP_SECONDS = 60  # for a stage to unwind

Combination = dict[str, str]  # parameter -> value, both as `dvc exp run -S` takes them


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
    refuse_what_the_queue_would_lose()
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
        print(write_results(experiments, done, artifact))
    if failed:
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in failed.items())
        raise Refusal(f"{len(failed)} of {len(experiments)} experiments failed; the same command retries them{reasons}")


def combinations(grid: list[str]) -> dict[str, Combination]:
    """The experiments by name, each checked through the parameters' schema.

    Raises:
        Refusal: if a value is none that the pipeline would take, or decides which stages there are.
    """
    experiments = {}
    try:
        sweeps = get_hydra_sweeps({"params.yaml": grid})
    except HydraException as error:
        raise Refusal(f"GRID: {str(error).splitlines()[0]}; write it as lora.r=8,16,64") from None
    for sweep in sweeps:
        combination = dict(override.split("=", 1) for override in sweep["params.yaml"])
        experiments[experiment_name(combination)] = combination
    templated = set(re.findall(r"\$\{([\w.]+)\}", Path("dvc.yaml").read_text()))
    for parameter in templated & combination.keys():
        raise Refusal(f"GRID: {parameter} decides which stages there are, so it is the same for all experiments")

    with tempfile.TemporaryDirectory() as folder:
        for name, combination in experiments.items():
            params = Path(folder) / "params.yaml"
            shutil.copy("params.yaml", params)
            try:
                apply_overrides(params, overrides(combination))
                load_params(params)
            except Refusal as refusal:
                raise Refusal(f"GRID, {name}: {str(refusal).removeprefix(f'{params}: ')}") from None
    return experiments


def overrides(combination: Combination) -> list[str]:
    """For `dvc exp run -S`; ++ also takes a key that params.yaml leaves at its default."""
    return [f"++{parameter}={value}" for parameter, value in combination.items()]


def experiment_name(combination: Combination) -> str:
    """A name that says the values and that Git takes: r=8_learning_rate=0.0001."""
    short = Counter(parameter.rpartition(".")[2] for parameter in combination)
    parts = []
    for parameter, value in combination.items():
        key = parameter.rpartition(".")[2]
        parts.append(f"{key if short[key] == 1 else parameter}=" + re.sub(r"[^\w.+-]+", "-", value).strip("-."))
    return "_".join(parts)


def refuse_what_the_queue_would_lose() -> None:
    """Each experiment runs in a copy of the commit, with DVC's data.

    Raises:
        Refusal: if a file that a stage reads is in neither, or differs from the commit: then a sweep that is taken up
            again would mix two states.
    """
    changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=no").splitlines()]
    changed = [path for path in changed if not path.startswith(GENERATED)]
    if changed:
        raise Refusal(f"a sweep starts from a commit: commit (or `git restore`) {', '.join(changed)} first")

    with Repo() as repo:
        stages = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]
        made = {Path(out.fs_path) for stage in stages for out in stage.outs}
        added = {Path(out.fs_path) for stage in repo.index.stages if stage not in stages for out in stage.outs}
        read = {Path(dep.fs_path) for stage in stages for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    sources = [str(path) for path in read if not any(overlap(path, out) for out in made)]
    ours = [".", *(f":(exclude,glob)**/{pattern}" for pattern in ("__pycache__/**", "*.pyc"))]
    untracked = {Path(path).absolute() for path in git("ls-files", "--others", "--", *ours).splitlines()}
    for path in sorted(untracked):
        is_read = any(path == Path(source) or Path(source) in path.parents for source in sources)
        if is_read and path.name != ".gitignore" and not any(overlap(path, out) for out in added):
            name = path.relative_to(Path.cwd())
            raise Refusal(f"{name} is in neither Git nor DVC, so experiments would lack it: `git add` or `dvc add` it")


def overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def swept_parameters_by_stage(swept: Combination) -> dict[str, list[str]]:
    """Stage -> the swept parameters that reach it, by its own `params:` or through what it reads.

    Raises:
        Refusal: if one reaches no stage.
    """
    with Repo() as repo:
        stages = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]
        keys = {stage: [f"{key}." for dep in stage.params for key in dep.params] for stage in stages}
        own = {stage: {name for name in swept if f"{name}.".startswith(tuple(keys[stage]))} for stage in stages}
        graph = repo.index.graph  # its edges point from a stage to what it needs
        reach = {
            stage.name: set().union(*(own.get(needed, ()) for needed in (stage, *networkx.descendants(graph, stage))))
            for stage in stages
        }
    unread = set(swept).difference(*reach.values())
    if unread:
        raise Refusal(f"GRID: no stage reads {', '.join(unread)}")
    return {stage: sorted(parameters) for stage, parameters in reach.items()}


def worker_devices(workers: int | None) -> list[str | None]:
    """For each worker the GPU that it sees; None on a CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]  # CUDA numbers them otherwise
        visible = ",".join(re.findall(r"^GPU-\S+", subprocess.run(query, capture_output=True, text=True).stdout, re.M))
    devices = visible.split(",") if visible else [None]
    return list(itertools.islice(itertools.cycle(devices), workers or len(devices)))


def finished() -> dict[str, str]:
    """Name -> commit of the experiments that started from HEAD."""
    with Repo() as repo:
        return {name: revision for found in repo.experiments.ls().values() for name, revision in found}


def next_wave(
    experiments: dict[str, Combination], reach: dict[str, list[str]], done: dict[str, str], failed: dict[str, str]
) -> dict[str, Combination]:
    """Experiments that may run side by side: no stage is run twice with the same values.

    The others find in DVC's cache what these have run.
    """

    def runs(combination: Combination) -> set[tuple]:
        return {(stage, *(combination[name] for name in names)) for stage, names in reach.items() if names}

    made = set().union(*(runs(experiments[name]) for name in experiments.keys() & done))
    wave = {}
    for name, combination in experiments.items():
        own = runs(combination)
        # Those of one wave differ in every stage that is still to be run.
        if name not in done | failed and not any(own & runs(other) - made for other in wave.values()):
            wave[name] = combination
    return wave


def run_wave(wave: dict[str, Combination], devices: list[str | None], lock: int, bar: tqdm) -> dict[str, str]:
    """Queue these experiments and run them; returns name -> reason of those that failed.

    Interrupted, it leaves neither workers nor queued experiments behind.
    """
    failed, started = {}, {}
    with Repo() as repo:
        queue = repo.experiments.celery_queue
        forget(queue, wave.keys())
        with contextlib.redirect_stdout(io.StringIO()):
            for name, combination in wave.items():
                repo.experiments.run(queue=True, name=name, params=overrides(combination))
        waiting = {entry.stash_rev: entry for entry in queue.iter_queued() if entry.name in wave}
        workers, left = [], len(waiting)
        try:
            while waiting:
                if all(worker.poll() is not None for worker in workers):  # none yet, or all have ended
                    stop(workers)
                    for entry in queue.iter_active() if workers else ():
                        if waiting.pop(entry.stash_rev, None):
                            failed[entry.name] = f"its worker was killed; {failure(queue, entry.stash_rev)}"
                            tqdm.write(f"{entry.name} failed: {failed[entry.name]}")
                            bar.update()
                    if workers and len(waiting) == left:
                        raise Refusal(f"DVC's queue workers end before they run anything; logs: {OUTPUT}/worker-*.log")
                    left = len(waiting)
                    workers = start_workers(devices[:left], lock)
                time.sleep(0.5)
                for entry in queue.iter_active():
                    started.setdefault(entry.stash_rev, time.monotonic())
                for entry, result in queue.iter_done():
                    if waiting.pop(entry.stash_rev, None) is None:
                        continue
                    minutes = (time.monotonic() - started.get(entry.stash_rev, time.monotonic())) / 60
                    if result is None:
                        failed[entry.name] = failure(queue, entry.stash_rev)
                    verdict = f"failed: {failed[entry.name]}" if result is None else f"done in {minutes:.1f} minutes"
                    tqdm.write(f"{entry.name} {verdict}; {len(waiting)} left of these")
                    bar.update()
                running = [entry for entry in waiting.values() if entry.stash_rev in started]
                bar.set_postfix_str(
                    "; ".join(f"{entry.name}: {running_stage(queue, entry.stash_rev)}" for entry in running)
                )
        except KeyboardInterrupt:
            raise Refusal("stopped; the same command goes on with what is left") from None
        finally:
            stop(workers)
            if waiting:
                forget(queue, wave.keys())
    return failed


def forget(queue: LocalCeleryQueue, names: Collection[str]) -> None:
    """Take these experiments off the queue: what waits, what is done, and what a killed worker left as running."""
    for task, entry in queue._iter_active_tasks():
        if entry.name in names:
            queue.celery.backend.mark_as_failure(task.id, None)
            info = Path(queue.get_infofile_path(entry.stash_rev))
            if info.exists():
                shutil.rmtree(json.loads(info.read_text())["root_dir"], ignore_errors=True)
    known = [*queue.iter_queued(), *(done.entry for done in queue.iter_done())]
    remove_tasks(queue, [entry for entry in known if entry.name in names])


def start_workers(devices: list[str | None], lock: int) -> list[subprocess.Popen]:
    """One of DVC's queue workers for each device; they end when the queue is empty."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    workers = []
    for number, device in enumerate(devices, 1):
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        with (OUTPUT / f"worker-{number}.log").open("w") as log:
            worker = subprocess.Popen(
                ["dvc", "exp", "queue-worker", f"sweep-{os.getpid()}-{number}@localhost"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops them in order
                pass_fds=[lock],
            )
        workers.append(worker)
    return workers


def stop(workers: list[subprocess.Popen]) -> None:
    """End the workers and what they run, also what a killed worker has left running."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, ending)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))


def write_results(experiments: dict[str, Combination], done: dict[str, str], artifact: str) -> str:
    """Write the table and the pictures; returns the table.

    Args:
        artifact: the one whose score sorts the table.
    """
    summaries = {
        name: json.loads(git("show", f"{done[name]}:metrics/summary.json")) for name in experiments if name in done
    }
    score = next(name for name in SCORES if name in next(iter(summaries.values())))
    parameters = list(next(iter(experiments.values())))
    columns = "|".join(
        ["Experiment", *map(re.escape, parameters), rf"(.+:)?{score}\.", r"(.+:)?train\.validation_loss"]
    )
    best_first = ["--sort-by", f"metrics/summary.json:{score}.{artifact}", "--sort-order", "desc"]
    show = ["dvc", "exp", "show", "--no-pager", "--hide-workspace", "--drop", ".*", "--keep", columns, *best_first]
    for suffix, option in (("csv", "--csv"), ("md", "--md")):
        table = subprocess.run([*show, option], check=True, capture_output=True, text=True).stdout
        write_text(OUTPUT / f"table.{suffix}", table)
    for parameter in parameters:
        points = {name: (experiments[name][parameter], summary[score]) for name, summary in summaries.items()}
        draw(OUTPUT / f"{parameter}.svg", parameter, score, list(points.values()))
    return f"{table}\ntable and pictures: {OUTPUT}"


def draw(path: Path, parameter: str, score: str, points: list[tuple[str, dict[str, float]]]) -> None:
    """Score against one parameter: a dot an experiment, a line through the means; a colour an artifact."""
    values = list(dict.fromkeys(value for value, _ in points))
    with contextlib.suppress(ValueError):
        values.sort(key=float)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for artifact in points[0][1]:
        dots = [(values.index(value), scores[artifact]) for value, scores in points if artifact in scores]
        means = [(x, mean([y for at, y in dots if at == x])) for x in sorted({at for at, _ in dots})]
        (line,) = axes.plot(*zip(*means, strict=True), label=artifact)
        axes.plot(*zip(*dots, strict=True), "o", color=line.get_color())
    axes.set(xlabel=parameter, ylabel=score.replace("_", " "), xticks=range(len(values)), xticklabels=values)
    axes.legend()
    figure.savefig(path)


def log_of(queue: LocalCeleryQueue, revision: str) -> Path | None:
    process = queue.proc.get(revision)
    return process and Path(process.stdout)


def running_stage(queue: LocalCeleryQueue, revision: str) -> str:
    log = log_of(queue, revision)
    stages = re.findall(r"Running stage '(.+)':", log.read_text(errors="replace")) if log else []
    return stages[-1] if stages else "starting"


def failure(queue: LocalCeleryQueue, revision: str) -> str:
    """The last error in an experiment's log, and where the log is."""
    log = log_of(queue, revision)
    if log is None:
        return f"it did not start; logs: {OUTPUT}/worker-*.log"
    errors = re.findall(r"^error: (.+)", log.read_text(errors="replace"), re.IGNORECASE | re.MULTILINE)
    return f"{errors[0] if errors else 'no message'}; log: {os.path.relpath(log)}"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    run_stage(main)
