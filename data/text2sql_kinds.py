"""The kinds of query of the built-in text-to-SQL rows: how each is asked in English and answered in SQL.

A kind is a function that picks tables, columns and values and returns the words for its question and the query.
The decorator holds its wordings and about how many rows of it each schema gets; a wording is used only where the
function returned every word that it needs. The SQL has one style: full table names as qualifiers and only where there
is a join, the referring table first.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from text2sql_domains import Column, Schema, Table, article, plural

OVER = {
    ">": ("above", "over", "greater than", "higher than"),
    "<": ("below", "under", "less than", "lower than"),
    ">=": ("of at least",),
    "<=": ("of at most",),
}
MORE = {">": ("more than", "over"), "<": ("fewer than", "under"), ">=": ("at least",), "<=": ("at most",)}
LATER = {">": ("after {}",), "<": ("before {}",), ">=": ("in {} or later",), "<=": ("in {} or earlier",)}
COMPARED = {">": "greater than", "<": "less than", ">=": "at least", "<=": "at most"}
WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


class NotHereError(Exception):
    """The schema has nothing that this kind of query could ask for."""


@dataclass(frozen=True)
class Kind:
    """A kind of query."""

    name: str
    rows: float  # for each schema that it fits
    wordings: tuple[str, ...]
    make: Callable


@dataclass(frozen=True)
class Condition:
    """A condition in SQL and in words."""

    sql: str
    modifier: str  # after a noun: "with more than 300 pages"
    clause: str  # after "books that": "have more than 300 pages"
    adjective: str = ""  # before a noun: "fantasy"


KINDS: dict[str, Kind] = {}


def kind(rows: float, *wordings: str) -> Callable:
    """Register a kind of query under the function's name."""

    def register(make: Callable) -> Callable:
        KINDS[make.__name__] = Kind(make.__name__, rows, wordings, make)
        return make

    return register


def literal(value) -> str:
    """A value in SQL."""
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
    """The column that a condition is about."""
    return tuple(column for column in table.columns if condition.sql.startswith(f"{column.name} "))


def matching(table: Table, condition: Condition) -> str:
    """The rows that meet a condition: "fantasy books", "books with more than 300 pages"."""
    things = table_words(table)["things"]
    return f"{condition.adjective} {things}" if condition.adjective else f"{things} {condition.modifier}"


class Picker:
    """Picks what a query is about, out of one schema, by one random number generator."""

    def __init__(self, schema: Schema, rng: random.Random):
        self.schema = schema
        self.rng = rng

    def one(self, options):
        """One of these, if there are any."""
        if not options:
            raise NotHereError
        return self.rng.choice(options)

    def table(self, *roles: str, label: bool = False) -> Table:
        """A table with a column of one of these roles, and with a name for its rows."""
        fit = [t for t in self.schema.tables if (t.having(*roles) or not roles) and (t.label or not label)]
        return self.one(fit)

    def column(self, table: Table, *roles: str, but: tuple[Column, ...] = ()) -> Column:
        """A column of one of these roles."""
        return self.one([column for column in table.having(*roles) if column not in but])

    def target(self, table: Table, but: tuple[Column, ...] = (), label: float = 0.65) -> tuple[Column, dict[str, str]]:
        """The column that is asked for, more often than not the one that names the row, and its words."""
        words = table_words(table)
        if table.label and table.label not in but and self.rng.random() < label:
            column = table.label
            words |= {"entity": words["thing"], "entities": words["things"]}
        else:
            column = self.one([c for c in table.columns if c not in but and c.role != "label"] or table.columns)
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
        span = high - low
        step = 1 if column.role == "year" or span <= 60 else 10 ** (len(str(span)) - 2) * 5
        return max(low + 1, round(value / step) * step)

    def limits(self, column: Column) -> tuple:
        """Two different values, the lower one first."""
        for _ in range(20):
            low, high = sorted((self.number(column), self.number(column)))
            if low != high:
                return low, high
        raise NotHereError

    def condition(self, table: Table, *roles: str, but: tuple[Column, ...] = (), prefix: str = "") -> Condition:
        """A condition on one column."""
        roles = roles or ("category", "category", "number", "count", "year", "date")
        column = self.column(table, *roles, but=but)
        if column.role == "category":
            return self.equal(column, self.rng.choice(column.values), prefix)
        return self.compare(column, self.rng.choice((">", ">", "<", "<", ">=", "<=")), self.number(column), prefix)

    def equal(self, column: Column, value, prefix: str = "") -> Condition:
        """A category has a value."""
        sql = f"{prefix}{column.name} = {literal(value)}"
        phrase = self.rng.choice(column.phrases)
        if column.says and self.rng.random() < 0.55:
            words = column.says[0].format(value)
            return Condition(sql, words, f"are {words}")
        adjective = value if column.adjective and self.rng.random() < 0.5 else ""
        modifier = self.rng.choice((f"with the {phrase} {value}", f"whose {phrase} is {value}"))
        return Condition(sql, modifier, f"have the {phrase} {value}", adjective)

    def compare(self, column: Column, sign: str, value, prefix: str = "") -> Condition:
        """A number, a year or a date is above or below a value."""
        sql = f"{prefix}{column.name} {sign} {literal(value)}"
        phrase = self.rng.choice(column.phrases)
        if column.role in ("year", "date"):
            words = f"{column.verb} {self.rng.choice(LATER[sign]).format(value)}"
            return Condition(sql, words, f"were {words}")
        if column.role == "count":
            words = f"{self.rng.choice(MORE[sign])} {value} {phrase if value != 1 else phrase.removesuffix('s')}"
            return Condition(sql, f"with {words}", f"have {words}")
        words = f"{article(phrase)} {self.rng.choice(OVER[sign])} {value}"
        whose = f"whose {phrase} is {COMPARED[sign]} {value}"
        return Condition(sql, self.rng.choice((f"with {words}", whose)), f"have {words}")

    def family(self, *child_roles: str, child_label: bool = False) -> tuple[Table, Table, str]:
        """A table, one with a name that it refers to, and the words between them."""
        pairs = [
            (table, parent, words)
            for table in self.schema.tables
            for parent, words in table.parents
            if parent.label and (table.label or not child_label) and (table.having(*child_roles) or not child_roles)
        ]
        return self.one(pairs)

    def group(self, table: Table) -> Column:
        """A column to group by: one with few values."""
        return self.one([c for c in table.having("category") if len(c.values) < 14])


