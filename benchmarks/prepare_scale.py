"""How long `prepare-dataset` takes and how much memory it needs as the number of rows grows.

    python -m benchmarks.prepare_scale --rows 50000 200000 1000000

The built-in rows are multiplied; each copy renames schemas and tables, so that no row is a duplicate. For each size the
stage runs as in the pipeline, with the embedded model's tokenizer. Exits with status 1 beyond these bounds: 2 GB of
RAM, and CPU time a row that grows by a quarter from the first size to the last.
"""

import argparse
import json
import re
import string
import sys
import tempfile
from pathlib import Path

from benchmarks.parts import measure
from benchmarks.parts.measure import REPO
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows.prepared import PREPARED, SPLITS
from qlora.runtime.outputs import write_json
from qlora.source import base_model

from ruamel.yaml import YAML

RAM = 2e9  # bytes
GROWTH = 1.25  # of the CPU time a row, from the first size to the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    options = parser.parse_args()
    embedded = Model(id=EMBEDDED)
    record = base_model.describe(embedded, base_model.fetch(embedded))
    costs, ram = [], 0
    print(f"{'rows':>10} {'seconds':>8} {'CPU s':>8} {'ms/row':>8} {'RAM GB':>8}")
    for count in options.rows:
        with tempfile.TemporaryDirectory() as work:
            usage = prepare(Path(work), count, record)
        costs.append(usage.cpu / count)
        ram = max(ram, usage.ram)
        print(
            f"{count:>10,} {usage.seconds:8.1f} {usage.cpu:8.1f} {1000 * costs[-1]:8.2f} {usage.ram / 1e9:8.2f}",
            flush=True,
        )
    sys.exit(ram > RAM or costs[-1] / costs[0] > GROWTH)


def prepare(work: Path, count: int, record: dict) -> measure.Usage:
    """Run the stage on `count` rows."""
    (work / "data/raw").mkdir(parents=True)
    write_rows(work / "data/raw/rows.jsonl", count)
    write_json(work / ARTIFACTS["base"].folder / BASE_RECORD, record)
    params = YAML().load(REPO / "recipes/smollm2-sql.yaml")
    params["data"].update(source="data/raw/rows.jsonl", train_rows=None, validation_rows=None, test_rows=None)
    YAML().dump(params, work / "params.yaml")
    status, usage = measure.run([sys.executable, "-m", "stages.prepare_dataset"], work, work / "log")
    if status:
        sys.exit((work / "log").read_text()[-2000:])
    report = json.loads((work / PREPARED / "report.json").read_text())["rows"]
    assert sum(report[split] for split in SPLITS) >= 0.9 * count, report
    return usage


def write_rows(path: Path, count: int) -> None:
    """Write `count` rows: copies of the built-in ones, each copy with its own names of schemas and tables."""
    lines = (REPO / "data/raw/text2sql.jsonl").read_text().splitlines()
    with path.open("w") as file:
        for number in range(count):
            copy, line = divmod(number, len(lines))
            row = json.loads(lines[line])
            name = letters(copy)
            tables = "|".join(re.findall(r"CREATE TABLE (\w+)", row["context"]))
            renamed = {
                key: re.sub(rf"\b({tables})\b", rf"\1_{name}", row[key]) for key in ("context", "question", "answer")
            }
            file.write(json.dumps(row | renamed | {"schema": f"{row['schema']}_{name}"}) + "\n")


def letters(number: int) -> str:
    """`number` in base 26, in letters: names that differ only in digits would count as near duplicates."""
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text = string.ascii_lowercase[digit] + text
        if number == 0:
            return text


if __name__ == "__main__":
    main()
