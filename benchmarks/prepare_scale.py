"""How long `prepare-dataset` takes and how much memory it needs as the rows grow.

    python -m benchmarks.prepare_scale --rows 50000 200000 1000000

The built-in rows are multiplied: each copy has schemas and tables of its own names, so that no row is a duplicate. For
each size the stage runs as in the pipeline, on the embedded model's tokenizer. Held to: at most 2 GB of RAM, and
processor time a row that grows by at most a quarter from the smallest size to the largest.
"""

import argparse
import json
import re
import string
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import measure
from qlora.recipe.params import EMBEDDED, Model
from qlora.runtime.outputs import write_json
from qlora.source import base_model

REPO = Path(__file__).parents[1]
RAM = 2e9
GROWTH = 1.25


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
    write_json(work / "models/base/base.json", record)
    params = YAML().load(REPO / "recipes/smollm2-sql.yaml")
    params["data"].update(source="data/raw/rows.jsonl", train_rows=None, validation_rows=None, test_rows=None)
    YAML().dump(params, work / "params.yaml")
    status, usage = measure.run([sys.executable, "-m", "stages.prepare_dataset"], work, work / "log")
    if status:
        sys.exit((work / "log").read_text()[-2000:])
    report = json.loads((work / "data/prepared/report.json").read_text())["rows"]
    assert sum(report[split] for split in ("train", "validation", "test")) >= 0.9 * count, report
    return usage


def write_rows(path: Path, count: int) -> None:
    """Write the built-in rows again and again, each time with other names of schemas and tables."""
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
    """`number` in letters, since digits make no difference to what counts as a near duplicate."""
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text = string.ascii_lowercase[digit] + text
        if number == 0:
            return text


if __name__ == "__main__":
    main()
