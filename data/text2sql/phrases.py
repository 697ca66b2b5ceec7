"""Pick what a query is about, and say it in English: tables, columns, values and conditions."""

import random
from dataclasses import dataclass

from data.text2sql.domains import Column, Schema, Table, article, plural

OVER = {
    ">": ("above", "over", "greater than", "higher than"),
    "<": ("below", "under", "less than", "lower than"),
    ">=": ("of at least",),
    "<=": ("of at most",),
}
MORE = {">": ("more than", "over"), "<": ("fewer than", "under"), ">=": ("at least",), "<=": ("at most",)}
LATER = {">": ("after {}",), "<": ("before {}",), ">=": ("in {} or later",), "<=": ("in {} or earlier",)}
COMPARED = {">": "greater than", "<": "less than", ">=": "at least", "<=": "at most"}


class NotHereError(Exception):
    """The schema has no table or column for this kind of query."""


@dataclass(frozen=True)
class Condition:
    """A condition in SQL and in words."""

    sql: str
    modifier: str  # after a noun: "with more than 300 pages"
    clause: str  # after "books that": "have more than 300 pages"
    adjective: str = ""  # before a noun: "fantasy"


def literal(value) -> str:
    """A value as SQL writes it."""
    return str(value) if isinstance(value, int | float) else f"'{value}'"


def measure(column: Column, rng: random.Random) -> str:
    """A column as a quantity: "number of pages", "price"."""
    phrase = rng.choice(column.phrases)
    return f"number of {phrase}" if column.role == "count" else phrase


def table_words(table: Table) -> dict[str, str]:
    """The words for a table's rows."""
    words = {"thing": table.singular.replace("_", " ")}
    words["things"] = plural(words["thing"])
    words["that"] = "who" if table.person else "that"
    words["its"] = "their" if table.person else "its"
    if table.label:
        words["label"] = table.label.name
        words["a_label"] = article(table.label.phrases[0])
        words["labels"] = plural(table.label.phrases[0])
    return words


def about(table: Table, condition: Condition) -> tuple[Column, ...]:
    """The columns that an unqualified condition names: one or none."""
    return tuple(column for column in table.columns if condition.sql.startswith(f"{column.name} "))


def matching(table: Table, condition: Condition) -> str:
    """The rows that meet a condition: "fantasy books", "books with more than 300 pages"."""
    things = table_words(table)["things"]
    return f"{condition.adjective} {things}" if condition.adjective else f"{things} {condition.modifier}"


