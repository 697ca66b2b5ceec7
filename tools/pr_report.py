"""pr_report: what a branch changes, as one page for its reviewer, from what Git holds: no GPU, credentials or cache.

    python -m tools.pr_report --base origin/main --output report.md

Compares this checkout with the commit where it left the base. Ends with status 1, the page written, if dvc.lock is
stale or a gate is broken.
"""

import argparse
import csv
import io
import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from dvc.exceptions import DvcException
from dvc.repo import Repo

from qlora.recipe.params import DISTANCES, Params, load_params
from qlora.reporting import gates
from qlora.reporting.gates import Checked
from qlora.reporting.markdown import table
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text
from stages.report import gate_table, number, show
from tools import compare
from tools.compare import difference_table

MARK = "<!-- pr_report -->"  # by which the comment is found again
SERVED = {"size_mb": "MB", "tokens_per_second": "tokens/s", "first_token_ms": "first token, ms"}
POINTS = 50  # of a loss curve
Reader = Callable[[str], str | None]  # path -> a file's text at one commit, None if it is not there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="origin/main", help="branch that this one is to be merged into")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()

    params = load_params()
    base = merge_base(arguments.base)
    before, after = at_commit(base), in_checkout
    stale = stale_stages()
    checked = check_gates(params, after)
    broken = [gate.name for gate in checked if not gate.holds]
    page = [
        f"{MARK}\n## What this changes against `{arguments.base}` ({base[:7]})\n",
        f"- dvc.lock: {'**stale**: ' + ', '.join(stale) if stale else 'current'}",
        f"- gates: {verdict(checked, broken)}\n",
        *section("Parameters", changed_parameters(base)),
        *score_section(params, base, before, after),
        *(section("Gates", gate_table(checked)) if checked else []),
        *section("Served files", served_table(params, before, after)),
        *section("Training loss", loss_chart(before, after)),
    ]
    write_text(arguments.output, "\n".join(page))
    print(f"written: {arguments.output}")
    problems = [f"dvc.lock is stale ({', '.join(stale)}): run `make repro` and commit what it changes"] if stale else []
    problems += [f"broken gates: {', '.join(broken)}"] if broken else []
    if problems:
        raise Refusal("; ".join(problems))


def merge_base(branch: str) -> str:
    """The commit where this checkout left `branch`.

    Raises:
        Refusal: if Git cannot find it, as in a shallow clone.
    """
    found = git("merge-base", branch, "HEAD")
    if found is None:
        raise Refusal(f"Git knows no commit that HEAD and {branch} share; in a shallow clone: git fetch --unshallow")
    return found.strip()


def git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return None if done.returncode else done.stdout


def at_commit(commit: str) -> Reader:
    return lambda path: git("show", f"{commit}:{path}")


def in_checkout(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None


def stale_stages() -> list[str]:
    """The stages whose record in dvc.lock is not of these parameters, modules and rows, whether or not their data are
    here; not those that follow them.

    `dvc repro --dry` stops at the first stale stage whose inputs are missing, without naming it.

    Raises:
        Refusal: if DVC cannot tell; with its reason.
    """
    try:
        with Repo() as repo, repo.lock:
            return [stage.addressing for stage in repo.index.stages if stage.changed(allow_missing=True)]
    except DvcException as error:
        raise Refusal(f"DVC cannot tell whether dvc.lock is stale: {error}") from None


def artifact_metrics(artifact: str, read: Reader) -> dict[str, float]:
    """What an artifact measured; with its distance to the one it was made from, which the summary holds."""
    metrics = json.loads(read(f"metrics/{artifact}.json") or "{}")
    summary = json.loads(read("metrics/summary.json") or "{}")
    distances = {name: summary[name][artifact] for name in DISTANCES if artifact in summary.get(name, {})}
    return metrics | distances


def check_gates(params: Params, read: Reader) -> list[Checked]:
    metrics = {artifact: artifact_metrics(artifact, read) for artifact in params.evaluate.artifacts}
    return gates.check(params.evaluate.gates, metrics)


def verdict(checked: list[Checked], broken: list[str]) -> str:
    if not checked:
        return "none set (`evaluate.gates` in params.yaml)"
    return f"**broken**: {', '.join(broken)}" if broken else f"all {len(checked)} hold"


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


def score_section(params: Params, base: str, before: Reader, after: Reader) -> list[str]:
    """Each artifact's measures: what they were, are, and the paired interval of the change."""
    try:
        found = compare.differences(compare.load(base), compare.load(None))
    except Refusal as refusal:  # other rows, or no rows there yet: nothing can be paired
        heads = ["artifact", "measure", "before", "after"]
        rows = []
        for artifact in params.evaluate.artifacts:
            old, new = artifact_metrics(artifact, before), artifact_metrics(artifact, after)
            rows += [
                [artifact, name.replace("_", " "), show(name, old.get(name)), show(name, new[name])]
                for name in ("execution_accuracy", "loss", "next_token_accuracy", "stop_rate")
                if name in new
            ]
        return section("Scores", f"{table(heads, rows, left=2)}\n\nNo intervals: {refusal}.".replace(base, base[:7]))
    score = next(
        name for name in ("execution_accuracy", "next_token_accuracy") if any(d.measure == name for d in found)
    )
    first = [difference for difference in found if difference.measure == score]
    rest = [difference for difference in found if difference.measure != score]
    return section(
        "Scores",
        f"{difference_table(first)}\n\nIn brackets the 95 % interval of the change on the same rows (paired bootstrap "
        "over groups): one that holds 0 shows no difference.\n\n"
        f"<details><summary>Other measures</summary>\n\n{difference_table(rest)}\n\n</details>",
    )


def served_table(params: Params, before: Reader, after: Reader) -> str | None:
    """Size and speed of each GGUF that was scored."""
    rows = []
    for artifact in params.evaluate.artifacts:
        if artifact in ("base", "adapter", "merged"):
            continue
        old, new = artifact_metrics(artifact, before), artifact_metrics(artifact, after)
        cells = [f"{number(old.get(name))} → {number(new.get(name))}" for name in SERVED]
        rows.append([artifact, *cells])
    if not rows:
        return "No GGUF is scored (`evaluate.artifacts` in params.yaml)."
    return table(["GGUF", *SERVED.values()], rows) + "\n\nSpeed is of the machines that ran it, which may differ."


def loss_chart(before: Reader, after: Reader) -> str | None:
    """The loss curves as a Mermaid chart: GitHub draws it in comments, where it takes no pictures of a workflow."""
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
    return number(json.loads(read("metrics/summary.json") or "{}").get("train", {}).get("validation_loss"))


def loss_curve(text: str | None) -> list[float]:
    """The training loss at POINTS even distances, each the mean of what lies around it; [] if there is no curve."""
    lines = csv.DictReader(io.StringIO(text or ""))
    losses = [float(line["loss"]) for line in lines if line.get("split", "training") == "training" and line["loss"]]
    edges = [round(at * len(losses) / POINTS) for at in range(POINTS + 1)]
    parts = [losses[begin : max(end, begin + 1)] for begin, end in itertools.pairwise(edges)]
    return [mean(part) for part in parts if part]


if __name__ == "__main__":
    run_stage(main)
