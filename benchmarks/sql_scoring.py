"""How far the text-to-SQL verdicts can be trusted, and what they cost.

python -m benchmarks.sql_scoring mutants rows.jsonl --count 400     wrong queries that are called equal
python -m benchmarks.sql_scoring rewrites rows.jsonl --count 400    right queries that are called different
python -m benchmarks.sql_scoring speed rows.jsonl --count 1000      seconds for that many predictions
python -m benchmarks.sql_scoring fuzz rows.jsonl --minutes 10       random statements that end a worker, if any

Rows are JSON Lines with `question`, `context` (or the key that --context names) and `answer`.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from sqlglot import exp

from qlora.sql.comparison import same_results
from qlora.sql.judge import Judge
from qlora.sql.queries import is_ordered, normal_form, parse
from qlora.sql.sandbox import Database, QueryError
from qlora.sql.schema import Schema, read_schema
from qlora.sql.verdict import score, totals

Tree = exp.Expression
Change = Callable[[Tree], object]


# ---- mutants: queries that mean something else


def each(tree: Tree, kinds: type | tuple[type, ...], *changes: Change) -> Iterator[Tree]:
    """Copies of `tree`, each with one node of `kinds` changed in one way. A change that returns False is none."""
    for index, _ in enumerate(list(tree.find_all(kinds))):
        for change in changes:
            copy = tree.copy()
            if change(list(copy.find_all(kinds))[index]) is not False:
                yield copy


def becomes(kind: type) -> Change:
    """Replace a node by one of `kind` with the same arguments."""
    return lambda node: False if type(node) is kind else node.replace(kind(**node.copy().args))


def aggregates(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """MAX for MIN, SUM for AVG, ..., and COUNT of the other kind."""
    yield from each(tree, (exp.Max, exp.Min, exp.Sum, exp.Avg), *map(becomes, (exp.Max, exp.Min, exp.Sum, exp.Avg)))

    def count_distinct(node: Tree) -> object:
        if not isinstance(node.this, exp.Column):
            return False
        return node.set("this", exp.Distinct(expressions=[node.this.copy()]))

    yield from each(tree, exp.Count, count_distinct)
    yield from each(tree, (exp.Sum, exp.Avg), becomes(exp.Count))


def comparisons(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """> for >=, = for !=, and so on."""
    kinds = (exp.GT, exp.GTE, exp.LT, exp.LTE)
    yield from each(tree, kinds, *map(becomes, kinds))

    def in_condition(change: Change) -> Change:
        return lambda node: False if node.find_ancestor(exp.Join) else change(node)

    yield from each(tree, (exp.EQ, exp.NEQ), *(in_condition(becomes(kind)) for kind in (exp.EQ, exp.NEQ, exp.LTE)))


def conditions(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """A conjunct dropped, a whole WHERE dropped, OR for AND, AND for OR, NOT dropped."""
    yield from each(tree, (exp.And, exp.Or), lambda node: node.replace(node.this), lambda n: n.replace(n.expression))
    yield from each(tree, exp.Where, lambda node: node.pop())
    yield from each(tree, exp.And, becomes(exp.Or))
    yield from each(tree, exp.Or, becomes(exp.And))
    yield from each(tree, exp.Not, lambda node: node.replace(node.this))


def literals(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """A number one more or one less, a text with a letter more or less."""

    def number(step: int) -> Change:
        def change(node: Tree) -> object:
            if node.is_string or node.find_ancestor(exp.Limit):
                return False
            try:
                return node.replace(exp.Literal.number(int(node.this) + step))
            except ValueError:
                return node.replace(exp.Literal.number(round(float(node.this) + step / 10, 4)))

        return change

    def text(new: Callable[[str], str]) -> Change:
        return lambda node: node.replace(exp.Literal.string(new(node.this))) if node.is_string and node.this else False

    texts = (text(lambda old: old + "s"), text(lambda old: old[:-1]), text(lambda old: "the " + old))
    yield from each(tree, exp.Literal, number(1), number(-1), *texts)


def patterns(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """LIKE with one of its % lost, and = for LIKE."""

    def without(side: str) -> Change:
        def change(node: Tree) -> object:
            old = node.expression.name
            new = old.removeprefix("%") if side == "left" else old.removesuffix("%")
            return False if new == old else node.expression.replace(exp.Literal.string(new))

        return change

    yield from each(tree, exp.Like, without("left"), without("right"), becomes(exp.EQ))


def distinct(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """DISTINCT dropped or added, where rows can be duplicates and their number shows."""

    def toggle(node: Tree) -> object:
        if (
            node.parent
            or node.args.get("group")
            or node.args.get("limit")
            or any(o.find(exp.AggFunc) for o in node.selects)
        ):
            return False
        return node.set("distinct", None if node.args.get("distinct") else exp.Distinct())

    def plain(node: Tree) -> object:
        return node.replace(node.expressions[0]) if isinstance(node.parent, exp.Count) else False

    yield from each(tree, exp.Select, toggle)
    yield from each(tree, exp.Distinct, plain)


def joins(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """LEFT for INNER, either way round, and a join without its condition.

    LEFT JOIN differs only where the rows that it adds, with NULLs, are not removed again: by WHERE, by a later join, by
    HAVING with an aggregate of theirs, by IN, or by an aggregate that is all that is shown of them.
    """

    def is_tested(table: Tree, select: exp.Select, join: Tree) -> bool:
        later = select.args["joins"][select.args["joins"].index(join) + 1 :]
        having = select.args.get("having")
        tests = [
            one for one in (select.args.get("where"), *later, *(having.find_all(exp.AggFunc) if having else ())) if one
        ]
        if isinstance(select.find_ancestor(exp.In, exp.Select), exp.In) and not select.find_ancestor(exp.Not):
            tests += select.selects
        if not select.args.get("group") and all(isinstance(one, exp.AggFunc) for one in select.selects):
            tests += select.selects
        names = {table.alias_or_name.lower(), ""}
        return any(column.table.lower() in names for test in tests for column in test.find_all(exp.Column))

    def outer(node: Tree) -> object:
        return False if is_tested(node.this, node.parent, node) else node.set("side", "LEFT")

    def swapped(node: Tree) -> object:
        select = node.parent
        start = select.args["from_"]
        if len(select.args["joins"]) != 1 or is_tested(start.this, select, node):
            return False
        first, second = start.this.copy(), node.this.copy()
        start.set("this", second)
        node.set("this", first)
        return node.set("side", "LEFT")

    yield from each(tree, exp.Join, outer, swapped, lambda node: node.set("on", None))


def ordering(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """The other direction, no order, a LIMIT of one more or none."""

    def more(node: Tree) -> object:
        return node.expression.replace(exp.Literal.number(int(node.expression.name) + 1))

    yield from each(tree, exp.Ordered, lambda node: node.set("desc", not node.args.get("desc")))
    yield from each(tree, exp.Order, lambda node: node.pop())
    yield from each(tree, exp.Limit, lambda node: node.pop(), more)


def groups(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """GROUP BY or HAVING dropped."""
    yield from each(tree, exp.Having, lambda node: node.pop())

    def ungrouped(node: Tree) -> object:
        node.parent.set("having", None)
        return node.pop()

    yield from each(tree, exp.Group, ungrouped)


def set_operations(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """One set operator for another, the sides of EXCEPT exchanged, one side alone."""
    kinds = (exp.Union, exp.Intersect, exp.Except)
    yield from each(tree, kinds, *map(becomes, kinds))
    yield from each(tree, exp.Union, lambda node: node.set("distinct", not node.args.get("distinct")))

    def exchanged(node: Tree) -> object:
        left, right = node.this.copy(), node.expression.copy()
        node.set("this", right)
        return node.set("expression", left)

    yield from each(tree, exp.Except, exchanged)
    yield from each(tree, kinds, lambda node: node.replace(node.this), lambda node: node.replace(node.expression))


def columns(tree: Tree, schema: Schema) -> Iterator[Tree]:
    """Another column of the same table, in any one place outside of a join's condition."""
    for index, column in enumerate(list(tree.find_all(exp.Column))):
        if column.find_ancestor(exp.Join) or isinstance(column.this, exp.Star):
            continue
        for table in schema.tables.values():
            if column.name.lower() not in table.columns:
                continue
            for other in table.columns:
                if other != column.name.lower():
                    copy = tree.copy()
                    twin = list(copy.find_all(exp.Column))[index]
                    twin.set("this", exp.to_identifier(other, quoted=True))
                    yield copy


