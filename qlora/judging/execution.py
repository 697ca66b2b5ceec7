"""Execution accuracy: answers in SQL are executed on generated databases, beside the gold queries."""

from collections.abc import Sequence

from qlora.recipe.schema import Params
from qlora.sql import engine, verdict

from tqdm import tqdm


def judge(rows: Sequence[dict], answers: Sequence[str], params: Params) -> tuple[list[dict], dict]:
    """One record a row, and the metrics of text-to-SQL.

    A record holds what its row adds to these metrics, `error`, the class of the error that the answer raised, and
    `unjudged`, why no answer to its row can be judged. The accuracies are of the other rows.
    """
    settings = params.evaluate
    engine.check(settings.engine)
    with tqdm(total=len(rows), desc="running SQL", unit=" rows") as bar:
        verdicts = verdict.score(
            rows,
            answers,
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
            engine=settings.engine,
            progress=lambda done: bar.update(done - bar.n),
        )
    records = [
        {
            "execution_accuracy": None if one.gold else one.strict,
            "execution_accuracy_lenient": None if one.gold else one.lenient,
            "exact_match": one.exact,
            "valid_sql": one.valid,
            "error": one.error,
            "unjudged": one.reason if one.gold else None,
        }
        for one in verdicts
    ]
    totals = verdict.totals(verdicts)
    return records, {
        "execution_accuracy": totals["strict"],
        "execution_accuracy_lenient": totals["lenient"],
        "exact_match": totals["exact"],
        "valid_sql": totals["valid"],
        "judged": totals["judged"],
        "gold_undetermined": totals["undetermined"],
        "gold_invalid": totals["gold_invalid"],
    }
