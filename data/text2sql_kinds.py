"""The kinds of query of the built-in text-to-SQL rows: how each is asked in English and answered in SQL.

A kind is a function that picks tables, columns and values and returns the words for its question and the query.
The decorator holds its wordings and about how many rows of it each schema gets; a wording is used only where the
function returned every word that it needs. The SQL has one style: full table names as qualifiers and only where there
is a join, the referring table first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from text2sql_domains import Column, Table, article, plural
from text2sql_phrases import NotHereError, Picker, about, both, join, literal, matching, measure, table_words

WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Kind:
    """A kind of query."""

    name: str
    rows: float  # for each schema that it fits
    wordings: tuple[str, ...]
    make: Callable


KINDS: dict[str, Kind] = {}


def kind(rows: float, *wordings: str) -> Callable:
    """Register a kind of query under the function's name."""

    def register(make: Callable) -> Callable:
        KINDS[make.__name__] = Kind(make.__name__, rows, wordings, make)
        return make

    return register


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
    """Two conditions on different columns."""
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
    """A pattern on the column that names the row."""
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
    """A column is empty or not."""
    roles = ("optional",) if pick.rng.random() < 0.5 else ("optional", "category", "number", "year", "date")
    table = pick.table(*roles)
    asked = pick.column(table, *roles)
    column, words = pick.target(table, but=(asked,), label=0.8)
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
    "Show the {cols} of all {matches}, ordered from {first} to {last} {plain_key}.",
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
    count = pick.rng.randint(2, 5)
    words |= order | {"number": pick.rng.choice((str(count), WORDS[count]))}
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
    table, group = pick.grouped()
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
    table, group = pick.grouped("number", "count", "year")
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
    table, group = pick.grouped()
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
    table, group = pick.grouped()
    sign, more = pick.rng.choice(((">", "more than"), (">", "more than"), ("<", "fewer than"), (">=", "at least")))
    number = pick.rng.randint(2, 6)
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
    table, group = pick.grouped("number", "count")
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
    table, group = pick.grouped()
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
    """The values of a category under one condition, combined with those under another."""
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
    "Show the {cols} of all {things} {rel} {pthings} {pthat} {pclause}.",
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
    "Show the {cols} of all {things} {rel} the {pthing} with the {plabel} {value}.",
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
    sign, more = pick.rng.choice(((">", "more than"), (">=", "at least")))
    number = pick.rng.randint(2, 6)
    words = both(table_words(child), table_words(parent)) | {"more": more, "number": str(number)}
    key = f"{parent.name}.{parent.label.name}"
    return words, f"SELECT {key} FROM {join(child, parent)} GROUP BY {key} HAVING COUNT(*) {sign} {number}"


@kind(
    1.2,
    "Which {pthing} has the most {things}?",
    "What is the {plabel} of the {pthing} with the most {things}?",
    "Find the {plabel} of the {pthing} {pthat} has the most {things}.",
)
def join_most(pick):
    child, parent, _ = pick.family()
    words = both(table_words(child), table_words(parent))
    key = f"{parent.name}.{parent.label.name}"
    return words, f"SELECT {key} FROM {join(child, parent)} GROUP BY {key} ORDER BY COUNT(*) DESC LIMIT 1"


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
    1.2,
    "Give one list of the {cols} of the {things} and the {pcols} of the {pthings}.",
    "List the {cols} of all {things} together with the {pcols} of all {pthings}, without repeats.",
    "Combine the {cols} of the {things} and the {pcols} of the {pthings} into one list.",
)
def union(pick):
    first, second = pick.one([pair for pair in combinations(reversed(pick.schema.tables), 2) if all(map(texts, pair))])
    left, right = pick.one(texts(first)), second.label or pick.one(texts(second))
    words = both(table_words(first), table_words(second))
    words |= {"cols": plural(pick.rng.choice(left.phrases)), "pcols": plural(pick.rng.choice(right.phrases))}
    return words, f"SELECT {left.name} FROM {first.name} UNION SELECT {right.name} FROM {second.name}"


def texts(table: Table) -> list[Column]:
    """The columns that hold words, the one that names a row twice: it is asked for more often."""
    return [*table.having("label"), *table.having("label", "category")]


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
    "Show the {cols} of all {things} {rel} {pmatches}.",
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