MUTATORS = (
    aggregates,
    comparisons,
    conditions,
    literals,
    patterns,
    distinct,
    joins,
    ordering,
    groups,
    set_operations,
    columns,
)


# ---- rewrites: queries that mean the same


def other_case(tree: Tree, sql: str) -> Iterator[str]:
    """Names and keywords in capitals, names in small letters."""
    yield tree.transform(
        lambda node: exp.to_identifier(node.name.upper()) if isinstance(node, exp.Identifier) else node
    ).sql("sqlite", normalize_functions="lower")
    yield tree.transform(
        lambda node: exp.to_identifier(node.name.lower(), quoted=True) if isinstance(node, exp.Identifier) else node
    ).sql("sqlite")


def text_case(tree: Tree, sql: str) -> Iterator[str]:
    """Text literals in capitals."""
    upper = tree.copy()
    for literal in upper.find_all(exp.Literal):
        if literal.is_string and literal.this.isascii():
            literal.replace(exp.Literal.string(literal.this.upper()))
    yield upper.sql("sqlite")


def layout(tree: Tree, sql: str) -> Iterator[str]:
    """Line breaks, comments, a semicolon, a code fence."""
    yield tree.sql("sqlite", pretty=True)
    yield f"-- the answer\n{sql} ;"
    yield f"Here is the query:\n```sql\n{sql};\n```\nIt reads the table."


