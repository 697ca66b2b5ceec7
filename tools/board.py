"""board: one page of this repository's experiments, to open in a browser: results/board.html.

    python -m tools.board

It compares this workspace, the commits that changed the metrics, and DVC's experiments: scores with their changes, loss
curves, intervals, gates. It shows the workspace's answers side by side. The page is made from Git and results/, needs
no network and runs no server; `dvc plots show` and DVC's view in VS Code have the same files.
"""

import argparse
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.metrics import METRICS
from qlora.reporting import outcomes, sections, summary
from qlora.reporting.plots import how_it_ended
from qlora.rows import jsonl
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text
from tools import board_page, compare, git
from tools.compare import Difference

import pandas
from ruamel.yaml import YAML, YAMLError

COMMITS = 10  # of the branch, that changed the metrics
EXPERIMENTS = 30  # the newest
ANSWERS = 20  # test rows whose answers are shown
PREDICTIONS = Path("results/predictions")
TEST_ROWS = Path("data/prepared/test.jsonl")  # as qlora/rows/prepared.py has it, which takes seconds to import


@dataclass(frozen=True)
class Run:
    """One line of the board: the workspace, a commit or an experiment.

    Attributes:
        name: The experiment's name, the commit's abbreviation and subject, or "workspace".
        is_commit: Whether it is a commit of this branch; the newest is what the others are compared with.
        summary: metrics/summary.json.
        params: Dotted name -> value of params.yaml.
        losses: plots/loss.csv; empty if there is none.
        scores: plots/artifacts.csv; empty if there is none.
        changes: Artifact -> change of the headline metric against the last commit, on the same rows.
    """

    name: str
    is_commit: bool
    summary: dict
    params: dict[str, object]
    losses: pandas.DataFrame
    scores: pandas.DataFrame
    changes: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """A test row and what each artifact of the workspace answered: artifact -> (how it ended, the answer)."""

    id: str
    question: str
    gold: str
    answers: dict[str, tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/board.html"), help="the page to write")
    options = parser.parse_args()
    params = load_params()
    runs = find_runs()
    if not runs:
        raise Refusal(f"nothing to show: neither this workspace nor a commit has {summary.PATH}; run `make repro`")
    try:
        answers, missing = read_answers(), ""
    except Refusal as refusal:
        answers, missing = [], str(refusal)
    title = f"{params.data.name} for {params.model.id}"
    write_text(options.output, board_page.render(title, runs, answers, missing))
    counted = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{counted}, {len(answers)} rows with their answers: open {options.output} in a browser")


def find_runs() -> list[Run]:
    """The workspace if its results are in no other run, then experiments, then commits; the newest first.

    A commit with the same figures as a newer one is left out: the same run, made again.
    """
    log = git.git("log", f"-{COMMITS}", "--format=%h %s", "--", str(summary.PATH)).splitlines()
    refs = git.git(
        "for-each-ref", "--sort=-committerdate", f"--count={EXPERIMENTS}", "--format=%(refname)", "refs/exps/??/*/*"
    ).splitlines()
    commits: list[Run] = []
    for line in log:
        run = read(line.partition(" ")[0], line, is_commit=True)
        if run and not any(is_same(run, newer) for newer in commits):
            commits.append(run)
    experiments = [read(ref, ref.rpartition("/")[2]) for ref in refs]
    here = read(None, "workspace")
    if here and any(is_same(here, run) for run in (*experiments, *commits[:1]) if run):
        here = None
    return [run for run in (here, *experiments, *commits) if run]


def is_same(one: Run, other: Run) -> bool:
    return all(one.summary.get(key) == other.summary.get(key) for key in ("score", "loss", "validation_loss"))


def read(revision: str | None, name: str, is_commit: bool = False) -> Run | None:
    """What a revision, or the workspace, holds of a run; None if it has no metrics or they cannot be read."""
    try:
        measured = json.loads(file(revision, summary.PATH) or "{}")
        if not measured.get("score") or measured.get("metric") not in METRICS:
            return None
        params = flat(YAML(typ="safe").load(file(revision, Path("params.yaml")) or "{}"))
        losses = table(file(revision, Path("plots/loss.csv")), {"step", "split", "loss"})
        scores = table(file(revision, Path("plots/artifacts.csv")), {"artifact", "low", "high"})
    except (ValueError, AttributeError, YAMLError):  # not JSON, CSV or YAML, or something else in it
        return None
    return Run(name, is_commit, measured, params, losses, scores, changes(revision, measured["metric"]))


def file(revision: str | None, path: Path) -> str | None:
    if revision is None:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    return git.file_at(revision, path)


def table(text: str | None, columns: set[str]) -> pandas.DataFrame:
    """The CSV `text`; empty if it lacks a column, as of an older version."""
    found = pandas.read_csv(io.StringIO(text)) if text else pandas.DataFrame()
    return found if columns <= set(found.columns) else pandas.DataFrame()


def flat(params: dict, prefix: str = "") -> dict[str, object]:
    """Nested parameters by their dotted names."""
    found = {}
    for key, value in params.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def changes(revision: str | None, metric: str) -> dict[str, Difference]:
    """The paired change of `metric` of each artifact against the last commit; empty where nothing can be paired."""
    try:
        before, after = compare.load("HEAD"), compare.load(revision)
        return {one.artifact: one for one in compare.differences(before, after) if one.metric == metric}
    except Refusal:
        return {}


def read_answers() -> list[Answered]:
    """The workspace's most telling test rows with every artifact's answer.

    Raises:
        Refusal: if the answers are not here, or answer other rows.
    """
    params = load_params()
    files = {name: PREDICTIONS / f"{name}.jsonl" for name in params.evaluate.artifacts}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing or not TEST_ROWS.is_file():
        raise Refusal(
            "the answers are not in this checkout: `dvc pull --allow-missing` fetches them, `make repro` makes them"
        )
    rows = [row for _, row in jsonl.read(TEST_ROWS)]
    predictions = {name: [answer for _, answer in jsonl.read(path)] for name, path in files.items()}
    outcomes.collect(rows, predictions)  # refuses answers to other rows
    return [
        Answered(
            rows[at]["id"],
            rows[at]["messages"][-2]["content"],
            rows[at]["messages"][-1]["content"],
            {name: (how_it_ended(answers[at]), answers[at]["answer"]) for name, answers in predictions.items()},
        )
        for at in sections.telling(predictions)[:ANSWERS]
    ]


if __name__ == "__main__":
    run_stage(main)
