"""Score text-to-SQL predictions of any model.

python -m tools.score_sql --rows rows.jsonl --predictions predictions.jsonl --output scores.json

Rows are objects with `question`, `context` (CREATE TABLE statements) and `answer` (the gold query); predictions are
objects with `prediction` (the model's raw answer, or null for none, which is wrong), in the same order.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from qlora.rows import jsonl
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import write_json
from qlora.sql import engine
from qlora.sql.engine import Name
from qlora.sql.reasons import by_reason, in_words
from qlora.sql.verdict import score, totals

from sqlglot.dialects.dialect import Dialect
from tqdm import tqdm


def main() -> None:
    options = _options()
    rows = read_lines(options.rows, ("question", "context", "answer"))
    predictions = read_lines(options.predictions, ("prediction",), null=True)
    if len(rows) != len(predictions):
        raise Refusal(
            f"{options.rows} has {len(rows)} rows but {options.predictions} has {len(predictions)} predictions: "
            "give one prediction for each row, in the same order"
        )
    if not options.output.parent.is_dir():
        raise Refusal(f"there is no folder {options.output.parent} to write {options.output.name} to: create it first")
    if options.databases < 1 or (options.processes or 1) < 1:
        raise Refusal("--databases and --processes must be at least 1")
    try:
        Dialect.get_or_raise(options.dialect)
    except ValueError as error:
        raise Refusal(f"--dialect: {error}") from None
    if options.engine in ("postgres", "mysql") and options.dialect != options.engine:
        raise Refusal(f"--engine {options.engine} runs only its own dialect: add --dialect {options.engine}")
    engine.check(options.engine)
    with tqdm(total=len(rows), unit="row", disable=None) as bar:
        verdicts = score(
            rows,
            [line["prediction"] or "" for line in predictions],
            seed=options.seed,
            databases=options.databases,
            dialect=options.dialect,
            engine=options.engine,
            processes=options.processes,
            progress=lambda done: bar.update(done - bar.n),
        )
    counts = totals(verdicts)
    write_json(options.output, {"totals": counts, "rows": [asdict(verdict) for verdict in verdicts]})
    unjudged = by_reason(rows, [verdict.reason if verdict.gold else None for verdict in verdicts])
    summary(
        f"{len(rows)} predictions scored into {options.output}",
        _shown(counts) | {"cannot be judged": in_words(unjudged, len(rows))},
    )


def read_lines(path: Path, keys: tuple[str, ...], *, null: bool = False) -> list[dict]:
    """Read JSON Lines whose objects have a text (with `null`, or null) under each of `keys`. Raises Refusal."""
    found = []
    for number, value in jsonl.read(path):
        for key in keys:
            if not isinstance(value.get(key), str) and not (null and key in value and value[key] is None):
                raise Refusal(f'{path}, line {number} has no text under "{key}"')
        found.append(value)
    if not found:
        raise Refusal(f"{path} is empty: there is nothing to score")
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines with question, context and answer")
    parser.add_argument("--predictions", type=Path, required=True, help="JSON Lines with prediction, in the same order")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write the scores to")
    parser.add_argument("--dialect", default="sqlite", help="dialect of the SQL: sqlite, postgres, mysql, ...")
    parser.add_argument(
        "--engine", choices=get_args(Name), default="sqlite", help="what runs the SQL: evaluate.engine in params.yaml"
    )
    parser.add_argument("--databases", type=int, default=10, help="number of databases for each row")
    parser.add_argument("--seed", type=int, default=0, help="seed of the databases")
    parser.add_argument("--processes", type=int, help="worker processes (default: one for each CPU)")
    return parser.parse_args()


def _shown(counts: dict) -> dict[str, object]:
    def percent(rate: float | None) -> str:
        return "-" if rate is None else f"{100 * rate:.1f} %"

    return {
        "strict": f"{percent(counts['strict'])} of {counts['judged']} judged",
        "lenient": f"{percent(counts['lenient'])} of {counts['judged']} judged",
        "exact": percent(counts["exact"]),
        "valid": percent(counts["valid"]),
        "errors": ", ".join(f"{name} {count}" for name, count in counts["errors"].items()) or "none",
    }


if __name__ == "__main__":
    run_stage(main)
