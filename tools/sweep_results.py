"""The results of a sweep: a table of the experiments, and a picture of the score for each parameter."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from qlora.recipe.metrics import METRICS
from qlora.reporting import summary
from qlora.reporting.tables import number, show, table
from qlora.runtime.outputs import write_text
from tools import git
from tools.sweep_grid import Combination

import pandas
from matplotlib.figure import Figure


def write_results(experiments: dict[str, Combination], done: dict[str, str], artifact: str, output: Path) -> str:
    """Write the table (Markdown, CSV) and the pictures; return the table.

    Args:
        experiments: Name -> its parameters.
        done: Name -> commit of those that have finished.
        artifact: The one whose score sorts the table.
        output: A folder.
    """
    summaries = {name: json.loads(git.file_at(done[name], summary.PATH)) for name in experiments if name in done}
    frame = pandas.DataFrame(
        [
            {"experiment": name, **experiments[name]}
            | {f"score.{scored}": score for scored, score in found["score"].items()}
            | {"validation_loss": found["validation_loss"]}
            for name, found in summaries.items()
        ]
    ).sort_values(f"score.{artifact}", ascending=False)
    write_text(output / "table.csv", frame.to_csv(index=False))
    metric = next(iter(summaries.values()))["metric"]
    page = markdown(frame, metric)
    write_text(output / "table.md", f"Score: {METRICS[metric].heading}.\n\n{page}\n")
    for parameter in next(iter(experiments.values())):
        points = [(experiments[name][parameter], found["score"]) for name, found in summaries.items()]
        draw(output / f"{parameter}.svg", parameter, METRICS[metric].heading, points)
    return f"{page}\ntable and pictures: {output}"


def markdown(frame: pandas.DataFrame, metric: str) -> str:
    """The table for people."""
    rows = [
        [
            show(metric, value) if name.startswith("score.") else number(value) if name == "validation_loss" else value
            for name, value in line.items()
        ]
        for line in frame.to_dict("records")
    ]
    return table(list(frame.columns), rows)


def draw(path: Path, parameter: str, score: str, points: Sequence[tuple[str, dict[str, float]]]) -> None:
    """Score against one parameter: a dot for each experiment, a line through the means, a colour for each artifact."""
    values = list(dict.fromkeys(value for value, _ in points))
    with contextlib.suppress(ValueError):
        values.sort(key=float)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    scores = pandas.DataFrame([{"at": values.index(value), **found} for value, found in points])
    for artifact in scores.columns.drop("at"):
        means = scores.groupby("at")[artifact].mean()
        (line,) = axes.plot(means.index, means, label=artifact)
        axes.plot(scores["at"], scores[artifact], "o", color=line.get_color())
    axes.set(xlabel=parameter, ylabel=score, xticks=range(len(values)), xticklabels=values)
    axes.legend()
    figure.savefig(path)
