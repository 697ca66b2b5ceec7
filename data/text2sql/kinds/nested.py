"""Queries over one table with subqueries, set operations or arithmetic."""

from data.text2sql.domains import article, plural
from data.text2sql.kinds.kind import kind
from data.text2sql.phrases import Picker, about, measure, table_words


@kind(
    1,
    "Which {entities} have {a_measure} {above} the average?",
    "List the {cols} of {things} whose {measure} is {above} the average.",
    "Show the {cols} of all {things} with {a_measure} {above} the average {measure}.",
    "Which {entities} have {more} {counted} than the average?",
    "List the {cols} of {things} with {more} {counted} than the average.",
)
def beside_average(pick):
    table = pick.table("number", "count")
    asked = pick.column(table, "number", "count")
    sign, above = pick.rng.choice(((">", "above"), (">", "higher than"), ("<", "below"), ("<", "lower than")))
    column, words = pick.target(table, but=(asked,), label=0.8)
    words |= {"measure": measure(asked, pick.rng), "above": above}
    if asked.role == "count":
        words |= {"counted": asked.phrases[0], "more": "more" if sign == ">" else "fewer"}
    else:
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
    """A set operation on the values of a category under two conditions."""
    table, group = pick.grouped()
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
    "Show the {cols} of all {things} with {a_left} {compared} the {right}.",
    "Find the {col} of every {thing} where the {left} is {compared} the {right}.",
    "Which {entities} have {more} {counted} than {counted2}?",
    "Show the {cols} of all {things} with {more} {counted} than {counted2}.",
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
    if left.role == "count":
        words |= {"counted": left.phrases[0], "counted2": right.phrases[0], "more": "more" if sign == ">" else "fewer"}
    else:
        words["a_left"] = article(words["left"])
    return words, f"SELECT {column.name} FROM {table.name} WHERE {left.name} {sign} {right.name}"
