"""judge --artifact NAME: judge the answers that `evaluate` wrote, without a model.

Writes results/scores/NAME.json (all metrics of the artifact) and results/predictions/NAME.jsonl (each row's answer and
scores, with the verdict).
"""

import argparse
from pathlib import Path

from qlora.judging.general import judge_general
from qlora.judging.verdicts import judge
from qlora.recipe.artifacts import find
from qlora.recipe.load import load_params
from qlora.rows import jsonl, prepared
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.environment import in_words
from qlora.runtime.inputs import made_by, read_json
from qlora.runtime.outputs import check_writable, write_json

ANSWERS = Path("results/answers")
PREDICTIONS = Path("results/predictions")
SCORES = Path("results/scores")


def main() -> None:
    # Settings, and what `evaluate` wrote
    name = parse_arguments()
    params = load_params()
    check_writable(SCORES, PREDICTIONS)
    path, stage = ANSWERS / f"{name}.json", f"evaluate@{name}"
    language = read_json(path, stage)
    with made_by(stage, path):
        environment = in_words(language["environment"])
    rows = prepared.read("test")
    answers = jsonl.read_made(ANSWERS / f"{name}.jsonl", stage)
    if [answer.get("id") for answer in answers] != [row["id"] for row in rows]:
        raise Refusal(f"{ANSWERS}/{name}.jsonl answers other rows: run `dvc repro {stage}`")

    # Verdicts
    records, metrics = judge(rows, [answer["answer"] for answer in answers], params)
    if other := language.pop("general", []):
        general = prepared.read_general()
        if len(general) != len(other):
            raise Refusal(f"{path} answers another general set: run `dvc repro {stage}`")
        metrics |= judge_general(general, other)
    metrics |= language

    # Outputs
    lines = (answer | record for answer, record in zip(answers, records, strict=True))
    jsonl.write(PREDICTIONS / f"{name}.jsonl", lines)
    write_json(SCORES / f"{name}.json", metrics)
    summary(f"judge@{name}", {k: v for k, v in metrics.items() if k != "general_right"} | {"environment": environment})


def parse_arguments() -> str:
    parser = argparse.ArgumentParser(description="Judge the answers of one artifact.")
    parser.add_argument("--artifact", required=True, metavar="NAME", help="as in evaluate.artifacts")
    name = parser.parse_args().artifact
    if find(name) is None:
        parser.error(f"there is no artifact {name!r}")
    return name


if __name__ == "__main__":
    run_stage(main)
