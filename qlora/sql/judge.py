"""Judge the predictions for one gold query."""

from dataclasses import dataclass

from qlora.sql.engine import Engine, Name
from qlora.sql.extract import extract
from qlora.sql.queries import is_ordered, limits_without_order, normal_form, shows_case, without_distinct
from qlora.sql.sandbox import MAX_SQL_LENGTH, QueryError, clock
from qlora.sql.schema import Schema, SchemaError, read_schema
from qlora.sql.suite import Suite, columns_named, tables_read

from sqlglot import exp


@dataclass(frozen=True)
class Verdict:
    """The verdict for one prediction.

    `strict`: it returns the rows of the gold query on every database, in the same order if the gold query has ORDER BY.
    `lenient`: strict, or the same rows on databases without NULLs after DISTINCT is removed from both queries. `exact`:
    its text differs at most in white space, case and a final semicolon. `valid`: it runs. Otherwise, `error` is the
    class of its error.

    `gold` is the status of the row and does not depend on the prediction. It is None, "invalid" (the gold query or its
    schema does not run) or "undetermined": the gold query has LIMIT without ORDER BY, or its result depends on the
    order of stored rows, takes too long, or is the same on all databases, so that it tells nothing about a prediction.
    `reason` says which. Unless `gold` is None, `strict` and `lenient` are False and mean nothing; `totals` leaves the
    row out of these two rates.
    """

    strict: bool
    lenient: bool
    exact: bool
    valid: bool
    error: str | None
    gold: str | None = None
    reason: str | None = None


def is_exact(gold: str, prediction: str) -> bool:
    """Whether the texts differ at most in white space, case and a final semicolon."""
    one, other = (" ".join(sql.strip().rstrip(";").split()).casefold() for sql in (gold, prediction))
    return one == other


