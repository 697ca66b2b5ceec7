"""Run a model's queries on made-up rows of a schema, to show what they return.

    tried = run(schema, [one, other])

The rows are made from the schema and the queries, as for a verdict (`qlora.sql.verdict`): a query for France finds it.
Each query runs in a confined process of its own, `python -m tools.trial`.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from qlora.sql.constraints import read_constraints
from qlora.sql.databases import Generator
from qlora.sql.engine import Engine
from qlora.sql.extract import extract
from qlora.sql.queries import parse
from qlora.sql.sandbox import QueryError, clock, confine_process
from qlora.sql.schema import read_schema
from qlora.sql.shapes import SHAPES
from qlora.sql.solutions import solve

SECONDS = 20  # wall-clock limit of a process; `sandbox.clock` ends a statement much sooner
ROWS = 100  # the most rows of a result that are shown

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Trial:
    """What one query did. `error` is None if it ran. `rows` are the first ROWS of its `total` rows."""

    sql: str
    error: str | None
    columns: list[str]
    rows: list[list]
    total: int


def run(context: str, answers: Sequence[str], *, dialect: str = "sqlite", seed: int = 0) -> list[Trial]:
    """Run the SQL in each of a model's `answers` on the same rows.

    Raises:
        SchemaError: if `context` is no schema.
    """
    read_schema(context, dialect)
    trials = []
    for number, answer in enumerate(answers):
        request = {"context": context, "answers": list(answers), "number": number, "dialect": dialect, "seed": seed}
        command = [sys.executable, "-m", "tools.trial"]
        done = subprocess.run(command, cwd=_ROOT, input=json.dumps(request), stdout=subprocess.PIPE, encoding="utf-8")
        if done.returncode:
            reason = "timeout" if done.returncode in (-signal.SIGPROF, -signal.SIGALRM) else "crashed"
            trials.append(Trial(extract(answer), f"{reason}: the sandbox stopped it", [], [], 0))
        else:
            trials.append(Trial(**json.loads(done.stdout)))
    return trials


def _try(context: str, answers: list[str], number: int, dialect: str, seed: int) -> Trial:
    schema = read_schema(context, dialect)
    queries = [extract(answer) for answer in answers]
    sql, engine = queries[number], Engine(dialect)
    with clock():
        trees = [tree for query in queries if (tree := parse(query, dialect)) is not None]
        constraints = read_constraints(trees, schema)
        groups = solve(constraints, schema, engine, Random(seed))
        rows = Generator(schema, constraints, groups).database(Random(seed), SHAPES[0])
    database = engine.database(schema)
    database.fill(rows)
    try:
        with clock():
            translated, tree = engine.read(sql, schema)
        result = database.run(translated)
    except QueryError as error:
        return Trial(sql, f"{error.kind}: {error}", [], [], 0)
    names = [part.alias or part.sql("sqlite") for part in getattr(tree, "selects", [])]
    if len(names) != result.width or any(name.endswith("*") for name in names):
        names = [f"column {number}" for number in range(1, result.width + 1)]
    shown = [[value.hex() if isinstance(value, bytes) else value for value in row] for row in result.rows[:ROWS]]
    return Trial(sql, None, names, shown, len(result.rows))


if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    confine_process()
    signal.alarm(SECONDS)
    print(json.dumps(asdict(_try(**request))))
