"""The page of `tools.board`."""

import math
from html import escape
from typing import TYPE_CHECKING

from qlora.recipe.metrics import METRICS
from qlora.reporting.gates import Checked
from qlora.reporting.summary import recorded_gates
from qlora.reporting.tables import change, number, show
from tools import charts
from tools.page import Html, document, heading, table

import numpy as np
import pandas

if TYPE_CHECKING:
    from tools.board import Answered, Run

DRAWN = 6  # runs whose curves are shown at first
POINTS = 60  # of a training curve, each a mean
COLOURS = [  # of a run: on light, on dark; those of GitHub's charts, which differ for the colour-blind, too
    ("#0969da", "#58a6ff"),
    ("#bc4c00", "#ffa657"),
    ("#1a7f37", "#56d364"),
    ("#8250df", "#d2a8ff"),
    ("#bf3989", "#ff9bce"),
    ("#1b7c83", "#39c5cf"),
    ("#9a6700", "#e3b341"),
    ("#57606a", "#8b949e"),
]
STYLE = """
:root { --width: 80rem }
.table td { font-variant-numeric: tabular-nums }
.runs td:first-child { min-width: 11rem; max-width: 24rem; overflow-wrap: anywhere }
.runs td.n { white-space: nowrap }
.swatch { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 50%; background: var(--c) }
small { color: var(--soft); font-size: 0.8rem }
.better, .holds { color: var(--good) }
.worse, .broken { color: var(--bad); font-weight: 600 }
svg { fill: none; stroke: var(--c, currentColor) }
svg.spark { width: 7rem; height: 1.5rem; stroke-width: 1.5 }
svg.spark polyline { vector-effect: non-scaling-stroke }
svg.chart { width: 100%; min-width: 34rem; display: block }
@media (min-width: 64rem) { .charts { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem } }
.chart g, .chart polyline { stroke: var(--c); stroke-width: 2 }
.chart circle { fill: var(--c); stroke: none }
.chart .faint { stroke-width: 1.2; opacity: 0.45 }
.chart .grid { stroke: var(--line) }
.chart text { fill: var(--soft); stroke: none; font-size: 12px }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)) }
.answers div { padding: 0.5rem 0.75rem; border-top: 1px solid var(--line); min-width: 0 }
.answers code { display: block; white-space: pre-wrap; overflow-wrap: anywhere }
.gold { background: #8881 }
@media (max-width: 40rem) { .chart text { font-size: 14px } }
"""
# Without it all runs are shown; the checkboxes only hide and show what the page has.
SCRIPT = """<script>
for (const box of document.querySelectorAll("[data-run]")) {
  const apply = () => document.querySelectorAll(".chart .r" + box.dataset.run)
    .forEach((part) => { part.style.display = box.checked ? "" : "none" });
  box.addEventListener("change", apply);
  apply();
}
</script>"""


def render(title: str, runs: "list[Run]", answers: "list[Answered]", missing: str) -> str:
    """The page.

    Args:
        title: What the rows are and what they are for.
        runs: The first one is the newest.
        answers: Of this workspace.
        missing: Why there are no answers.
    """
    names = list(dict.fromkeys(artifact for run in runs for artifact in run.summary["score"]))
    metric = runs[0].summary["metric"]
    alike = {at: run for at, run in enumerate(runs) if run.summary["metric"] == metric}
    scores = {
        name: {at: _interval(run, name) for at, run in alike.items() if name in run.summary["score"]} for name in names
    }
    parts = [
        f"<h1>{escape(title)}</h1>",
        heading("Experiments"),
        f"<div class=runs>{_runs(runs, names)}</div>",
        f"<p><small>Scores are {escape(METRICS[metric].heading)}. Below a score: its change against HEAD on the same "
        "rows, coloured where the 95 % interval of the change leaves out 0. The boxes choose what the charts show."
        "</small></p>",
        "<div class=charts><div>",
        heading("Loss"),
        _scrolling(
            charts.curves(
                {at: _curve(run.losses, "training") for at, run in enumerate(runs)},
                {at: _curve(run.losses, "validation") for at, run in enumerate(runs)},
                "step",
                "loss",
            )
        ),
        "<p><small>Strong: validation rows. Faint: training batches, averaged. Logarithmic.</small></p>",
        "</div><div>",
        heading(f"{METRICS[metric].heading.capitalize()} of each artifact"),
        _scrolling(charts.intervals(scores, METRICS[metric].unit == "share")),
        "<p><small>With 95 % intervals (bootstrap over groups of rows).</small></p>",
        "</div></div>",
        heading("Gates"),
        _gates(runs[:DRAWN]),
        heading("Answers of this workspace side by side"),
        f"<p class=note>{escape(missing)}</p>" if missing else "",
        *map(_answered, answers),
        SCRIPT,
    ]
    return document(title, STYLE + _colours(len(runs)), parts)


