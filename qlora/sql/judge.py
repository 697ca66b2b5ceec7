"""Judge the predictions for one gold query."""

from dataclasses import dataclass

from qlora.sql.extract import extract
from qlora.sql.queries import (
    is_ordered,
    limits_without_order,
    normal_form,
    parse,
    plain_strings,
    to_sqlite,
    without_distinct,
)
from qlora.sql.sandbox import MAX_SQL_LENGTH, Database, QueryError, clock
from qlora.sql.schema import SchemaError, read_schema
from qlora.sql.suite import Suite

from sqlglot import exp


@dataclass(frozen=True)
class Verdict:
    """The verdict for one prediction.

    `strict`: it returns the rows of the gold query on every database, in the same order if the gold query has ORDER BY.
    `lenient`: strict, or the same rows on databases without NULLs after DISTINCT is removed from both queries. `exact`:
    its text differs at most in white space, case and a final semicolon. `valid`: it runs. Otherwise, `error` is the
    class of its error.

    `gold` is the status of the row and does not depend on the prediction. It is None, "invalid" (the gold query or its
    schema does not run) or "undetermined" (the gold query has LIMIT without ORDER BY, or on no database it ends within
    the limits with a result that does not depend on the order of stored rows). Unless it is None, `strict` and
    `lenient` are False and mean nothing; `totals` leaves the row out of these two rates.
    """

    strict: bool
    lenient: bool
    exact: bool
    valid: bool
    error: str | None
    gold: str | None = None


def is_exact(gold: str, prediction: str) -> bool:
    """Whether the texts differ at most in white space, case and a final semicolon."""
    one, other = (" ".join(sql.strip().rstrip(";").split()).casefold() for sql in (gold, prediction))
    return one == other


class Judge:
    """Judges the predictions for one gold query, `answer`. Databases are made when they are first needed, and kept.

    `databases` is their number. `gold` is the status of the row, as in Verdict.
    """

    def __init__(self, context: str, answer: str, *, seed: int = 0, databases: int = 10, dialect: str = "sqlite"):
        self.answer, self.databases, self.dialect = answer, databases, dialect
        self.key = f"{seed}|{context}|{answer}"
        self.gold: str | None = "invalid"
        self.schema = None
        try:
            self.schema = read_schema(_fold(context), dialect)
            self.empty = Database(self.schema.columns())
            self.sql = self._checked(answer)
        except (SchemaError, QueryError):
            return
        self.gold = None
        with clock():  # sqlglot takes exponential time for some queries
            self.tree = parse(self.sql)
            self.form = normal_form(self.tree, self.schema)
            self.suites = {"strict": self._suite([]), "lenient": self._suite([], lenient=True)}
        if limits_without_order(self.tree) or next(self.suites["strict"].instances(), None) is None:
            self.gold = "undetermined"

    def judge(self, raw: str) -> Verdict:
        """The verdict for a model's raw answer."""
        prediction = extract(raw)
        exact = is_exact(self.answer, prediction)
        if self.gold == "invalid":
            return self._without_gold(prediction, exact)
        try:
            sql = self._checked(prediction)
            with clock():
                tree = parse(sql)
                same_form = self.form is not None and normal_form(tree, self.schema) == self.form
            if self.gold:
                return Verdict(False, False, exact, True, None, self.gold)
            if same_form:
                return Verdict(True, True, exact, True, None)
            strict = self._agrees(sql, tree, "strict")
            return Verdict(strict, strict or self._agrees(sql, tree, "lenient"), exact, True, None)
        except QueryError as error:
            return Verdict(False, False, exact, False, error.kind, self.gold)

    def _agrees(self, sql: str, tree: exp.Expression | None, strictness: str) -> bool:
        """Whether the results agree on the gold query's databases, and then on those made from both queries."""
        lenient = strictness == "lenient"
        if lenient:
            with clock():
                sql = without_distinct(sql, tree)
        suite = self.suites[strictness]
        if not suite.agrees(sql, is_ordered(tree)) or not suite.found:
            return False
        if tree is None:
            return True
        both = self._suite([tree], sql, lenient=lenient)
        return both.agrees(sql, is_ordered(tree))

    def _suite(self, others: list[exp.Expression], prediction: str = "", *, lenient: bool = False) -> Suite:
        """Databases made from the gold query and `others`: twice as many if there are others."""
        size = self.databases * (2 if others else 1)
        return Suite(self.schema, self.sql, self.tree, others, size, f"{self.key}|{prediction}", lenient=lenient)

    def _checked(self, prediction: str) -> str:
        """The SQL to run for a prediction, after it ran on the empty database. Raises QueryError."""
        if not prediction:
            raise QueryError("empty", "there is no answer")
        if len(prediction) > MAX_SQL_LENGTH:
            raise QueryError("too_large", f"more than {MAX_SQL_LENGTH} characters")
        with clock():
            sql = self._readable(prediction)
        self.empty.run(sql)
        return sql

    def _without_gold(self, prediction: str, exact: bool) -> Verdict:
        """The verdict if the gold query is invalid: a prediction can still be valid, if the schema is."""
        error = "no_schema"
        if self.schema:
            try:
                self._checked(prediction)
                error = None
            except QueryError as failure:
                error = failure.kind
        return Verdict(False, False, exact, error is None, error, "invalid")

    def _readable(self, sql: str) -> str:
        return plain_strings(to_sqlite(_fold(sql), self.dialect), self.schema)


def _fold(text: str) -> str:
    """Lower the case of letters beyond ASCII: SQLite's NOCASE knows ASCII letters only."""
    return text if text.isascii() else "".join(one if one.isascii() else one.lower() for one in text)