class Picker:
    """Picks tables, columns, values and conditions of one schema at random."""

    def __init__(self, schema: Schema, rng: random.Random):
        self.schema = schema
        self.rng = rng

    def one(self, options):
        """One of the options. Raises NotHereError if there is none."""
        if not options:
            raise NotHereError
        return self.rng.choice(options)

    def table(self, *roles: str, label: bool = False) -> Table:
        """A table with a column of one of these roles. `label`: its rows have names."""
        fit = [t for t in self.schema.tables if (t.having(*roles) or not roles) and (t.label or not label)]
        return self.one(fit)

    def column(self, table: Table, *roles: str, but: tuple[Column, ...] = ()) -> Column:
        """A column of one of these roles."""
        return self.one([column for column in table.having(*roles) if column not in but])

    def target(self, table: Table, but: tuple[Column, ...] = (), label: float = 0.65) -> tuple[Column, dict[str, str]]:
        """The column that is asked for, with its words: the row's name with probability `label`."""
        words = table_words(table)
        named = [table.label] if table.label and table.label not in but else []
        others = [column for column in table.columns if column not in but and column != table.label]
        column = self.one(named if self.rng.random() < label and named else others or named)
        if column == table.label:
            words |= {"entity": words["thing"], "entities": words["things"]}
        words["col"] = measure(column, self.rng)
        words["cols"] = plural(words["col"])
        return column, words

    def number(self, column: Column):
        """A round value well within the column's range."""
        low, high = column.values
        if column.role == "date":
            return f"{self.rng.randint(low, high)}-{self.rng.randint(1, 12):02}-{self.rng.choice((1, 10, 15, 20)):02}"
        share = self.rng.uniform(0.15, 0.85)
        value = low + share * (high - low)
        if isinstance(low, float):
            return round(value * 2) / 2
        step = 1 if column.role == "year" else 10 ** max(0, len(str(high - low)) - 2)
        return max(2 if column.role == "count" else low + 1, round(value / step) * step)

    def limits(self, column: Column) -> tuple:
        """Two different values, the lower one first."""
        for _ in range(20):
            low, high = sorted((self.number(column), self.number(column)))
            if low != high:
                return low, high
        raise NotHereError

    def condition(self, table: Table, *roles: str, but: tuple[Column, ...] = (), prefix: str = "") -> Condition:
        """A condition on a column of one of these roles. `prefix` qualifies the column."""
        roles = roles or ("category", "category", "number", "count", "year", "date")
        column = self.column(table, *roles, but=but)
        if column.role == "category":
            return self.equal(column, self.rng.choice(column.values), prefix)
        return self.compare(column, self.rng.choice((">", ">", "<", "<", ">=", "<=")), self.number(column), prefix)

    def equal(self, column: Column, value, prefix: str = "") -> Condition:
        """The condition that a category has a value."""
        sql = f"{prefix}{column.name} = {literal(value)}"
        phrase = self.rng.choice(column.phrases)
        if column.says and self.rng.random() < 0.65:
            words = column.says[0].format(value)
            return Condition(sql, words, f"are {words}")
        adjective = value if column.adjective and self.rng.random() < 0.5 else ""
        modifier = self.rng.choice((f"with the {phrase} {value}", f"whose {phrase} is {value}"))
        clause = self.rng.choice((f"have the {phrase} {value}", f"have {value} as their {phrase}"))
        return Condition(sql, modifier, clause, adjective)

    def compare(self, column: Column, sign: str, value, prefix: str = "") -> Condition:
        """The condition that a number, a year or a date is above or below a value."""
        sql = f"{prefix}{column.name} {sign} {literal(value)}"
        phrase = self.rng.choice(column.phrases)
        if column.role in ("year", "date"):
            words = f"{column.verb} {self.rng.choice(LATER[sign]).format(value)}"
            return Condition(sql, words, f"were {words}")
        if column.role == "count":
            words = f"{self.rng.choice(MORE[sign])} {value} {phrase}"
            return Condition(sql, f"with {words}", f"have {words}")
        words = f"{article(phrase)} {self.rng.choice(OVER[sign])} {value}"
        whose = f"whose {phrase} is {COMPARED[sign]} {value}"
        return Condition(sql, self.rng.choice((f"with {words}", whose)), f"have {words}")

    def family(self, *child_roles: str, child_label: bool = False) -> tuple[Table, Table, str]:
        """A table, a table that it refers to, whose rows have names, and the words between them."""
        pairs = [
            (table, parent, words)
            for table in self.schema.tables
            for parent, words in table.parents
            if parent.label and (table.label or not child_label) and (table.having(*child_roles) or not child_roles)
        ]
        return self.one(pairs)

    def grouped(self, *roles: str) -> tuple[Table, Column]:
        """A table with a column of one of these roles, and a category with few values to group its rows by."""
        columns = {
            table.name: [c for c in table.having("category") if len(c.values) < 16] for table in self.schema.tables
        }
        table = self.one([t for t in self.schema.tables if columns[t.name] and (t.having(*roles) or not roles)])
        return table, self.one(columns[table.name])


def join(child: Table, *parents: Table) -> str:
    """The FROM clause that joins a table with tables that it refers to."""
    return child.name + "".join(f" JOIN {p.name} ON {child.name}.{p.singular}_id = {p.name}.id" for p in parents)


def both(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """The words for a table and, prefixed with `p`, for the table that it refers to."""
    return first | {f"p{key}": value for key, value in second.items()}
