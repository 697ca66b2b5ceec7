"""pr_report: what a branch changes, as one page for its reviewer, from what Git holds: no GPU, credentials or cache.

    python -m tools.pr_report --base origin/main --output report.md

Compares this checkout with the commit where it left the base. Ends with status 1, the page written, if dvc.lock is
stale or a gate is broken.
"""

import argparse
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.reporting import summary
from qlora.reporting.sections import gate_table
from qlora.reporting.tables import number, show, table
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text
from tools import compare, git
from tools.compare import difference_table

import numpy as np
import pandas
from dvc.exceptions import DvcException
from dvc.repo import Repo

MARK = "<!-- pr_report -->"  # by which the comment is found again
POINTS = 50  # of a loss curve
Reader = Callable[[str], str | None]  # path -> a file's text at one commit, None if it is not there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", help="branch that this one is to be merged into; by default origin's main branch")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()

    load_params()
    branch = arguments.base or main_branch()
    base = merge_base(branch)
    before, after = at_commit(base), in_checkout
    stale = stale_stages()
    now = read_summary(after)
    broken = summary.broken_gates(now)
    page = [
        f"{MARK}\n## What this changes against `{branch}` ({base[:7]})\n",
        f"- dvc.lock: {'**stale**: ' + ', '.join(stale) if stale else 'current'}",
        f"- gates: {verdict(now, broken)}\n",
        *section("Parameters", changed_parameters(base)),
        *score_section(base, read_summary(before), now),
        *(section("Gates", gate_table(summary.recorded_gates(now))) if now.get("gates") else []),
        *section("Size", size_table(read_summary(before), now)),
        *section("Training loss", loss_chart(before, after)),
    ]
    write_text(arguments.output, "\n".join(page))
    print(f"written: {arguments.output}")
    problems = [f"dvc.lock is stale ({', '.join(stale)}): run `make repro` and commit what it changes"] if stale else []
    problems += [f"broken gates: {', '.join(broken)}"] if broken else []
    problems += [] if now else [f"{summary.PATH} is missing: run `make repro` and commit it"]
    if problems:
        raise Refusal("; ".join(problems))


def main_branch() -> str:
    """The main branch of origin, whatever its name is. Raises Refusal if there is none."""
    for name in ("origin/HEAD", "origin/main", "origin/master"):
        if git.commit_of(name):
            return git.git("rev-parse", "--abbrev-ref", name).strip()
    raise Refusal("--base: this clone knows no main branch of origin; name the branch to compare with: --base main")


def merge_base(branch: str) -> str:
    """The commit where this checkout left `branch`.

    Raises:
        Refusal: if there is no such branch, or Git cannot find that commit.
    """
    if git.commit_of(branch) is None:
        raise Refusal(
            f"--base: Git knows no branch or commit {branch}; `git branch --all` lists what is here, `git fetch` gets "
            "the others"
        )
    try:
        return git.git("merge-base", branch, "HEAD").strip()
    except Refusal:
        why = "this clone is shallow: run `git fetch --unshallow`" if git.is_shallow() else "choose another --base"
        raise Refusal(f"--base: HEAD and {branch} share no commit here; {why}") from None


def at_commit(commit: str) -> Reader:
    return lambda path: git.file_at(commit, path)


