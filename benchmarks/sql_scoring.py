"""How far the text-to-SQL verdicts can be trusted, and what they cost.

python -m benchmarks.sql_scoring mutants rows.jsonl --count 400     wrong queries that are called equal
python -m benchmarks.sql_scoring search rows.jsonl --count 300      those among them that a search finds to be different
python -m benchmarks.sql_scoring rewrites rows.jsonl --count 400    right queries that are called different
python -m benchmarks.sql_scoring speed rows.jsonl --count 1000      seconds for that many predictions
python -m benchmarks.sql_scoring fuzz rows.jsonl --minutes 10       random statements that end a worker, if any

Rows are JSON Lines with `question`, `context` (or the key that --context names) and `answer`; "realistic" is a set of
rows with whole schemas that comes with the benchmark.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks.parts.realistic_rows import realistic_rows
from benchmarks.parts.sql_mutants import MUTATORS
from benchmarks.parts.sql_rewrites import REWRITERS
from benchmarks.parts.sql_search import different
from qlora.sql.comparison import same_results
from qlora.sql.judge import Judge
from qlora.sql.queries import is_ordered, normal_form, parse
from qlora.sql.sandbox import Database, QueryError
from qlora.sql.schema import read_schema
from qlora.sql.verdict import score, totals


def read_rows(path: str, context: str, count: int, seed: int = 0) -> list[dict]:
    """`count` rows (or all), chosen at random but always the same."""
    if path == "realistic":
        return realistic_rows()[:count]
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [{"question": row["question"], "context": row[context], "answer": row["answer"]} for row in rows]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def mutate(row: dict) -> list[tuple[str, str]]:
    """(mutator, query) for the distinct mutants of a row's answer that run on its schema."""
    schema = read_schema(row["context"])
    tree = parse(row["answer"])
    empty = Database(schema.columns())
    seen = {normal_form(tree, schema), tree.sql("sqlite")}
    found = []
    for mutator in MUTATORS:
        for mutant in mutator(tree.copy(), schema):
            sql = mutant.sql("sqlite")
            form = normal_form(mutant, schema) or sql
            if form in seen:
                continue
            seen.add(form)
            try:
                empty.run(sql)
            except QueryError:
                continue
            found.append((mutator.__name__, sql))
    return found


def judge_mutants(row: dict, seed: int) -> list[tuple[str, str, bool, bool, bool]]:
    """(mutator, query, equal on the empty database, equal on the gold query's databases, called equal) for each."""
    judge = Judge(row["context"], row["answer"], seed=seed)
    if judge.gold:
        return []
    found = []
    for name, sql in mutate(row):
        ordered = is_ordered(judge.tree)
        on_empty = same_results(judge.empty.run(judge.sql), judge.empty.run(sql), ordered)
        try:
            on_gold = judge.suites["strict"].agrees(sql, is_ordered(parse(sql)))
        except QueryError:
            on_gold = False
        found.append((name, sql, on_empty, on_gold, on_gold and judge.judge(sql).strict))
    return found


def mutants(options: argparse.Namespace) -> None:
    rows = read_rows(options.rows, options.context, options.count)
    table = defaultdict(Counter)
    with ProcessPoolExecutor(options.processes) as pool:
        for row, found in zip(
            rows, pool.map(partial(judge_mutants, seed=options.seed), rows, chunksize=8), strict=True
        ):
            table["rows"]["judged"] += bool(found)
            for name, sql, on_empty, on_gold, called_equal in found:
                for line in (name, "all"):
                    table[line].update(mutants=1, empty=on_empty, gold=on_gold, equal=called_equal)
                if called_equal and options.show:
                    print(f"{name}\n  {row['context'][:400]}\n  gold:   {row['answer']}\n  mutant: {sql}")
    print(f"{len(rows)} rows")
    print(
        f"{'mutator':<16}{'mutants':>9}{'empty database':>16}{'gold-seeded':>13}{'called equal':>14}{'of mutants':>12}"
    )
    for name in [*(mutator.__name__ for mutator in MUTATORS), "all"]:
        line = table[name]
        total = max(1, line["mutants"])
        print(
            f"{name:<16}{line['mutants']:>9}{100 * line['empty'] / total:>14.1f} %{100 * line['gold'] / total:>11.2f} %"
            f"{line['equal']:>14}{100 * line['equal'] / total:>10.2f} %"
        )


def search_row(row: dict, seed: int) -> tuple[str | None, list[tuple[str, str, bool, bool]]]:
    """The status of the gold query, and (mutator, query, called equal, found to be different) for each mutant."""
    judge = Judge(row["context"], row["answer"], seed=seed)
    if judge.gold:
        return judge.gold, []
    found = mutate(row)
    equal = {sql for _, sql in found if judge.judge(sql).strict}
    apart = different(row["context"], row["answer"], [sql for _, sql in found], seed=seed)
    return None, [(name, sql, sql in equal, sql in apart) for name, sql in found]


def search(options: argparse.Namespace) -> None:
    rows = read_rows(options.rows, options.context, options.count)
    table, gold = defaultdict(Counter), Counter()
    with ProcessPoolExecutor(options.processes) as pool:
        results = pool.map(partial(search_row, seed=options.seed), rows, chunksize=4)
        for row, (status, found) in zip(rows, results, strict=True):
            gold[status or "judged"] += 1
            for name, sql, equal, apart in found:
                for line in (name, "all"):
                    table[line].update(
                        mutants=1, apart=apart, wrong=equal and apart, unseen=apart is False and not equal
                    )
                if equal and apart and options.show:
                    print(f"{name}\n  gold:   {row['answer']}\n  mutant: {sql}")
    print(f"{len(rows)} rows: {dict(gold)}")
    print(f"{'mutator':<16}{'mutants':>9}{'found different':>17}{'called equal':>14}{'of mutants':>12}")
    for name in [*(mutator.__name__ for mutator in MUTATORS), "all"]:
        line = table[name]
        share = 100 * line["wrong"] / max(1, line["mutants"])
        print(f"{name:<16}{line['mutants']:>9}{line['apart']:>17}{line['wrong']:>14}{share:>10.2f} %")