def aliases(tree: Tree, sql: str) -> Iterator[str]:
    """Other table aliases, and aliases for the output columns."""
    used = {column.name.lower() for column in tree.find_all(exp.Column)}
    renamed = tree.copy()
    for alias in renamed.find_all(exp.TableAlias):
        alias.set("this", exp.to_identifier(alias.name + "_x"))
    for column in renamed.find_all(exp.Column):
        owners = {alias.name for alias in tree.find_all(exp.TableAlias)}
        if column.table in owners:
            column.set("table", exp.to_identifier(column.table + "_x"))
        elif column.table.lower() in {owner.lower() for owner in owners}:
            return
    yield renamed.sql("sqlite")
    if isinstance(tree, exp.Select) and "out_1" not in used:
        named = tree.copy()
        selects = [
            one if isinstance(one, (exp.Star, exp.Alias)) or one.name == "*" else exp.alias_(one, f"out_{number}")
            for number, one in enumerate(named.selects)
        ]
        named.set("expressions", selects)
        yield named.sql("sqlite")


def conjuncts(tree: Tree, sql: str) -> Iterator[str]:
    """The sides of AND, OR and comparisons exchanged; a condition that is always true; a double negation."""

    def exchange(node: Tree) -> object:
        left, right = node.this.copy(), node.expression.copy()
        return node.replace(type(node)(this=exp.paren(right), expression=exp.paren(left)))

    def mirror(node: Tree) -> object:
        other = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE}.get(type(node), type(node))
        return node.replace(other(this=node.expression.copy(), expression=node.this.copy()))

    def doubled(node: Tree) -> object:
        return node.set("this", exp.Not(this=exp.paren(exp.Not(this=exp.paren(node.this.copy())))))

    yield from (one.sql("sqlite") for one in each(tree, (exp.And, exp.Or), exchange))
    kinds = (exp.EQ, exp.NEQ, exp.GT, exp.LT, exp.GTE, exp.LTE)
    yield from (one.sql("sqlite") for one in each(tree, kinds, mirror))
    yield from (one.sql("sqlite") for one in each(tree, exp.Where, doubled))

    def always(node: Tree) -> object:
        return node.set("this", exp.and_("1 = 1", node.this.copy()))

    yield from (one.sql("sqlite") for one in each(tree, exp.Where, always))