def in_checkout(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None


def stale_stages() -> list[str]:
    """Stages whose dvc.lock entry is stale, downstream stages excluded; their data need not be here.

    `dvc repro --dry` stops at the first stale stage whose inputs are missing, without naming it.

    Raises:
        Refusal: if DVC cannot tell; with its reason.
    """
    try:
        with Repo() as repo, repo.lock:
            return [stage.addressing for stage in repo.index.stages if stage.changed(allow_missing=True)]
    except DvcException as error:
        raise Refusal(f"DVC cannot tell whether dvc.lock is stale: {error}") from None


def read_summary(read: Reader) -> dict:
    return json.loads(read(str(summary.PATH)) or "{}")


def verdict(now: dict, broken: list[str]) -> str:
    if not now.get("gates"):
        return "none set (`evaluate.gates` in params.yaml)"
    return f"**broken**: {', '.join(broken)}" if broken else f"all {len(now['gates'])} hold"


def section(title: str, text: str | None) -> list[str]:
    return [f"### {title}\n", text or "No change.", ""]


def changed_parameters(base: str) -> str | None:
    """DVC's own table of changed parameters; None if there is none.

    Raises:
        Refusal: if DVC cannot tell; with its reason.
    """
    done = subprocess.run(["dvc", "params", "diff", "--md", base], capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"`dvc params diff` failed: {done.stderr.strip()}")
    lines = done.stdout.strip().splitlines()
    return "\n".join(lines).replace(base, base[:7]) if len(lines) > 2 else None


def score_section(base: str, before: dict, after: dict) -> list[str]:
    """Each artifact's metrics before and after, with the paired interval of the change."""
    try:
        found = compare.differences(compare.load(base), compare.load(None))
    except Refusal as refusal:  # other rows, or no rows there yet: nothing can be paired
        scores = table(["artifact", "metric", "before", "after"], summary_rows(before, after), left=2)
        return section("Scores", f"{scores}\n\nNo intervals: {refusal}.".replace(base, base[:7]))
    headline = [difference for difference in found if difference.metric == after.get("metric")]
    rest = [difference for difference in found if difference.metric != after.get("metric")]
    notes = "".join(f"\n- {note}" for note in compare.environment_notes(before, after))
    return section(
        "Scores",
        f"{difference_table(headline)}\n\nIn brackets the 95 % interval of the change on the same rows (paired "
        "bootstrap over groups): one that holds 0 shows no difference.\n\n"
        f"<details><summary>Other metrics</summary>\n\n{difference_table(rest)}\n\n</details>\n{notes}",
    )


def summary_rows(before: dict, after: dict) -> list[list[str]]:
    """Score and loss of each artifact as the two summaries have them."""
    metrics = {"score": after.get("metric"), "loss": "loss"}
    return [
        [artifact, metric.replace("_", " "), *(show(metric, one.get(key, {}).get(artifact)) for one in (before, after))]
        for artifact in after.get("loss", {})
        for key, metric in metrics.items()
    ]


def size_table(before: dict, after: dict) -> str | None:
    """The size of each artifact, if one changed."""
    old, new = before.get("size_mb", {}), after.get("size_mb", {})
    if old == new:
        return None
    rows = [[artifact, show("size_mb", old.get(artifact)), show("size_mb", new[artifact])] for artifact in new]
    return table(["artifact", "MB before", "MB after"], rows)


def loss_chart(before: Reader, after: Reader) -> str | None:
    """The loss curves as a Mermaid chart, which GitHub draws in comments; it shows no pictures of a workflow there."""
    drawn = {"grey: before": loss_curve(before("plots/loss.csv")), "blue: after": loss_curve(after("plots/loss.csv"))}
    drawn = {name: curve for name, curve in drawn.items() if curve}
    if not drawn:
        return None
    curves = list(drawn.values())
    values = [value for curve in curves for value in curve]
    palette = {"grey": "#8c959f", "blue": "#0969da"}
    colors = ", ".join(palette[name.partition(":")[0]] for name in drawn)
    lines = [f"    line [{', '.join(f'{value:.4g}' for value in curve)}]" for curve in curves]
    return "\n".join(
        [
            "```mermaid",
            f"%%{{init: {{'themeVariables': {{'xyChart': {{'plotColorPalette': '{colors}'}}}}}}}}%%",
            "xychart-beta",
            '    x-axis "% of training" 0 --> 100',
            f'    y-axis "loss" {min(0, *values):.4g} --> {max(values):.4g}',
            *lines,
            "```",
            f"\n{'; '.join(drawn)}. Validation loss at the end: {last_loss(before)} → {last_loss(after)}.",
        ]
    )


def last_loss(read: Reader) -> str:
    return number(read_summary(read).get("validation_loss"))


def loss_curve(text: str | None) -> list[float]:
    """The training loss at POINTS equal distances, each the mean of the steps around it; [] if there is no curve."""
    if not text:
        return []
    log = pandas.read_csv(io.StringIO(text))
    losses = log.loc[log["split"] == "training", "loss"].to_numpy()
    return [float(part.mean()) for part in np.array_split(losses, min(POINTS, len(losses)))] if len(losses) else []


if __name__ == "__main__":
    run_stage(main)
