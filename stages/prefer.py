"""prefer --artifact NAME: let a larger model say whether it prefers an artifact's answers or the base model's.

Off unless evaluate.preference names artifacts. Writes results/scores/NAME.preference.json.
"""

import argparse
from pathlib import Path

from qlora.judging.preference import compare
from qlora.recipe.load import load_params
from qlora.rows import jsonl, prepared
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import check_writable, write_json

ANSWERS = Path("results/answers")
SCORES = Path("results/scores")


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a larger model compare one artifact's answers with the base's.")
    parser.add_argument("--artifact", required=True, metavar="NAME", help="as in evaluate.preference.artifacts")
    name, settings = parser.parse_args().artifact, load_params().evaluate.preference
    if name not in settings.artifacts:
        raise Refusal(f"evaluate.preference.artifacts does not have {name}")
    check_writable(SCORES)
    rows = prepared.read("test")
    base, tuned = (answers_of(artifact, rows) for artifact in ("base", name))
    found = compare(rows, base, tuned, settings)
    write_json(SCORES / f"{name}.preference.json", found)
    summary(f"prefer@{name}", {key: value for key, value in found.items() if key != "rows"})


def answers_of(artifact: str, rows: list[dict]) -> list[str]:
    """An artifact's answers to the test rows. Raises Refusal if they are missing or answer other rows."""
    stage = f"evaluate@{artifact}"
    records = jsonl.read_made(ANSWERS / f"{artifact}.jsonl", stage)
    if [record.get("id") for record in records] != [row["id"] for row in rows]:
        raise Refusal(f"{ANSWERS}/{artifact}.jsonl answers other rows: run `dvc repro {stage}`")
    return [record["answer"] for record in records]


if __name__ == "__main__":
    run_stage(main)
