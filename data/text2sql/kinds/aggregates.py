"""Queries that count, aggregate, order and group the rows of one table."""

from data.text2sql.domains import Column, Table, article, plural
from data.text2sql.kinds.kind import kind
from data.text2sql.phrases import Picker, matching, measure, table_words

WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


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
    """A query for `selected` of a category."""
    table = pick.table("category")
    column = pick.column(table, "category")
    words = table_words(table) | {"categories": plural(pick.rng.choice(column.phrases))}
    return words, f"SELECT {selected.format(column.name)} FROM {table.name}"


def aggregate_of(pick: Picker, column: Column) -> tuple[str, str]:
    """An aggregate of a column: its SQL, with `{}` for a qualifier, and its words ("average price")."""
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
    """The words for a column and its extremes, the column and its table."""
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
