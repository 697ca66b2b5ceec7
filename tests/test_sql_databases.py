import os
import subprocess
import sys
from random import Random

from qlora.sql.comparison import same_results
from qlora.sql.constraints import read_constraints
from qlora.sql.databases import Generator
from qlora.sql.judge import Judge
from qlora.sql.literals import compare
from qlora.sql.queries import normal_form, parse, plain_strings, without_distinct
from qlora.sql.sandbox import Result
from qlora.sql.schema import SchemaError, read_schema
from qlora.sql.shapes import SHAPES

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCHOOL = (
    "CREATE TABLE Dept (dept_id INTEGER PRIMARY KEY, name VARCHAR UNIQUE, budget REAL NOT NULL);"
    "CREATE TABLE Course (code VARCHAR, dept_id INTEGER, credits INTEGER, started DATE, PRIMARY KEY (code, dept_id),"
    " FOREIGN KEY (dept_id) REFERENCES Dept(dept_id));"
    "CREATE TABLE Enrolment (student INTEGER, code VARCHAR, grade VARCHAR, dept_id INTEGER REFERENCES Dept)"
)
QUERY = (
    "SELECT d.name, count(*) FROM dept d JOIN course c ON c.dept_id = d.dept_id JOIN enrolment e ON e.code = c.code "
    "WHERE c.credits >= 3 AND e.grade = 'A' AND d.budget BETWEEN 1000 AND 2000.5 GROUP BY d.dept_id HAVING count(*) > 2"
)


def databases(query, context=SCHOOL, seed=0, nulls=True):
    schema = read_schema(context)
    generator = Generator(schema, read_constraints([parse(query)], schema))
    return [generator.database(Random(f"{seed}{number}"), shape, nulls=nulls) for number, shape in enumerate(SHAPES)]


def test_reads_a_schema():
    schema = read_schema(SCHOOL)
    assert list(schema.tables) == ["dept", "course", "enrolment"]
    assert schema.tables["course"].columns == {
        "code": "VARCHAR",
        "dept_id": "INTEGER",
        "credits": "INTEGER",
        "started": "DATE",
    }
    assert schema.tables["course"].primary_key == ("code", "dept_id")
    assert schema.tables["dept"].unique == (("dept_id",), ("name",))
    keys = {(key.table, key.column, key.parent, key.parent_column) for key in schema.foreign_keys}
    assert keys == {("course", "dept_id", "dept", "dept_id"), ("enrolment", "dept_id", "dept", "dept_id")}


@pytest.mark.parametrize(
    "context",
    ["", "SELECT 1", "CREATE TABLE t (a", "ATTACH 'x' AS y", "CREATE TABLE t (a); DROP TABLE t", "PRAGMA x = 1"],
)
def test_refuses_what_is_no_schema(context):
    with pytest.raises(SchemaError):
        read_schema(context)


def test_declared_keys_hold():
    for seed in range(20):
        for rows in databases(QUERY, seed=seed):
            departments = [row[0] for row in rows["dept"]]
            assert None not in departments
            assert len(set(departments)) == len(departments)
            assert all(row[2] is not None for row in rows["dept"])
            names = [row[1].lower() for row in rows["dept"] if row[1] is not None]
            assert len(set(names)) == len(names)
            pairs = [(str(row[0]).lower(), row[1]) for row in rows["course"]]
            assert len(set(pairs)) == len(pairs)
            assert {row[1] for row in rows["course"]} <= set(departments)
            assert {row[3] for row in rows["enrolment"]} <= {*departments, None}


def test_a_table_may_be_its_own_parent():
    context = "CREATE TABLE staff (id INTEGER PRIMARY KEY, boss INTEGER REFERENCES staff(id), name VARCHAR)"
    for rows in databases("SELECT a.name FROM staff a JOIN staff b ON a.boss = b.id WHERE b.name = 'Ann'", context):
        assert {row[1] for row in rows["staff"]} <= {row[0] for row in rows["staff"]} | {None}
        assert len(rows["staff"]) < 500


def test_lenient_databases_have_no_nulls_but_in_foreign_keys_without_a_parent():
    for rows in databases(
        "SELECT name FROM t WHERE age > 3", "CREATE TABLE t (name VARCHAR, age INTEGER)", nulls=False
    ):
        assert all(value is not None for row in rows["t"] for value in row)