def _colours(count: int) -> str:
    """The colour of each run; of more runs than colours, the same one again."""
    both = [[f".r{at} {{ --c: {COLOURS[at % len(COLOURS)][dark]} }}" for at in range(count)] for dark in (0, 1)]
    return "\n".join(both[0]) + "\n@media (prefers-color-scheme: dark) {" + " ".join(both[1]) + "}\n"


def _runs(runs: "list[Run]", names: list[str]) -> str:
    base = next((run.params for run in runs if run.is_commit), {})
    rows = []
    for at, run in enumerate(runs):
        broken = run.summary.get("gates_broken", 0)
        gates = f"{broken} broken" if broken else f"{len(run.summary.get('gates', []))} hold"
        rows.append(
            [
                _name(at, run, base),
                charts.sparkline([value for _, value in _curve(run.losses, "training")], at),
                number(run.summary.get("validation_loss")),
                *(_score(run, name) for name in names),
                Html(f"<span class={'broken' if broken else 'holds'}>{gates}</span>"),
            ]
        )
    return table(["run", "training loss", "validation loss", *names, "gates"], rows, numbers=len(names) + 2)


def _name(at: int, run: "Run", base: dict[str, object]) -> Html:
    """The run's name behind its colour, and the parameters that differ from the last commit's."""
    changed = ", ".join(f"{key} {value}" for key, value in run.params.items() if base.get(key, value) != value)
    box = f"<input type=checkbox data-run={at}{' checked' if at < DRAWN else ''}>"
    name, _, subject = run.name.partition(" ")
    notes = [escape(note) for note in (subject, changed) if note]
    return Html(
        f"<label class=r{at}>{box} <span class=swatch></span> <b>{escape(name)}</b></label>"
        + "".join(f"<br><small>{note}</small>" for note in notes)
    )


def _score(run: "Run", artifact: str) -> Html:
    value = run.summary["score"].get(artifact)
    text = escape(show(run.summary["metric"], value))
    one = run.changes.get(artifact)
    if one is None or not one.change.value:
        return Html(text)
    kind = {"better": "better", "worse": "worse"}.get(one.verdict, "")
    moved = change(one.metric, one.change)
    return Html(f'{text}<br><small class="{kind}" title="{escape(moved)}: {one.verdict}">{moved.split(" ")[0]}</small>')


def _interval(run: "Run", artifact: str) -> tuple[float, float, float]:
    value = run.summary["score"][artifact]
    line = run.scores[run.scores["artifact"] == artifact] if len(run.scores) else run.scores
    return (
        (value, float(line["low"].iloc[0]), float(line["high"].iloc[0])) if len(line) else (value, math.nan, math.nan)
    )


def _curve(losses: pandas.DataFrame, split: str) -> list[tuple[float, float]]:
    """Step and loss; of more than POINTS steps the means of as many neighbours."""
    if losses.empty:
        return []
    lines = losses.loc[losses["split"] == split, ["step", "loss"]].to_numpy(float)
    parts = np.array_split(lines, min(POINTS, len(lines)) or 1)
    return [tuple(map(float, part.mean(axis=0))) for part in parts if len(part)]


def _scrolling(chart: str) -> str:
    return f"<div class=table>{chart}</div>" if chart else "<p>Nothing recorded.</p>"


def _gates(runs: "list[Run]") -> str:
    """The value of each gate in each run; the limit is the newest run's that has the gate."""
    recorded = [{gate.name: gate for gate in recorded_gates(run.summary)} for run in runs]
    newest = {name: gate for gates in reversed(recorded) for name, gate in gates.items()}
    if not newest:
        return "<p>None set (evaluate.gates in params.yaml).</p>"

    def cell(gate: Checked | None) -> Html:
        if gate is None:
            return Html("-")
        title = f"{gate.sign} {gate.limit:g}, margin {gate.margin:+.4g}"
        return Html(f"<span class={'holds' if gate.holds else 'broken'} title='{title}'>{gate.shown}</span>")

    rows = [
        [
            Html(escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")),
            Html(f"{escape(gate.sign)}&nbsp;{gate.limit:g}"),
            *(cell(gates.get(name)) for gates in recorded),
        ]
        for name, gate in newest.items()
    ]
    names = [run.name.partition(" ")[0] for run in runs]
    return table(["gate", "limit", *names], rows, numbers=len(names) + 1)


def _answered(row: "Answered") -> str:
    cells: dict[tuple[str, str], list[str]] = {}  # the same answer is shown once, with the names of who gave it
    for name, given in row.answers.items():
        cells.setdefault(given, []).append(name)
    answers = "".join(
        f"<div><b>{escape(', '.join(names))}</b> <small class={'holds' if how == 'right' else 'other'}>{escape(how)}"
        f"</small><code>{escape(answer)}</code></div>"
        for (how, answer), names in cells.items()
    )
    return (
        f"<div class=row><div class=head><b>{escape(row.id)}</b></div><pre>{escape(row.question)}</pre>"
        f"<div class=answers><div class=gold><b>gold</b><code>{escape(row.gold)}</code></div>{answers}</div></div>"
    )
