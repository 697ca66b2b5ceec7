"""report: one table from base to GGUF, and the curves, from what the other stages wrote.

Writes metrics/summary.json, plots/*.csv (Git) and results/report.md.
"""

import json
from pathlib import Path

from stages.console import Refusal, run_stage
from stages.outputs import write_json, write_text
from stages.params import Params, load_params

COLUMNS = {  # heading in the table -> metric, as far as the task has it
    "execution accuracy": "execution_accuracy",
    "exact match": "exact_match",
    "valid SQL": "valid_sql",
    "loss": "loss",
    "next token": "next_token_accuracy",
    "stops": "stop_rate",
    "tokens/s": "tokens_per_second",
    "MB": "size_mb",
}
SHARES = {"execution_accuracy", "exact_match", "valid_sql", "next_token_accuracy", "stop_rate"}


def main() -> None:
    params = load_params()
    artifacts = {name: read_metrics(Path(f"metrics/{name}.json")) for name in params.evaluate.artifacts}
    training = json.loads(Path("results/train/metrics.json").read_text())
    data = json.loads(Path("data/prepared/report.json").read_text())

    write_json(Path("metrics/summary.json"), summarize(artifacts, training, data, params))
    write_text(Path("plots/loss.csv"), Path("results/train/log.csv").read_text())
    write_artifacts_csv(Path("plots/artifacts.csv"), artifacts, params)
    table = markdown_table(artifacts)
    write_text(Path("results/report.md"), markdown_report(table, training, data, params))
    print(f"\nreport\n{table}\ndetails: results/report.md; pictures: dvc plots show --open")


def read_metrics(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run `dvc repro evaluate@{path.stem}`") from None


def score_name(params: Params) -> str:
    """The metric that stands for an artifact's quality in a plot."""
    return "execution_accuracy" if params.data.task == "text-to-sql" else "next_token_accuracy"


def summarize(artifacts: dict[str, dict], training: dict, data: dict, params: Params) -> dict:
    """What a pull request should show: few numbers, no timings but the speed of what is served."""
    score = score_name(params)
    return {
        score: {name: metrics[score] for name, metrics in artifacts.items()},
        "loss": {name: metrics["loss"] for name, metrics in artifacts.items()},
        "stop_rate": {name: metrics["stop_rate"] for name, metrics in artifacts.items()},
        "size_mb": {name: metrics["size_mb"] for name, metrics in artifacts.items()},
        "train": {name: training[name] for name in ("train_loss", "validation_loss", "trainable_parameters", "tokens")},
        "data": {f"{split}_rows": data["rows"][split] for split in ("train", "validation", "test")},
    }


def write_artifacts_csv(path: Path, artifacts: dict[str, dict], params: Params) -> None:
    """One line an artifact, for the plots of quality by artifact and by size."""
    lines = [["artifact", "score", "loss", "stop_rate", "size_mb"]]
    for name, metrics in artifacts.items():
        lines.append([name, metrics[score_name(params)], metrics["loss"], metrics["stop_rate"], metrics["size_mb"]])
    write_text(path, "".join(",".join(map(str, line)) + "\n" for line in lines))


def markdown_table(artifacts: dict[str, dict]) -> str:
    """The artifacts in pipeline order, a column for each measure that they have."""
    columns = {head: name for head, name in COLUMNS.items() if all(name in metrics for metrics in artifacts.values())}
    rows = [["artifact", *columns]]
    for artifact, metrics in artifacts.items():
        rows.append([artifact, *(show(name, metrics[name]) for name in columns.values())])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + (":" if at else "-") for at, width in enumerate(widths)) + "|")
    return "\n".join(lines)


def show(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name in SHARES else f"{value:,.1f}" if value >= 10 else f"{value:.3f}"


def markdown_report(table: str, training: dict, data: dict, params: Params) -> str:
    """results/report.md."""
    reasons = [f"- {count} rows: {reason}" for reason, count in data["rows"]["rejected"].items()] or ["- none"]
    tokens = data["tokens"]["train"]
    return "\n".join(
        [
            f"# {params.model.id} on {params.data.source}",
            "",
            table,
            "",
            f"All artifacts answered the same {data['rows']['test']} test rows of {data['groups']['test']} groups that "
            "training never saw, greedily.",
            "",
            "## Training",
            "",
            *(f"- {name.replace('_', ' ')}: {value}" for name, value in training.items()),
            "",
            "## Rows",
            "",
            f"- training: {data['rows']['train']} rows of {data['groups']['train']} groups",
            f"- tokens a row: median {tokens['p50']}, 95 % {tokens['p95']}, longest {tokens['max']}",
            f"- longer than train.max_length: {tokens['truncated_share']:.1%}",
            "",
            "Not used:",
            "",
            *reasons,
            "",
            *failures(params),
        ]
    )


def failures(params: Params, most: int = 10) -> list[str]:
    """The first test rows that an artifact got wrong, with every artifact's answer; for chat, the first rows."""
    answers = {}
    for name in params.evaluate.artifacts:
        with Path(f"results/predictions/{name}.jsonl").open(encoding="utf-8") as file:
            answers[name] = [json.loads(line) for line in file]
    with Path("data/prepared/test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tuned = [name for name in answers if name != "base"] or list(answers)
    chosen = [at for at in range(len(rows)) if not all(answers[name][at].get("strict", False) for name in tuned)]
    lines = ["## Answers to read", ""]
    for at in chosen[:most]:
        question, gold = rows[at]["messages"][-2:]
        lines += [
            f"### {rows[at]['id']}",
            "",
            "```",
            question["content"],
            "```",
            "",
            f"gold: `{one_line(gold['content'])}`",
            "",
        ]
        for name in answers:
            answer = answers[name][at]
            verdict = {True: "right", False: answer.get("error") or "wrong", None: ""}[answer.get("strict")]
            lines.append(f"- {name} {verdict}: `{one_line(answer['answer'])}`")
        lines.append("")
    return lines


def one_line(text: str, most: int = 300) -> str:
    text = " ".join(text.split()).replace("`", "'")
    return text if len(text) <= most else text[:most] + " ..."


if __name__ == "__main__":
    run_stage(main)