def test_the_query_finds_rows():
    judge = Judge(SCHOOL, QUERY)
    results = [gold.rows for _, gold in judge.suites["strict"].instances()]
    assert any(results)


def test_same_seed_same_databases_in_every_process():
    program = (
        "import sys; sys.path.insert(0, 'tests'); import test_sql_databases as t; "
        "print(hash(0), [t.databases(t.QUERY, seed=s) for s in range(3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
    assert databases(QUERY, seed=1) != databases(QUERY, seed=2)


@given(st.text("ab%_", max_size=8), st.text("ab", max_size=8))
@settings(max_examples=300, deadline=None)
def test_like_is_sqlites(pattern, text):
    import sqlite3

    expected = sqlite3.connect(":memory:").execute("SELECT ? LIKE ?", (text, pattern)).fetchone()[0]
    assert compare(text, "like", pattern) == bool(expected)


rows = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["a", "B", None]), st.sampled_from([1, 1.0, 2.5])), max_size=6
)


@given(rows, st.permutations(range(3)), st.randoms())
@settings(max_examples=150, deadline=None)
def test_rows_and_columns_may_come_in_any_order(table, columns, random):
    other = [tuple(row[column] for column in columns) for row in table]
    assert same_results(Result(3, table), Result(3, other), ordered=True)
    random.shuffle(other)
    assert same_results(Result(3, table), Result(3, other), ordered=False)


@pytest.mark.parametrize(
    ("left", "right", "ordered", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,)], [(1,)], False, False),
        ([("A",)], [("a",)], False, True),
        ([(0.1 + 0.2,)], [(0.3,)], False, True),
        ([(3,)], [(3.0,)], False, True),
        ([(3,)], [("3",)], False, False),
        ([(None,)], [(0,)], False, False),
        ([(10**15,)], [(10**15 + 1,)], False, False),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False, False),
        ([(1, 2), (3, 4)], [(2, 1), (3, 4)], False, False),
    ],
)
def test_comparison(left, right, ordered, same):
    width = len(left[0])
    assert same_results(Result(width, left), Result(width, right), ordered) == same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SELECT name FROM dept", "select D.NAME from Dept as d", True),
        (
            "SELECT name FROM dept WHERE budget > 1 AND name = 'X'",
            "SELECT name FROM dept WHERE 'x' = name AND 1 < budget",
            True,
        ),
        ("SELECT count(*) FROM dept", "SELECT COUNT(1) AS n FROM dept", True),
        (
            "SELECT name FROM dept WHERE budget BETWEEN 1 AND 2",
            "SELECT name FROM dept WHERE budget <= 2 AND budget >= 1",
            True,
        ),
        ("SELECT name FROM dept WHERE budget > 1", "SELECT name FROM dept WHERE budget >= 1", False),
        ("SELECT name, budget FROM dept", "SELECT budget, name FROM dept", False),
        ("SELECT name FROM dept ORDER BY budget", "SELECT name FROM dept ORDER BY budget DESC", False),
        ("SELECT name AS budget FROM dept ORDER BY budget", "SELECT name FROM dept ORDER BY budget", False),
        ("SELECT name FROM dept WHERE upper(name) = 'a'", "SELECT name FROM dept WHERE upper(name) = 'A'", False),
        ("SELECT a.name FROM dept a, dept b", "SELECT b.name FROM dept a, dept b", False),
    ],
)
def test_normal_form(one, other, same):
    schema = read_schema(SCHOOL)
    forms = [normal_form(parse(sql), schema) for sql in (one, other)]
    assert (forms[0] is not None and forms[0] == forms[1]) == same


def test_strings_in_double_quotes():
    schema = read_schema(SCHOOL)
    sql = 'SELECT "name" AS "n one", "Dept"."budget" FROM dept WHERE name = "it\'s" ORDER BY "n one"'
    assert plain_strings(sql, schema) == sql.replace('"it\'s"', "'it''s'")


def test_distinct_is_taken_out():
    sql = "SELECT DISTINCT name, count(DISTINCT budget) FROM dept GROUP BY name"
    assert without_distinct(parse(sql)).sql("sqlite") == "SELECT name, COUNT(budget) FROM dept GROUP BY name"