class Judge:
    """Judges the predictions for one gold query, `answer`. Databases are made when they are first needed, and kept.

    `databases` is their number. `dialect` is that of the context and the queries; `engine` runs these, as part of the
    run of that name (`engine.running`). `gold` is the status of the row, as in Verdict.
    """

    def __init__(
        self,
        context: str,
        answer: str,
        *,
        seed: int = 0,
        databases: int = 10,
        dialect: str = "sqlite",
        engine: Name = "sqlite",
        run: str = "",
    ):
        self.answer, self.databases, self.engine = answer, databases, Engine(dialect, engine, run)
        self.key = f"{seed}|{context}|{answer}"
        self.gold: str | None = "invalid"
        self.reason: str | None = None
        self.schema: Schema | None = None
        self.parts: dict[tuple, Schema] = {}  # tables and columns -> the schema of these alone
        try:
            self.schema = read_schema(self._fold(context), dialect)
            self.empty = self.engine.database(self.schema)
            self.sql, self.tree = self._checked(answer)
        except (SchemaError, QueryError) as error:
            self.reason = f"the gold query fails: {error.kind}" if isinstance(error, QueryError) else str(error)
            if isinstance(error, QueryError) and error.kind == "untranslated":
                self.gold, self.form = "undetermined", None
                self.reason = f"SQLite cannot run the gold query ({error}): evaluate.engine {dialect} can"
            return
        with clock():  # sqlglot takes exponential time for some queries
            self.form = self._form(self.tree)
        self.suites = {"strict": self._suite([])}  # and "lenient", when it is needed
        self.reason = self._why_undetermined()
        self.gold = "undetermined" if self.reason else None

    def _why_undetermined(self) -> str | None:
        """Why no prediction can be judged by what the gold query returns; None if it can."""
        if limits_without_order(self.tree):
            return "LIMIT without ORDER BY"
        suite = self.suites["strict"]
        self.reads = bool(tables_read([self.tree], self.schema))
        if not suite.varies() and (self.reads or not suite.found):
            if suite.failed:
                return f"the gold query fails on made-up rows: {suite.failed}"
            if not suite.found:
                return "the result depends on the order of stored rows"
            if not suite.found[0][1].rows:
                return "the result is empty on every database"
            return "the result is the same on every database"
        return None

    def judge(self, raw: str) -> Verdict:
        """The verdict for a model's raw answer."""
        prediction = extract(raw)
        exact = is_exact(self.answer, prediction)
        if self.gold == "invalid":
            return self._without_gold(prediction, exact)
        try:
            sql, tree = self._checked(prediction)
            with clock():
                same_form = self.form is not None and self._form(tree) == self.form
            if self.gold:
                return Verdict(False, False, exact, True, None, self.gold, self.reason)
            if same_form:
                return Verdict(True, True, exact, True, None)
            strict = self._agrees(sql, tree, "strict")
            return Verdict(strict, strict or self._agrees(sql, tree, "lenient"), exact, True, None)
        except QueryError as error:
            return Verdict(False, False, exact, False, error.kind, self.gold, self.reason)

    def _form(self, tree: exp.Expression | None) -> object:
        """What queries share only if they mean the same; None if no such thing is found cheaply."""
        form = normal_form(tree, self.schema)
        if form is None or not self.engine.case_matters:
            return form
        return form, sorted(literal.this for literal in tree.find_all(exp.Literal) if literal.is_string)

    def _agrees(self, sql: str, tree: exp.Expression | None, strictness: str) -> bool:
        """Whether the results agree on the gold query's databases, and then on those made from both queries."""
        lenient = strictness == "lenient"
        if lenient and tree is not None and tree.find(exp.Distinct):
            with clock():
                tree = without_distinct(tree)
                sql = self.engine.write(tree, self.schema)
        if strictness not in self.suites:
            self.suites[strictness] = self._suite([], lenient=lenient)
        suite = self.suites[strictness]
        ordered, case = is_ordered(tree), shows_case(tree)
        if suite.covers(tree, self.schema) and not suite.agrees(sql, ordered, case):
            return False
        if lenient and self.reads and not suite.varies():
            return False  # nothing but its NULLs makes the result differ
        both = self._suite([tree], sql, lenient=lenient)
        return both.agrees(sql, ordered, case) and bool(both.found)

    def _suite(self, others: list[exp.Expression | None], prediction: str = "", *, lenient: bool = False) -> Suite:
        """Databases made from the gold query and `others`: twice as many if there are others."""
        size = self.databases * (2 if others else 1)
        key = f"{self.key}|{prediction}"
        tables, columns = tables_read([self.tree, *others], self.schema), columns_named([self.tree, *others])
        part = (frozenset(tables), None if columns is None else frozenset(columns))
        if part not in self.parts:
            self.parts[part] = self.schema.only(tables, columns)
        others = [one for one in others if one is not None]
        return Suite(self.engine, self.parts[part], self.sql, self.tree, others, size, key, lenient=lenient)

    def _checked(self, prediction: str) -> tuple[str, exp.Expression | None]:
        """The SQL to run and its syntax tree, after the SQL ran on the empty database. Raises QueryError."""
        if not prediction:
            raise QueryError("empty", "there is no answer")
        if len(prediction) > MAX_SQL_LENGTH:
            raise QueryError("too_large", f"more than {MAX_SQL_LENGTH} characters")
        with clock():
            sql, tree = self.engine.read(self._fold(prediction), self.schema)
        try:
            self.empty.run(sql)
        except QueryError as error:
            if error.kind != "data":  # it may well run on other rows
                raise
        return sql, tree

    def _fold(self, text: str) -> str:
        """`text` with letters beyond ASCII in lower case, unless case matters: SQLite's NOCASE knows ASCII only."""
        if text.isascii() or self.engine.case_matters:
            return text
        return "".join(one if one.isascii() else one.lower() for one in text)

    def _without_gold(self, prediction: str, exact: bool) -> Verdict:
        """The verdict if the gold query is invalid: a prediction can still be valid, if the schema is."""
        error = "no_schema"
        if self.schema:
            try:
                self._checked(prediction)
                error = None
            except QueryError as failure:
                error = failure.kind
        return Verdict(False, False, exact, error is None, error, "invalid", self.reason)
