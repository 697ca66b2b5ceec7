"""The experiments of a sweep: its grid checked, and which of them may run side by side."""

import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.runtime.console import Refusal
from tools import git

import networkx
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hydra.errors import HydraException

GENERATED = ("dvc.lock", "metrics/", "plots/")  # files in Git that a run changes

Combination = dict[str, str]  # parameter -> value, both as `dvc exp run -S` takes them


def combinations(grid: list[str]) -> dict[str, Combination]:
    """The experiments by name, each checked through the parameters' schema.

    Raises:
        Refusal: if the pipeline would refuse a value, or if a parameter decides which stages there are.
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
    """The arguments of `dvc exp run -S`; ++ also sets a key that params.yaml leaves out."""
    return [f"++{parameter}={value}" for parameter, value in combination.items()]


def experiment_name(combination: Combination) -> str:
    """A name with the values that is valid in Git: r=8_learning_rate=0.0001."""
    short = Counter(parameter.rpartition(".")[2] for parameter in combination)
    parts = []
    for parameter, value in combination.items():
        key = parameter.rpartition(".")[2]
        parts.append(f"{key if short[key] == 1 else parameter}=" + re.sub(r"[^\w.+-]+", "-", value).strip("-."))
    return "_".join(parts)


def check_committed() -> None:
    """Check that Git or DVC holds every file that a stage reads: each experiment runs in a copy of the commit.

    Raises:
        Refusal: if such a file is in neither, or differs from the commit, so that a resumed sweep would mix two states.
    """
    changed = git.paths("diff", "HEAD", "--name-only", "--relative")
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
    untracked = {Path(path).absolute() for path in git.paths("ls-files", "--others", *ours)}
    for path in sorted(untracked):
        is_read = any(path == Path(source) or Path(source) in path.parents for source in sources)
        if is_read and path.name != ".gitignore" and not any(overlap(path, out) for out in added):
            name = path.relative_to(Path.cwd())
            raise Refusal(f"{name} is in neither Git nor DVC, so experiments would lack it: `git add` or `dvc add` it")


def overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def swept_parameters_by_stage(swept: Combination) -> dict[str, list[str]]:
    """Stage -> the swept parameters that it depends on, through its own `params:` or the stages before it.

    Raises:
        Refusal: if no stage depends on one.
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


def next_wave(
    experiments: dict[str, Combination], reach: dict[str, list[str]], done: dict[str, str], failed: dict[str, str]
) -> dict[str, Combination]:
    """Experiments that may run side by side, because no two of them run a stage with the same values.

    Later experiments find those stages' outputs in DVC's cache.
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
