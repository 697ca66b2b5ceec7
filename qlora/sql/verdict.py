"""Whether a predicted query means what the gold query means, judged from the schema alone.

    verdicts = score(rows, answers)
    print(totals(verdicts))

For each row, `databases` makes up databases, and both queries run on them in a sandbox (`sandbox`), in the worker
processes of `pool`. A prediction is different if its result differs from the gold query's on one of them. If it agrees
on all, it is compared on twice as many databases, made from both queries; if it agrees on these, too, it is equal. A
gold query whose result is the same on all databases judges nothing: its row is undetermined.

Error classes of a prediction: empty, not_a_query, several_statements, syntax, unknown_table, unknown_column,
unknown_function, ambiguous, invalid (any other error of the engine's), data (it fails on some rows only: a division by
zero), denied (it does more than read the schema's own tables, or calls a function that is not allowed), untranslated
(SQLite lacks what it uses; only `engine` can be of help), timeout, too_large, too_many_rows, crashed (it ended the
worker), and no_schema (there is no schema to run it on).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from qlora.runtime.machine import cpu_count
from qlora.sql.engine import Name, running
from qlora.sql.judge import Verdict
from qlora.sql.pool import judge_in_workers
from qlora.sql.reasons import by_reason

from sqlglot.dialects.dialect import Dialect

__all__ = ["Verdict", "score", "totals", "unjudged"]


def score(
    rows: Sequence[Mapping],
    predictions: Sequence[str],
    *,
    seed: int = 0,
    databases: int = 10,
    dialect: str = "sqlite",
    engine: Name = "sqlite",
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Verdict]:
    """Judge `predictions` (raw answers of a model) against `rows` (`question`, `context`, `answer`), in order.

    `databases`: their number for each row. `dialect`: that of the context, the answer and the prediction, by sqlglot's
    name. `engine` runs them. `processes`: by default one for each CPU that this process may use. `progress` is called,
    in this thread, with the number of rows done. A verdict depends on its row, its prediction, `seed`, `databases`,
    `dialect` and `engine` alone, not on the other rows or on `processes`. Rows with the same context and answer share
    their databases, so several artifacts are scored fastest in one call. Raises ValueError if the lengths differ or the
    dialect is unknown, and Refusal if the engine cannot be used.
    """
    Dialect.get_or_raise(dialect)
    if len(rows) != len(predictions):
        raise ValueError(f"{len(rows)} rows, but {len(predictions)} predictions")
    tasks: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        tasks.setdefault((row["context"], row["answer"]), []).append(index)
    settings = {"seed": seed, "databases": databases, "dialect": dialect, "engine": engine}
    # A worker takes time to start: a few rows do not need many.
    processes = min(processes or cpu_count(), -(-len(tasks) // 8))
    verdicts: list[Verdict | None] = [None] * len(rows)
    with running(engine) as run:
        judged = judge_in_workers(tasks, predictions, settings | {"run": run}, processes)
        for done, (index, verdict) in enumerate(judged, start=1):
            verdicts[index] = verdict
            if progress:
                progress(done)
    return verdicts


def unjudged(
    rows: Sequence[Mapping],
    *,
    seed: int = 0,
    databases: int = 10,
    dialect: str = "sqlite",
    engine: str = "sqlite",
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """Reason -> {"rows": their number, "example": one of them}, the most frequent first.

    The arguments are those of `verdict.score`. Raises Refusal if the engine cannot be used.
    """
    verdicts = score(
        rows,
        [""] * len(rows),
        seed=seed,
        databases=databases,
        dialect=dialect,
        engine=engine,
        progress=progress,
    )
    return by_reason(rows, [one.reason if one.gold else None for one in verdicts])


def totals(verdicts: Iterable[Verdict]) -> dict:
    """Counts and rates over `verdicts`.

    `strict` and `lenient` are rates (0 to 1) over the `judged` rows. The gold queries of the other rows are invalid or
    undetermined, as `gold_invalid` and `undetermined` count; `reasons` counts why. Which rows are judged does not
    depend on the predictions: it is the same for all artifacts. `exact` and `valid` are rates over all `n` rows.
    `errors`: class -> count, over all rows. A rate over no rows is None.
    """
    verdicts = list(verdicts)
    judged = [verdict for verdict in verdicts if verdict.gold is None]

    def rate(name: str, among: list[Verdict]) -> float | None:
        return round(sum(getattr(verdict, name) for verdict in among) / len(among), 6) if among else None

    return {
        "n": len(verdicts),
        "judged": len(judged),
        "strict": rate("strict", judged),
        "lenient": rate("lenient", judged),
        "exact": rate("exact", verdicts),
        "valid": rate("valid", verdicts),
        "undetermined": sum(verdict.gold == "undetermined" for verdict in verdicts),
        "gold_invalid": sum(verdict.gold == "invalid" for verdict in verdicts),
        "reasons": dict(Counter(verdict.reason for verdict in verdicts if verdict.gold).most_common()),
        "errors": dict(sorted(Counter(verdict.error for verdict in verdicts if verdict.error).items())),
    }