def group_table(pick: Picker, *roles: str) -> tuple[Table, Column]:
    """A table with a column to group by and one of these roles."""
    fit = [
        table
        for table in pick.schema.tables
        if any(len(c.values) < 14 or c.says for c in table.having("category")) and (table.having(*roles) or not roles)
    ]
    table = pick.one(fit)
    return table, pick.one([c for c in table.having("category") if len(c.values) < 14 or c.says])


def join(child: Table, *parents: Table) -> str:
    """The FROM clause that joins a table to those that it refers to."""
    return child.name + "".join(f" JOIN {p.name} ON {child.name}.{p.singular}_id = {p.name}.id" for p in parents)


def both(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """The words for a table and, with a `p` before them, for the one that it refers to."""
    return first | {f"p{key}": value for key, value in second.items()}


# Selecting and filtering one table


@kind(
    0.85,
    "List the {cols} of all {things}.",
    "Show the {col} of every {thing}.",
    "What are the {cols} of all the {things}?",
    "Give me every {thing}'s {col}.",
)
def select_column(pick):
    table = pick.table()
    column, words = pick.target(table, label=0.3)
    return words, f"SELECT {column.name} FROM {table.name}"


@kind(
    2.2,
    "List the {cols} of {matches}.",
    "What are the {cols} of the {matches}?",
    "Show the {col} of all {matches}.",
    "Which {entities} {clause}?",
    "Find the {cols} of all {things} {that} {clause}.",
    "Which {entities} {clause}? Give their {cols}.",
)
def filter_equal(pick):
    table = pick.table("category")
    asked = pick.column(table, "category")
    condition = pick.equal(asked, pick.rng.choice(asked.values))
    column, words = pick.target(table, but=(asked,))
    words |= {"matches": matching(table, condition), "clause": condition.clause}
    return words, f"SELECT {column.name} FROM {table.name} WHERE {condition.sql}"


@kind(
    2.2,
    "List the {cols} of {matches}.",
    "What are the {cols} of the {matches}?",
    "Show the {col} of all {matches}.",
    "Which {entities} {clause}?",
    "Find the {cols} of all {things} {that} {clause}.",
)
def filter_compare(pick):
    table = pick.table("number", "count", "year", "date")
    asked = pick.column(table, "number", "count", "year", "date")
    sign = pick.rng.choice((">", ">", "<", "<", ">=", "<="))
    condition = pick.compare(asked, sign, pick.number(asked))
    column, words = pick.target(table, but=(asked,))
    words |= {"matches": matching(table, condition), "clause": condition.clause}
    return words, f"SELECT {column.name} FROM {table.name} WHERE {condition.sql}"


@kind(
    1.2,
    "List the {col} and {col2} of {matches}.",
    "Show the {col} and the {col2} of all {matches}.",
    "What are the {col} and {col2} of the {things} {that} {clause}?",
)
def filter_columns(pick):
    table = pick.table("category", "number", "count", "year", "date")
    condition = pick.condition(table)
    asked = about(table, condition)
    column, words = pick.target(table, but=asked)
    second, more = pick.target(table, but=(column, *asked), label=0)
    if second in (column, *asked):
        raise NotHereError
    words |= {"col2": more["col"], "matches": matching(table, condition), "clause": condition.clause}
    return words, f"SELECT {column.name}, {second.name} FROM {table.name} WHERE {condition.sql}"


@kind(
    1.5,
    "What is the {col} of the {thing} {value}?",
    "What is the {col} of the {thing} with the {label} {value}?",
    "Show the {col} of the {thing} {value}.",
    "Find the {col} for the {thing} whose {label} is {value}.",
)
def lookup(pick):
    table = pick.table("category", "number", "count", "year", "date", label=True)
    column, words = pick.target(table, label=0)
    value = pick.rng.choice(table.label.values)
    words["value"] = value
    return words, f"SELECT {column.name} FROM {table.name} WHERE {table.label.name} = {literal(value)}"


@kind(
    1.7,
    "List the {cols} of {things} {that} {clause} and {clause2}.",
    "Which {entities} {clause} and {clause2}?",
    "Show the {col} of every one of the {things} {that} both {clause} and {clause2}.",
    "Find the {cols} of all {things} {that} {clause} and also {clause2}.",
)
def filter_and(pick):
    return two_conditions(pick, "AND")


@kind(
    0.95,
    "List the {cols} of {things} {that} {clause} or {clause2}.",
    "Which {entities} {clause} or {clause2}?",
    "Find the {cols} of all {things} {that} either {clause} or {clause2}.",
)
def filter_or(pick):
    return two_conditions(pick, "OR")


def two_conditions(pick: Picker, word: str):
    """Two conditions on different columns."""
    table = pick.table("category", "number", "count", "year", "date")
    first = pick.condition(table)
    asked = about(table, first)
    second = pick.condition(table, "number", "count", "year", "date", "category", but=asked)
    asked += about(table, second)
    column, words = pick.target(table, but=asked, label=0.8)
    if column in asked:
        raise NotHereError
    words |= {"clause": first.clause, "clause2": second.clause}
    return words, f"SELECT {column.name} FROM {table.name} WHERE {first.sql} {word} {second.sql}"


@kind(
    1.1,
    "List the {cols} of {things} with {a_measure} between {low} and {high}.",
    "Which {entities} have {a_measure} between {low} and {high}?",
    "Show the {col} of all {things} whose {measure} is between {low} and {high}.",
    "Which {entities} were {verb} between {low} and {high}?",
    "List the {cols} of {things} {verb} between {low} and {high}.",
)
def filter_between(pick):
    table = pick.table("number", "count", "year", "date")
    asked = pick.column(table, "number", "count", "year", "date")
    low, high = pick.limits(asked)
    column, words = pick.target(table, but=(asked,))
    words |= {"low": str(low), "high": str(high)}
    if asked.verb:
        words["verb"] = asked.verb
    else:
        words["measure"] = measure(asked, pick.rng)
        words["a_measure"] = article(words["measure"])
    between = f"{asked.name} BETWEEN {literal(low)} AND {literal(high)}"
    return words, f"SELECT {column.name} FROM {table.name} WHERE {between}"


@kind(
    0.85,
    "List the {cols} of {things} whose {category} is one of {values}.",
    "Which {entities} have one of these {categories}: {values}?",
    "Show the {col} of all {things} with any of the {categories} {values}.",
)
def filter_in(pick):
    table = pick.table("category")
    asked = pick.column(table, "category")
    values = pick.rng.sample(asked.values, pick.rng.choice((2, 3)))
    column, words = pick.target(table, but=(asked,))
    phrase = pick.rng.choice(asked.phrases)
    words |= {"category": phrase, "categories": plural(phrase)}
    words["values"] = f"{', '.join(values[:-1])} or {values[-1]}"
    listed = ", ".join(literal(value) for value in values)
    return words, f"SELECT {column.name} FROM {table.name} WHERE {asked.name} IN ({listed})"


@kind(
    0.85,
    "List the {cols} of {things} whose {category} is not {value}.",
    "Which {entities} have {a_category} other than {value}?",
    "Show the {col} of all {things} except those with the {category} {value}.",
)
def filter_not(pick):
    table = pick.table("category")
    asked = pick.column(table, "category")
    value = pick.rng.choice(asked.values)
    column, words = pick.target(table, but=(asked,))
    phrase = pick.rng.choice(asked.phrases)
    words |= {"category": phrase, "a_category": article(phrase), "value": value}
    return words, f"SELECT {column.name} FROM {table.name} WHERE {asked.name} <> {literal(value)}"


@kind(
    0.85,
    "Which {things} have {a_label} that starts with '{text}'?",
    "List the {cols} of {things} whose {label} starts with '{text}'.",
    "Show the {col} of every {thing} with {a_label} beginning with '{text}'.",
    "Find the {cols} of all {things} with {a_label} that begins with '{text}'.",
)
def like_prefix(pick):
    return like(pick, "{}%", lambda value: pick.rng.choice((value[0], value[:2], value.split()[0])))


@kind(
    0.85,
    "Which {things} have {a_label} that contains '{text}'?",
    "List the {cols} of {things} whose {label} contains '{text}'.",
    "Show the {col} of every {thing} with '{text}' in {its} {label}.",
    "Find the {cols} of all {things} with {a_label} containing '{text}'.",
)
def like_contains(pick):
    return like(
        pick, "%{}%", lambda value: pick.rng.choice((value.split()[-1], value[1:4].strip(), value[-3:].strip()))
    )


def like(pick: Picker, pattern: str, part: Callable):
    """A pattern on the column that names the row."""
    table = pick.table(label=True)
    text = part(pick.rng.choice(table.label.values))
    column, words = pick.target(table, label=0.7)
    if column != table.label:
        words = {key: value for key, value in words.items() if key != "entities"}
    words["text"] = text
    condition = f"{table.label.name} LIKE '{pattern.format(text)}'"
    return words, f"SELECT {column.name} FROM {table.name} WHERE {condition}"


@kind(
    0.85,
    "List the {cols} of {things} {that} have no {missing}.",
    "Which {entities} have no {missing} on record?",
    "Show the {col} of all {things} whose {missing} is missing.",
    "Find the {cols} of the {things} without a recorded {missing}.",
)
def is_null(pick):
    return null_check(pick, "IS NULL")


@kind(
    0.85,
    "List the {cols} of {things} whose {missing} is known.",
    "Which {entities} have {a_missing} on record?",
    "Show the {col} of all {things} whose {missing} is not missing.",
    "Find the {cols} of the {things} with a recorded {missing}.",
)
def is_not_null(pick):
    return null_check(pick, "IS NOT NULL")


def null_check(pick: Picker, test: str):
    """A column is empty or not."""
    table = (
        pick.table("optional")
        if pick.rng.random() < 0.7 and any(t.having("optional") for t in pick.schema.tables)
        else pick.table("category", "number", "year", "date")
    )
    asked = pick.one(table.having("optional") or table.having("category", "number", "year", "date"))
    column, words = pick.target(table, but=(asked,), label=0.8)
    if column == asked:
        raise NotHereError
    words["missing"] = pick.rng.choice(asked.phrases)
    words["a_missing"] = article(words["missing"])
    return words, f"SELECT {column.name} FROM {table.name} WHERE {asked.name} {test}"


# Counting and aggregating one table


@kind(0.85, "How many {things} are there?", "What is the number of {things}?", "Count all {things}.")
def count_all(pick):
    table = pick.table()
    return table_words(table), f"SELECT COUNT(*) FROM {table.name}"


@kind(
    1.8,
    "How many {things} {clause}?",
    "How many {matches} are there?",
    "What is the number of {matches}?",
    "Count the {matches}.",
)
def count_filter(pick):
    table = pick.table("category", "number", "count", "year", "date")
    condition = pick.condition(table)
    words = table_words(table) | {"matches": matching(table, condition), "clause": condition.clause}
    return words, f"SELECT COUNT(*) FROM {table.name} WHERE {condition.sql}"


@kind(
    0.85,
    "How many different {categories} do the {things} have?",
    "How many distinct {categories} are there among the {things}?",
    "Count the different {categories} of the {things}.",
    "What is the number of distinct {categories} of {things}?",
)
def count_distinct(pick):
    return distinct_column(pick, "COUNT(DISTINCT {})")


@kind(
    0.85,
    "List the different {categories} of the {things}.",
    "What are the distinct {categories} of {things}?",
    "Which different {categories} do the {things} have?",
    "Show all the {categories} of {things} without repeats.",
)
def distinct_values(pick):
    return distinct_column(pick, "DISTINCT {}")


def distinct_column(pick: Picker, selected: str):
    """The different values of a category."""
    table = pick.table("category")
    column = pick.column(table, "category")
    words = table_words(table) | {"categories": plural(pick.rng.choice(column.phrases))}
    return words, f"SELECT {selected.format(column.name)} FROM {table.name}"


def aggregate_of(pick: Picker, column: Column) -> tuple[str, str]:
    """A function of a column in SQL, and its words: "average price"."""
    noun = measure(column, pick.rng)
    most, least = ("highest", "lowest") if column.role == "count" else column.extremes
    options = [("MAX", most), ("MIN", least)]
    if column.role != "year":
        options += [("AVG", "average"), ("AVG", "average")]
    if column.summable:
        options += [("SUM", "total"), ("SUM", "total")]
    function, adjective = pick.rng.choice(options)
    return f"{function}({{}}{column.name})", f"{adjective} {noun}"


@kind(
    1.7,
    "What is the {aggregate} of all {things}?",
    "What is the {aggregate} across all {things}?",
    "Find the {aggregate} of the {things}.",
    "Calculate the {aggregate} for all {things}.",
)
def aggregate(pick):
    table = pick.table("number", "count", "year")
    sql, phrase = aggregate_of(pick, pick.column(table, "number", "count", "year"))
    return table_words(table) | {"aggregate": phrase}, f"SELECT {sql.format('')} FROM {table.name}"


@kind(
    1.4,
    "What is the {aggregate} of {matches}?",
    "Find the {aggregate} of the {matches}.",
    "For {matches}, what is the {aggregate}?",
    "What is the {aggregate} of the {things} {that} {clause}?",
)
def aggregate_filter(pick):
    table = pick.table("number", "count", "year")
    column = pick.column(table, "number", "count", "year")
    sql, phrase = aggregate_of(pick, column)
    condition = pick.condition(table, but=(column,))
    words = {"aggregate": phrase, "matches": matching(table, condition), "clause": condition.clause}
    return table_words(table) | words, f"SELECT {sql.format('')} FROM {table.name} WHERE {condition.sql}"


@kind(
    0.85,
    "What are the {least} and the {most} {measure} of the {things}?",
    "Show the {least} and {most} {measure} among all {things}.",
    "Find both the {least} and the {most} {measure} of any {thing}.",
)
def min_max(pick):
    words, column, table = extremes(pick)
    return words, f"SELECT MIN({column}), MAX({column}) FROM {table}"


def extremes(pick: Picker) -> tuple[dict[str, str], str, str]:
    """The words for the extremes of a column."""
    table = pick.table("number", "count", "year")
    column = pick.column(table, "number", "count", "year")
    most, least = ("highest", "lowest") if column.role == "count" else column.extremes
    words = table_words(table) | {"most": most, "least": least, "measure": measure(column, pick.rng)}
    return words, column.name, table.name


# Ordering


def ordering(pick: Picker, table: Table) -> tuple[Column, str, dict[str, str]]:
    """A column to order by, its direction and the words for it."""
    column = pick.column(table, "number", "count", "year", "date")
    most, least = column.extremes
    if pick.rng.random() < 0.6:
        direction, first, last, order = "DESC", most, least, "descending"
    else:
        direction, first, last, order = "ASC", least, most, "ascending"
    key = measure(column, pick.rng)
    phrase = key.removeprefix("number of ")
    return column, direction, {"first": first, "last": last, "order": order, "key": key, "plain_key": phrase}


@kind(
    1.4,
    "List the {cols} of all {things} by {key} in {order} order.",
    "Show the {col} of every {thing}, ordered from {first} to {last} {plain_key}.",
    "What are the {cols} of the {things}, sorted by {key} in {order} order?",
    "Sort the {things} from {first} to {last} {plain_key} and show their {cols}.",
)
def order_by(pick):
    table = pick.table("number", "count", "year", "date")
    key, direction, order = ordering(pick, table)
    column, words = pick.target(table, but=(key,))
    return words | order, f"SELECT {column.name} FROM {table.name} ORDER BY {key.name} {direction}"


@kind(
    0.95,
    "List the {cols} of {matches} by {key} in {order} order.",
    "Show the {col} of all {matches}, ordered from {first} to {last} {plain_key}.",
    "What are the {cols} of the {things} {that} {clause}, sorted by {key} in {order} order?",
)
def filter_order(pick):
    table = pick.table("number", "count", "year", "date")
    key, direction, order = ordering(pick, table)
    condition = pick.condition(table, but=(key,))
    column, words = pick.target(table, but=(key,), label=0.9)
    words |= order | {"matches": matching(table, condition), "clause": condition.clause}
    where = f"WHERE {condition.sql} ORDER BY {key.name} {direction}"
    return words, f"SELECT {column.name} FROM {table.name} {where}"


@kind(
    1.4,
    "Which {entity} has the {first} {plain_key}?",
    "What is the {col} of the {thing} with the {first} {plain_key}?",
    "Find the {col} of the {thing} that has the {first} {plain_key}.",
)
def top_one(pick):
    table = pick.table("number", "count", "year", "date")
    key, direction, order = ordering(pick, table)
    column, words = pick.target(table, but=(key,), label=0.75)
    return words | order, f"SELECT {column.name} FROM {table.name} ORDER BY {key.name} {direction} LIMIT 1"


@kind(
    1,
    "Which {number} {entities} have the {first} {plain_key}?",
    "List the {cols} of the {number} {things} with the {first} {plain_key}.",
    "Show the {cols} of the top {number} {things} by {first} {plain_key}.",
)
def top_n(pick):
    table = pick.table("number", "count", "year", "date")
    key, direction, order = ordering(pick, table)
    column, words = pick.target(table, but=(key,), label=0.8)
    count = pick.rng.choice((2, 3, 4, 5, 10))
    words |= order | {"number": pick.rng.choice((str(count), WORDS.get(count, str(count))))}
    return words, f"SELECT {column.name} FROM {table.name} ORDER BY {key.name} {direction} LIMIT {count}"


# Grouping


@kind(
    1.3,
    "How many {things} are there for each {category}?",
    "Show each {category} and the number of {things}.",
    "Count the {things} per {category}.",
    "For every {category}, show the number of {things}.",
)
def group_count(pick):
    table, group = group_table(pick)
    words = table_words(table) | {"category": pick.rng.choice(group.phrases)}
    return words, f"SELECT {group.name}, COUNT(*) FROM {table.name} GROUP BY {group.name}"


@kind(
    1.3,
    "What is the {aggregate} of the {things} for each {category}?",
    "Show each {category} and the {aggregate} of its {things}.",
    "Find the {aggregate} of the {things} per {category}.",
    "For every {category}, show the {aggregate} of the {things}.",
)
def group_aggregate(pick):
    table, group = group_table(pick, "number", "count", "year")
    sql, phrase = aggregate_of(pick, pick.column(table, "number", "count", "year"))
    words = table_words(table) | {"category": pick.rng.choice(group.phrases), "aggregate": phrase}
    return words, f"SELECT {group.name}, {sql.format('')} FROM {table.name} GROUP BY {group.name}"


@kind(
    0.85,
    "How many {matches} are there for each {category}?",
    "Show each {category} and the number of {matches}.",
    "Count the {things} {that} {clause} per {category}.",
)
def group_filter(pick):
    table, group = group_table(pick)
    condition = pick.condition(table, but=(group,))
    words = table_words(table) | {"category": pick.rng.choice(group.phrases)}
    words |= {"matches": matching(table, condition), "clause": condition.clause}
    return words, f"SELECT {group.name}, COUNT(*) FROM {table.name} WHERE {condition.sql} GROUP BY {group.name}"


@kind(
    1,
    "Which {categories} have {more} {number} {things}?",
    "List the {categories} that have {more} {number} {things}.",
    "Show every {category} with {more} {number} {things}.",
)
def having_count(pick):
    table, group = group_table(pick)
    sign, more = pick.rng.choice(((">", "more than"), (">", "more than"), ("<", "fewer than"), (">=", "at least")))
    number = pick.rng.randint(2, 12)
    phrase = pick.rng.choice(group.phrases)
    words = {"category": phrase, "categories": plural(phrase), "more": more, "number": str(number)}
    grouped = f"GROUP BY {group.name} HAVING COUNT(*) {sign} {number}"
    return table_words(table) | words, f"SELECT {group.name} FROM {table.name} {grouped}"


@kind(
    0.9,
    "Which {categories} have {an_aggregate} {more} {number} for their {things}?",
    "List the {categories} whose {things} have {an_aggregate} {more} {number}.",
    "For which {categories} is the {aggregate} of the {things} {more} {number}?",
)
def having_aggregate(pick):
    table, group = group_table(pick, "number", "count")
    column = pick.column(table, "number", "count")
    function, adjective = ("SUM", "total") if column.summable and pick.rng.random() < 0.4 else ("AVG", "average")
    sign, more = pick.rng.choice(((">", "above"), ("<", "below"), (">", "greater than"), ("<", "less than")))
    number = pick.number(column)
    aggregated = f"{adjective} {measure(column, pick.rng)}"
    words = {"categories": plural(pick.rng.choice(group.phrases)), "more": more, "number": str(number)}
    words |= {"aggregate": aggregated, "an_aggregate": article(aggregated)}
    grouped = f"GROUP BY {group.name} HAVING {function}({column.name}) {sign} {number}"
    return table_words(table) | words, f"SELECT {group.name} FROM {table.name} {grouped}"


@kind(
    1,
    "What is the {most} common {category} among the {things}?",
    "Which {category} has the {many} {things}?",
    "Which {category} appears {most} often among the {things}?",
    "Find the {category} with the {many} {things}.",
)
def most_common(pick):
    table, group = group_table(pick)
    direction, most, many = pick.rng.choice(
        (("DESC", "most", "most"), ("DESC", "most", "most"), ("ASC", "least", "fewest"))
    )
    words = table_words(table) | {"category": pick.rng.choice(group.phrases), "most": most, "many": many}
    grouped = f"GROUP BY {group.name} ORDER BY COUNT(*) {direction} LIMIT 1"
    return words, f"SELECT {group.name} FROM {table.name} {grouped}"


# Subqueries, set queries and arithmetic on one table


@kind(
    1,
    "Which {entities} have {a_measure} {above} the average?",
    "List the {cols} of {things} whose {measure} is {above} the average.",
    "Show the {col} of all {things} with {a_measure} {above} the average {measure}.",
)
def beside_average(pick):
    table = pick.table("number", "count")
    asked = pick.column(table, "number", "count")
    sign, above = pick.rng.choice(((">", "above"), (">", "higher than"), ("<", "below"), ("<", "lower than")))
    column, words = pick.target(table, but=(asked,), label=0.8)
    words |= {"measure": measure(asked, pick.rng), "above": above}
    words["a_measure"] = article(words["measure"])
    average = f"(SELECT AVG({asked.name}) FROM {table.name})"
    return words, f"SELECT {column.name} FROM {table.name} WHERE {asked.name} {sign} {average}"


@kind(
    1.5,
    "Which {categories} have both {things} {that} {clause} and {things} {that} {clause2}?",
    "List the {categories} shared by {things} {that} {clause} and {things} {that} {clause2}.",
    "Find every {category} that occurs both among {things} {that} {clause} and among {things} {that} {clause2}.",
)
def intersect(pick):
    return set_query(pick, "INTERSECT")


@kind(
    1.5,
    "Which {categories} have {things} {that} {clause} but no {things} {that} {clause2}?",
    "List the {categories} of {things} {that} {clause}, leaving out those of {things} {that} {clause2}.",
    "Find every {category} that occurs among {things} {that} {clause} but not among {things} {that} {clause2}.",
)
def except_query(pick):
    return set_query(pick, "EXCEPT")


def set_query(pick: Picker, word: str):
    """The values of a category under one condition, combined with those under another."""
    table, group = group_table(pick)
    first = pick.condition(table, but=(group,))
    second = pick.condition(table, but=(group, *about(table, first)))
    phrase = pick.rng.choice(group.phrases)
    words = {"category": phrase, "categories": plural(phrase), "clause": first.clause, "clause2": second.clause}
    select = f"SELECT {group.name} FROM {table.name} WHERE"
    return table_words(table) | words, f"{select} {first.sql} {word} {select} {second.sql}"


SIGNS = {"*": "multiplied by", "-": "minus", "+": "plus"}


@kind(
    8,
    "Show the {col} and the {left} {sign} the {right} of each {thing}.",
    "For every {thing}, give the {col} and the {left} {sign} the {right}.",
    "What are the {col} and the {left} {sign} the {right} of all {things}?",
)
def arithmetic(pick):
    table = pick.one([table for table in pick.schema.tables if table.pairs])
    left, sign, right = pick.rng.choice(table.pairs)
    column, words = pick.target(table, but=(left, right), label=0.5)
    words |= {"left": measure(left, pick.rng), "sign": SIGNS[sign], "right": measure(right, pick.rng)}
    return words, f"SELECT {column.name}, {left.name} {sign} {right.name} FROM {table.name}"


@kind(
    7,
    "Which {entities} have {a_left} {compared} their {right}?",
    "List the {cols} of {things} whose {left} is {compared} the {right}.",
    "Show the {col} of all {things} with {a_left} {compared} the {right}.",
    "Find the {cols} of every {thing} where the {left} is {compared} the {right}.",
)
def compare_columns(pick):
    table, (left, _, right) = pick.one(
        [(table, pair) for table in pick.schema.tables for pair in table.pairs if pair[1] == "-"]
    )
    sign, compared = pick.rng.choice(
        ((">", "greater than"), ("<", "less than"), (">", "higher than"), ("<", "lower than"))
    )
    column, words = pick.target(table, but=(left, right), label=0.5)
    words |= {"left": measure(left, pick.rng), "right": measure(right, pick.rng), "compared": compared}
    words["a_left"] = article(words["left"])
    return words, f"SELECT {column.name} FROM {table.name} WHERE {left.name} {sign} {right.name}"


# Two tables


@kind(
    1.2,
    "Show the {col} of each {thing} and the {pcol} of {its} {pthing}.",
    "List every {thing}'s {col} together with the {pcol} of {its} {pthing}.",
    "For each {thing}, give the {col} and the {pcol} of {its} {pthing}.",
)
def join_columns(pick):
    child, parent, _ = pick.family()
    left, words = pick.target(child, label=0.7)
    right, asked = pick.target(parent, label=0.8)
    columns = f"{child.name}.{left.name}, {parent.name}.{right.name}"
    return both(words, asked), f"SELECT {columns} FROM {join(child, parent)}"


@kind(
    2,
    "List the {cols} of {things} {rel} {pmatches}.",
    "Which {entities} are {rel} {pmatches}?",
    "What are the {cols} of the {things} {rel} {pmatches}?",
    "Show the {col} of all {things} {rel} {pthings} {pthat} {pclause}.",
)
def join_filter(pick):
    child, parent, rel = pick.family()
    condition = pick.condition(parent, prefix=f"{parent.name}.")
    column, words = pick.target(child)
    words = both(words, table_words(parent))
    words |= {"rel": rel, "pmatches": matching(parent, condition), "pclause": condition.clause}
    return words, f"SELECT {child.name}.{column.name} FROM {join(child, parent)} WHERE {condition.sql}"


@kind(
    1.3,
    "List the {cols} of {things} {rel} the {pthing} {value}.",
    "Which {entities} are {rel} the {pthing} {value}?",
    "Show the {col} of all {things} {rel} the {pthing} with the {plabel} {value}.",
)
def join_named(pick):
    child, parent, rel = pick.family()
    value = pick.rng.choice(parent.label.values)
    column, words = pick.target(child)
    words = both(words, table_words(parent)) | {"rel": rel, "value": value}
    where = f"{parent.name}.{parent.label.name} = {literal(value)}"
    return words, f"SELECT {child.name}.{column.name} FROM {join(child, parent)} WHERE {where}"


@kind(
    1.3,
    "List the {cols} of {matches} {rel} {pmatches}.",
    "What are the {cols} of the {matches} {rel} {pmatches}?",
    "Which {entities} {clause} and are {rel} {pmatches}?",
)
def join_two_filters(pick):
    child, parent, rel = pick.family("category", "number", "count", "year", "date")
    first = pick.condition(child, prefix=f"{child.name}.")
    second = pick.condition(parent, prefix=f"{parent.name}.")
    column, words = pick.target(child)
    if f".{column.name} " in first.sql:
        raise NotHereError
    words |= {
        "matches": matching(child, first),
        "clause": first.clause,
        "rel": rel,
        "pmatches": matching(parent, second),
    }
    where = f"{first.sql} AND {second.sql}"
    return words, f"SELECT {child.name}.{column.name} FROM {join(child, parent)} WHERE {where}"


@kind(
    2.2,
    "What is the {pcol} of the {pthing} of the {thing} {value}?",
    "Find the {pcol} of the {pthing} for the {thing} {value}.",
    "For the {thing} {value}, what is the {pcol} of {its} {pthing}?",
)
def join_lookup(pick):
    child, parent, _ = pick.family(child_label=True)
    value = pick.rng.choice(child.label.values)
    column, asked = pick.target(parent, label=0.35)
    words = both(table_words(child), asked) | {"value": value}
    where = f"{child.name}.{child.label.name} = {literal(value)}"
    return words, f"SELECT {parent.name}.{column.name} FROM {join(child, parent)} WHERE {where}"


@kind(
    1.3,
    "How many {things} are {rel} {pmatches}?",
    "Count the {things} {rel} {pmatches}.",
    "What is the number of {things} {rel} {pmatches}?",
)
def join_count(pick):
    child, parent, rel = pick.family()
    condition = pick.condition(parent, prefix=f"{parent.name}.")
    words = table_words(child) | {"rel": rel, "pmatches": matching(parent, condition)}
    return words, f"SELECT COUNT(*) FROM {join(child, parent)} WHERE {condition.sql}"


@kind(
    1.2,
    "What is the {aggregate} of {things} {rel} {pmatches}?",
    "Find the {aggregate} of the {things} {rel} {pmatches}.",
    "For {things} {rel} {pmatches}, what is the {aggregate}?",
)
def join_aggregate(pick):
    child, parent, rel = pick.family("number", "count", "year")
    sql, phrase = aggregate_of(pick, pick.column(child, "number", "count", "year"))
    condition = pick.condition(parent, prefix=f"{parent.name}.")
    words = table_words(child) | {"aggregate": phrase, "rel": rel, "pmatches": matching(parent, condition)}
    return words, f"SELECT {sql.format(child.name + '.')} FROM {join(child, parent)} WHERE {condition.sql}"


@kind(
    1.3,
    "How many {things} are there for each {pthing} {pkey}?",
    "Show each {pthing} {pkey} and the number of {things}.",
    "Count the {things} per {pthing} {pkey}.",
    "For each {pthing} {pkey}, show the number of {things}.",
)
def join_group_count(pick):
    child, parent, _ = pick.family()
    key = pick.one([parent.label, parent.label, *parent.having("category")])
    words = both(table_words(child), table_words(parent)) | {"pkey": pick.rng.choice(key.phrases)}
    key = f"{parent.name}.{key.name}"
    return words, f"SELECT {key}, COUNT(*) FROM {join(child, parent)} GROUP BY {key}"


@kind(
    1.2,
    "What is the {aggregate} of the {things} for each {pthing} {pkey}?",
    "Show each {pthing} {pkey} and the {aggregate} of the {things}.",
    "Find the {aggregate} of the {things} per {pthing} {pkey}.",
)
def join_group_aggregate(pick):
    child, parent, _ = pick.family("number", "count", "year")
    key = pick.one([parent.label, parent.label, *parent.having("category")])
    sql, phrase = aggregate_of(pick, pick.column(child, "number", "count", "year"))
    words = both(table_words(child), table_words(parent))
    words |= {"pkey": pick.rng.choice(key.phrases), "aggregate": phrase}
    key = f"{parent.name}.{key.name}"
    return words, f"SELECT {key}, {sql.format(child.name + '.')} FROM {join(child, parent)} GROUP BY {key}"


@kind(
    1.2,
    "Which {pthings} have {more} {number} {things}?",
    "List the {plabels} of {pthings} with {more} {number} {things}.",
    "Show the {plabel} of every {pthing} {pthat} has {more} {number} {things}.",
)
def join_having(pick):
    child, parent, _ = pick.family()
    sign, more = pick.rng.choice(((">", "more than"), (">", "more than"), ("<", "fewer than"), (">=", "at least")))
    number = pick.rng.randint(2, 12)
    words = both(table_words(child), table_words(parent)) | {"more": more, "number": str(number)}
    key = f"{parent.name}.{parent.label.name}"
    return words, f"SELECT {key} FROM {join(child, parent)} GROUP BY {key} HAVING COUNT(*) {sign} {number}"


@kind(
    1.2,
    "Which {pthing} has the {many} {things}?",
    "What is the {plabel} of the {pthing} with the {many} {things}?",
    "Find the {plabel} of the {pthing} {pthat} has the {many} {things}.",
)
def join_most(pick):
    child, parent, _ = pick.family()
    direction, many = pick.rng.choice((("DESC", "most"), ("DESC", "most"), ("ASC", "fewest")))
    words = both(table_words(child), table_words(parent)) | {"many": many}
    key = f"{parent.name}.{parent.label.name}"
    return words, f"SELECT {key} FROM {join(child, parent)} GROUP BY {key} ORDER BY COUNT(*) {direction} LIMIT 1"


@kind(
    1.2,
    "What is the {pcol} of the {pthing} of the {thing} with the {first} {plain_key}?",
    "Find the {pcol} of the {pthing} that goes with the {thing} with the {first} {plain_key}.",
    "For the {thing} with the {first} {plain_key}, what is the {pcol} of {its} {pthing}?",
)
def join_top(pick):
    child, parent, _ = pick.family("number", "count", "year", "date")
    key, direction, order = ordering(pick, child)
    column, asked = pick.target(parent, label=0.7)
    words = both(table_words(child), asked) | order
    ordered = f"ORDER BY {child.name}.{key.name} {direction} LIMIT 1"
    return words, f"SELECT {parent.name}.{column.name} FROM {join(child, parent)} {ordered}"


@kind(
    1.4,
    "Which {pthings} have at least one {thing} {modifier}?",
    "List the {plabels} of {pthings} with at least one {thing} {modifier}.",
    "Show the {plabel} of every {pthing} {pthat} has at least one {thing} {modifier}.",
)
def nested_in(pick):
    child, parent, _ = pick.family("category", "number", "count", "year", "date")
    condition = pick.condition(child)
    words = both(table_words(child), table_words(parent)) | {"modifier": condition.modifier}
    inner = f"SELECT {parent.singular}_id FROM {child.name} WHERE {condition.sql}"
    return words, f"SELECT {parent.label.name} FROM {parent.name} WHERE id IN ({inner})"


@kind(
    1.25,
    "Which {pentities} have no {matches}?",
    "List the {pcols} of {pthings} without any {matches}.",
    "Show the {pcol} of every {pthing} {pthat} does not have any {matches}.",
    "What are the {pcols} of the {pthings} {pthat} have no {matches}?",
)
def not_in(pick):
    child, parent, _ = pick.family("category", "number", "count", "year", "date")
    column, asked = pick.target(parent, label=0.8)
    words = both(table_words(child), asked)
    words["matches"] = words["things"]
    inner = f"SELECT {parent.singular}_id FROM {child.name}"
    if pick.rng.random() < 0.6:
        condition = pick.condition(child)
        words["matches"] = matching(child, condition)
        inner += f" WHERE {condition.sql}"
    return words, f"SELECT {column.name} FROM {parent.name} WHERE id NOT IN ({inner})"


@kind(
    1.5,
    "Give one list of the {labels} of the {things} and the {labels2} of the {things2}.",
    "List the {labels} of all {things} together with the {labels2} of all {things2}, without repeats.",
    "Combine the {labels} of the {things} and the {labels2} of the {things2} into one list.",
)
def union(pick):
    labelled = [table for table in pick.schema.tables if table.label]
    if len(labelled) < 2:
        raise NotHereError
    first, second = pick.rng.sample(labelled, 2)
    words = table_words(first) | {f"{key}2": value for key, value in table_words(second).items()}
    left, right = (f"SELECT {table.label.name} FROM {table.name}" for table in (first, second))
    return words, f"{left} UNION {right}"


# Three tables


def linked(pick: Picker) -> tuple[Table, Table, Table, str]:
    """A linking table, its two parents and the words between them."""
    table = pick.one([table for table in pick.schema.tables if table.link])
    (left, _), (right, _) = table.parents
    return table, left, right, table.link


@kind(
    6,
    "List the {cols} of {things} {rel} {pmatches}.",
    "Which {entities} are {rel} {pmatches}?",
    "Show the {col} of all {things} {rel} {pmatches}.",
)
def three_tables(pick):
    link, left, right, rel = linked(pick)
    words = table_words(right)
    if pick.rng.random() < 0.6:
        condition = pick.condition(right, prefix=f"{right.name}.")
        where, found = condition.sql, matching(right, condition)
    else:
        value = pick.rng.choice(right.label.values)
        where, found = f"{right.name}.{right.label.name} = {literal(value)}", f"the {words['thing']} {value}"
    column, words = pick.target(left, label=0.6)
    words |= {"rel": rel, "pmatches": found}
    return words, f"SELECT {left.name}.{column.name} FROM {join(link, left, right)} WHERE {where}"