def predicates(tree: Tree, sql: str) -> Iterator[str]:
    """IN for OR and = ; BETWEEN and two comparisons; NOT = for !=."""

    def as_in(node: Tree) -> object:
        if not isinstance(node.expression, exp.Literal):
            return False
        return node.replace(exp.In(this=node.this.copy(), expressions=[node.expression.copy()]))

    def or_as_in(node: Tree) -> object:
        left, right = node.this.unnest(), node.expression.unnest()
        if not (isinstance(left, exp.EQ) and isinstance(right, exp.EQ) and left.this == right.this):
            return False
        if not isinstance(left.expression, exp.Literal) or not isinstance(right.expression, exp.Literal):
            return False
        return node.replace(
            exp.In(this=left.this.copy(), expressions=[left.expression.copy(), right.expression.copy()])
        )

    def two(node: Tree) -> object:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        return node.replace(exp.paren(exp.and_(low, high)))

    def not_equal(node: Tree) -> object:
        return node.replace(exp.Not(this=exp.paren(exp.EQ(**node.copy().args))))

    yield from (one.sql("sqlite") for one in each(tree, exp.EQ, as_in))
    yield from (one.sql("sqlite") for one in each(tree, exp.Or, or_as_in))
    yield from (one.sql("sqlite") for one in each(tree, exp.Between, two))
    yield from (one.sql("sqlite") for one in each(tree, exp.NEQ, not_equal))


def structure(tree: Tree, sql: str) -> Iterator[str]:
    """A CTE or a subquery around tables or around the whole, joins in another order or as WHERE, COUNT(1), DISTINCT."""
    if isinstance(tree, exp.Select) and not is_ordered(tree) and not any(one.is_star for one in tree.selects):
        yield f"SELECT * FROM ({sql}) AS whole"
        yield f"WITH whole AS ({sql}) SELECT * FROM whole"

    def wrapped(node: Tree) -> object:
        query = exp.select("*").from_(exp.to_table(node.name))
        return node.replace(query.subquery(node.alias_or_name))

    yield from (one.sql("sqlite") for one in each(tree, exp.Table, wrapped))

    def one_for_star(node: Tree) -> object:
        return node.set("this", exp.Literal.number(1)) if isinstance(node.this, exp.Star) else False

    yield from (one.sql("sqlite") for one in each(tree, exp.Count, one_for_star))

    def swapped(node: Tree) -> object:
        select = node.parent
        start = select.args["from_"]
        if node.side or len(select.args["joins"]) != 1 or any(one.is_star for one in select.selects):
            return False
        first, second = start.this.copy(), node.this.copy()
        start.set("this", second)
        return node.set("this", first)

    def as_where(node: Tree) -> object:
        on = node.args.get("on")
        if node.side or on is None:
            return False
        select = node.parent
        select.where(on.copy(), copy=False)
        return node.replace(exp.Join(this=node.this.copy(), kind="CROSS"))

    yield from (one.sql("sqlite") for one in each(tree, exp.Join, swapped, as_where, lambda n: n.set("kind", "INNER")))

    def as_groups(node: Tree) -> object:
        if (
            not node.args.get("distinct")
            or node.args.get("group")
            or any(one.find(exp.AggFunc) for one in node.selects)
        ):
            return False
        if not all(isinstance(one, exp.Column) for one in node.selects) or node.args.get("order"):
            return False
        node.set("distinct", None)
        return node.set("group", exp.Group(expressions=[one.copy() for one in node.selects]))

    yield from (one.sql("sqlite") for one in each(tree, exp.Select, as_groups))


def qualified(tree: Tree, sql: str) -> Iterator[str]:
    """Every column of a query over one table with that table's name."""
    tables = list(tree.find_all(exp.Table))
    if len(tables) == 1 and not tables[0].alias and not tree.find(exp.Subquery):
        copy = tree.copy()
        for column in copy.find_all(exp.Column):
            column.set("table", exp.to_identifier(tables[0].name))
        yield copy.sql("sqlite")


REWRITERS = (other_case, text_case, layout, aliases, conjuncts, predicates, structure, qualified)


# ---- the measurements


def read_rows(path: str, context: str, count: int, seed: int = 0) -> list[dict]:
    """`count` rows (or all), chosen at random but always the same."""
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
    commands = {command.__name__: command for command in (mutants, rewrites, speed, fuzz)}
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
