"""Queries over two or three tables."""

from itertools import combinations

from data.text2sql.domains import Column, Table, plural
from data.text2sql.kinds.aggregates import aggregate_of, ordering
from data.text2sql.kinds.kind import kind
from data.text2sql.phrases import NotHereError, Picker, both, join, literal, matching, table_words

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
    """The columns that hold words. The one that names a row stands twice, to be picked more often."""
    return [*table.having("label"), *table.having("label", "category")]


# Three tables


def linked(pick: Picker) -> tuple[Table, Table, Table, str]:
    """A linking table, the two tables that it refers to, and the words between them."""
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