def judge_rewrites(row: dict, seed: int) -> list[tuple[str, str, object]]:
    """(rewriter, query, verdict) for each rewrite of a row's answer."""
    judge = Judge(row["context"], row["answer"], seed=seed)
    if judge.gold:
        return []
    found = []
    for rewriter in REWRITERS:
        for sql in dict.fromkeys(rewriter(parse(row["answer"]), row["answer"])):
            found.append((rewriter.__name__, sql, judge.judge(sql)))
    return found


def rewrites(options: argparse.Namespace) -> None:
    rows = read_rows(options.rows, options.context, options.count)
    table = defaultdict(Counter)
    with ProcessPoolExecutor(options.processes) as pool:
        for row, found in zip(
            rows, pool.map(partial(judge_rewrites, seed=options.seed), rows, chunksize=8), strict=True
        ):
            for name, sql, verdict in found:
                for line in (name, "all"):
                    table[line].update(rewrites=1, different=not verdict.strict)
                if not verdict.strict and options.show:
                    print(f"{name} {verdict}\n  {row['context'][:400]}\n  gold:    {row['answer']}\n  rewrite: {sql}")
    print(f"{len(rows)} rows")
    print(f"{'rewriter':<16}{'rewrites':>10}{'called different':>18}")
    for name in [*(rewriter.__name__ for rewriter in REWRITERS), "all"]:
        line = table[name]
        print(
            f"{name:<16}{line['rewrites']:>10}{line['different']:>12}"
            f"{100 * line['different'] / max(1, line['rewrites']):>6.2f} %"
        )


def answers(rows: list[dict], seed: int) -> list[str]:
    """One answer a row, as of a model: 40 % the gold query, 30 % a rewrite, 25 % a mutant, 5 % something else."""
    chance = random.Random(seed)
    found = []
    for row in rows:
        kind = chance.choices(("gold", "rewrite", "mutant", "other"), (40, 30, 25, 5))[0]
        options = {
            "gold": lambda row: [row["answer"]],
            "rewrite": lambda row: [sql for one in REWRITERS for sql in one(parse(row["answer"]), row["answer"])],
            "mutant": lambda row: [sql for _, sql in mutate(row)],
            "other": lambda row: ["I cannot answer that.", "SELECT nothing FROM nowhere", row["answer"][:-9]],
        }[kind](row)
        found.append(chance.choice(options or [row["answer"]]))
    return found


def speed(options: argparse.Namespace) -> None:
    rows = read_rows(options.rows, options.context, options.count)
    predictions = answers(rows, options.seed)
    start = time.perf_counter()
    verdicts = score(rows, predictions, seed=options.seed, processes=options.processes)
    seconds = time.perf_counter() - start
    print(f"{len(rows)} predictions in {seconds:.1f} s with {options.processes} processes")
    print(json.dumps(totals(verdicts)))


def fuzz(options: argparse.Namespace) -> None:
    """Print the statements on which a worker ended other than by its timers; there should be none."""
    rows = read_rows(options.rows, options.context, options.count)
    words = [word for row in rows for word in row["answer"].split()]
    chance = random.Random(options.seed)

    def odd(row: dict) -> str:
        kind = chance.randrange(5)
        if kind == 0:
            return "".join(chr(chance.randrange(1, 0x3000)) for _ in range(chance.randrange(60)))
        if kind == 1:
            return "SELECT " + " ".join(chance.choices(words, k=chance.randrange(1, 25)))
        pieces = row["answer"].split() or ["SELECT"]
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(pieces))
            pieces[place : place + chance.randrange(2)] = chance.choices(words, k=chance.randrange(3))
            pieces.append(chance.choice(words))
        if kind == 2:
            return " ".join(pieces)
        text = list(" ".join(pieces))
        for _ in range(chance.randrange(1, 6)):
            text[chance.randrange(len(text))] = chance.choice("'\"`()[];,.*%-/|=<>\0\n 09aé")
        return "".join(text)

    end = time.monotonic() + 60 * options.minutes
    counts: Counter = Counter()
    while time.monotonic() < end:
        batch = [chance.choice(rows) for _ in range(1000)]
        # Now and then, the odd text is the gold query itself.
        batch = [{**row, "answer": odd(row)} if chance.random() < 0.1 else row for row in batch]
        predictions = [odd(row) for row in batch]
        for row, prediction, verdict in zip(
            batch, predictions, score(batch, predictions, processes=options.processes), strict=True
        ):
            counts[verdict.error] += 1
            if verdict.error in ("crashed", "timeout"):
                print(f"{verdict.error} {verdict.gold}: {row['answer']!r} {prediction!r}", flush=True)
    print(f"{counts.total()} statements: {dict(counts.most_common())}")


def main() -> None:
    commands = {command.__name__: command for command in (mutants, search, rewrites, speed, fuzz)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(commands))
    parser.add_argument("rows", help="JSON Lines with question, context and answer")
    parser.add_argument("--context", default="context", help="the key of the schema")
    parser.add_argument("--count", type=int, default=400, help="rows to use")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10, help="how long to fuzz")
    parser.add_argument("--show", action="store_true", help="print the queries that were judged wrongly")
    options = parser.parse_args()
    commands[options.what](options)


if __name__ == "__main__":
    main()
