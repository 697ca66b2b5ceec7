"""How far the verdicts on PostgreSQL's and MySQL's queries can be trusted: a server of the dialect is the reference.

python -m benchmarks.sql_dialects                     queries translated to SQLite
python -m benchmarks.sql_dialects --engine server     queries run on the server itself

QLORA_POSTGRES and QLORA_MYSQL name the servers (docs/quality.md). A mutant differs if the server returns other rows for
it on one of `--rows-of` sets of made-up rows that the scorer does not see; a rewrite is the same if it returns the same
on all.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random

from benchmarks.parts.dialect_queries import QUERIES, SCHEMAS
from benchmarks.parts.sql_mutants import MUTATORS
from benchmarks.parts.sql_rewrites import REWRITERS
from qlora.sql import engine
from qlora.sql.engine import Engine
from qlora.sql.extract import extract
from qlora.sql.parsing import parse
from qlora.sql.queries import is_ordered
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import read_schema
from qlora.sql.suite import Suite
from qlora.sql.verdict import score

from tqdm import tqdm


class Reference:
    """What the server of a dialect returns for a gold query and for others."""

    def __init__(self, dialect: str, run: str, rows_of: int):
        self.engine, self.schema = Engine(dialect, dialect, run), read_schema(SCHEMAS[dialect], dialect)
        self.empty, self.rows_of = self.engine.database(self.schema), rows_of

    def read(self, sql: str) -> tuple | None:
        """The query as the server runs it, with its syntax tree; None if the server refuses it."""
        try:
            text, tree = self.engine.read(sql, self.schema)
            self.empty.run(text)
        except QueryError as error:
            if error.kind != "data":
                return None
        return text, tree

    def differs(self, gold: tuple, other: tuple, seed: str) -> bool:
        """Whether the results differ on rows made for both queries, where that of the gold query is determined."""
        key = f"reference|{seed}"
        suite = Suite(self.engine, self.schema, *gold, [other[1]], self.rows_of, key, lenient=False)
        try:
            return not suite.agrees(other[0], is_ordered(other[1]), case=True)
        except QueryError:
            return True


def variants(dialect: str, sql: str) -> Iterator[tuple[str, str]]:
    """(mutant or rewrite, query) for the variants of a query."""
    schema, tree = read_schema(SCHEMAS[dialect], dialect), parse(sql, dialect)
    found: dict[str, str] = {sql: ""}
    for mutator in MUTATORS:
        for mutant in mutator(tree.copy(), schema):
            with suppress(AttributeError):  # some are nothing that sqlglot can write
                found.setdefault(mutant.sql(dialect), "mutant")
    for rewriter in REWRITERS:
        for rewrite in rewriter(tree, sql, dialect):
            if rewriter.__name__ not in ("text_case", "other_case"):  # which mean something else in PostgreSQL
                found.setdefault(rewrite, "rewrite")
    yield from ((kind, text) for text, kind in found.items() if kind)


def measure(dialect: str, run: str, options: argparse.Namespace) -> Counter:
    """Counts of what was judged and how."""
    reference = Reference(dialect, run, options.rows_of)
    counts: Counter = Counter()
    rows, predictions, truths = [], [], []
    queries = [sql for some in QUERIES[dialect].values() for sql in some]
    for sql in tqdm(queries, desc=f"{dialect}: the server's answers", disable=None):
        gold = reference.read(sql)
        counts["golds"] += 1
        rows.append({"question": "", "context": SCHEMAS[dialect], "answer": sql})
        predictions.append(sql)
        truths.append("gold")
        some = list(variants(dialect, sql))
        Random(sql).shuffle(some)
        for kind, text in some[: options.variants]:
            other = reference.read(extract(text))
            differs = other is not None and reference.differs(gold, other, text)
            truth = "refused" if other is None else "different" if differs else "same"
            if (kind, truth) in (("mutant", "different"), ("rewrite", "same"), ("mutant", "refused")):
                rows.append(rows[-1] | {"answer": sql})
                predictions.append(text)
                truths.append(truth)
    name = "sqlite" if options.engine == "sqlite" else dialect
    verdicts = score(rows, predictions, dialect=dialect, engine=name, processes=options.processes)
    for row, prediction, truth, verdict in zip(rows, predictions, truths, verdicts, strict=True):
        wrong = {
            "gold": verdict.gold == "invalid",
            "different": verdict.strict,
            "same": verdict.gold is None and not verdict.strict,
            "refused": verdict.gold is None and verdict.error is None,
        }[truth]
        counts[truth] += truth != "gold" and verdict.gold is None
        counts[f"{truth}, wrong"] += wrong
        counts["golds undetermined"] += truth == "gold" and verdict.gold == "undetermined"
        if options.show and (wrong or (truth == "gold" and verdict.gold)):
            print(f"{truth} {verdict}\n  gold:       {row['answer']}\n  prediction: {prediction}")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", choices=("sqlite", "server"), default="sqlite", help="what the scorer runs queries on"
    )
    parser.add_argument("--dialects", nargs="+", choices=tuple(QUERIES), default=tuple(QUERIES))
    parser.add_argument("--variants", type=int, default=20, help="mutants and rewrites of each query, at most")
    parser.add_argument("--rows-of", type=int, default=20, help="sets of rows on which the server decides")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the queries that were judged wrongly")
    options = parser.parse_args()
    for dialect in options.dialects:
        with engine.running(dialect) as run:
            counts = measure(dialect, run, options)
        print(f"{dialect} on {options.engine}")
        for label, wrong, of in (
            ("golds called invalid", "gold, wrong", "golds"),
            ("golds undetermined", "golds undetermined", "golds"),
            ("wrong called equal", "different, wrong", "different"),
            ("equivalents called different", "same, wrong", "same"),
            ("refused by the server, run here", "refused, wrong", "refused"),
        ):
            print(
                f"  {label:<32}{counts[wrong]:>5} of {counts[of]:<6}{100 * counts[wrong] / max(1, counts[of]):6.2f} %"
            )


if __name__ == "__main__":
    main()
