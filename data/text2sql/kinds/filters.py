"""Queries that select and filter the rows of one table."""

from collections.abc import Callable

from data.text2sql.domains import article, plural
from data.text2sql.kinds.kind import kind
from data.text2sql.phrases import Picker, about, literal, matching, measure


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
    "Show the {cols} of all {matches}.",
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
    "Show the {cols} of all {matches}.",
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
    "Show the {cols} of the {things} {that} both {clause} and {clause2}.",
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
    """Two conditions on different columns, joined by AND or OR."""
    table = pick.table("category", "number", "count", "year", "date")
    first = pick.condition(table)
    asked = about(table, first)
    second = pick.condition(table, "number", "count", "year", "date", "category", but=asked)
    asked += about(table, second)
    column, words = pick.target(table, but=asked, label=0.8)
    words |= {"clause": first.clause, "clause2": second.clause}
    return words, f"SELECT {column.name} FROM {table.name} WHERE {first.sql} {word} {second.sql}"


@kind(
    1.1,
    "List the {cols} of {things} with {a_measure} between {low} and {high}.",
    "Which {entities} have {a_measure} between {low} and {high}?",
    "Show the {cols} of all {things} whose {measure} is between {low} and {high}.",
    "Which {entities} have between {low} and {high} {counted}?",
    "List the {cols} of {things} with between {low} and {high} {counted}.",
    "Show the {cols} of all {things} {that} have between {low} and {high} {counted}.",
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
    elif asked.role == "count":
        words["counted"] = pick.rng.choice(asked.phrases)
    else:
        words["measure"] = measure(asked, pick.rng)
        words["a_measure"] = article(words["measure"])
    between = f"{asked.name} BETWEEN {literal(low)} AND {literal(high)}"
    return words, f"SELECT {column.name} FROM {table.name} WHERE {between}"


@kind(
    0.85,
    "List the {cols} of {things} whose {category} is any of {values}.",
    "Which {entities} have one of these {categories}: {values}?",
    "Show the {cols} of all {things} with any of the {categories} {values}.",
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
    "Show the {cols} of all {things} except those with the {category} {value}.",
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
    "Which {entities} have {a_label} that starts with '{text}'?",
    "List the {cols} of {things} whose {label} starts with '{text}'.",
    "Show the {col} of every {thing} with {a_label} beginning with '{text}'.",
    "Find the {cols} of all {things} with {a_label} that begins with '{text}'.",
)
def like_prefix(pick):
    return like(pick, "{}%", lambda value: pick.rng.choice((value[0], value[:2], value.split()[0])))


@kind(
    0.85,
    "Which {entities} have {a_label} that contains '{text}'?",
    "List the {cols} of {things} whose {label} contains '{text}'.",
    "Show the {col} of every {thing} with '{text}' in {its} {label}.",
    "Find the {cols} of all {things} with {a_label} containing '{text}'.",
)
def like_contains(pick):
    return like(
        pick, "%{}%", lambda value: pick.rng.choice((value.split()[-1], value[1:4].strip(), value[-3:].strip()))
    )


def like(pick: Picker, pattern: str, part: Callable):
    """A pattern, filled with part of a value, for the column that names the row."""
    table = pick.table(label=True)
    text = part(pick.rng.choice(table.label.values))
    column, words = pick.target(table, label=0.7)
    words["text"] = text
    condition = f"{table.label.name} LIKE '{pattern.format(text)}'"
    return words, f"SELECT {column.name} FROM {table.name} WHERE {condition}"


@kind(
    0.85,
    "List the {cols} of {things} {that} have no {missing}.",
    "Which {entities} have no {missing} on record?",
    "Show the {cols} of all {things} whose {missing} is missing.",
    "Find the {cols} of the {things} without a recorded {missing}.",
)
def is_null(pick):
    return null_check(pick, "IS NULL")


@kind(
    0.85,
    "List the {cols} of {things} whose {missing} is known.",
    "Which {entities} have {a_missing} on record?",
    "Show the {cols} of all {things} whose {missing} is not missing.",
    "Find the {cols} of the {things} with a recorded {missing}.",
)
def is_not_null(pick):
    return null_check(pick, "IS NOT NULL")


def null_check(pick: Picker, test: str):
    """A test of whether a column is empty."""
    roles = ("optional",) if pick.rng.random() < 0.5 else ("optional", "category", "number", "year", "date")
    table = pick.table(*roles)
    asked = pick.column(table, *roles)
    column, words = pick.target(table, but=(asked,), label=0.8)
    words["missing"] = pick.rng.choice(asked.phrases)
    words["a_missing"] = article(words["missing"])
    return words, f"SELECT {column.name} FROM {table.name} WHERE {asked.name} {test}"
