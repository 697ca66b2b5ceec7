import subprocess
import sys
import time
from itertools import pairwise

from qlora.sql.sandbox import MAX_CELLS, Database, QueryError
from qlora.sql.verdict import score

import psutil
import pytest
from hostile_sql import HOSTILE

ROW = {
    "question": "Who is older than 30?",
    "context": "CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR, age INTEGER)",
    "answer": "SELECT name FROM people WHERE age > 30",
}
RIGHT = "SELECT p.name FROM people p WHERE NOT p.age <= 30"


@pytest.fixture
def database():
    database = Database({"people": {"id": "INTEGER", "name": "VARCHAR", "age": "INTEGER"}})
    database.fill({"people": [(number, f"n{number}", number % 50) for number in range(60)]})
    return database


def error_class(database, sql):
    with pytest.raises(QueryError) as caught:
        database.run(sql)
    return caught.value.kind


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELEC name FROM people", "not_a_query"),
        ("SELECT name FORM people", "syntax"),
        ("SELECT name FROM persons", "unknown_table"),
        ("SELECT nmae FROM people", "unknown_column"),
        ("SELECT name FROM people a JOIN people b ON a.id = b.id", "ambiguous"),
        ("SELECT nosuch(name) FROM people", "unknown_function"),
        ("SELECT sum(max(age)) FROM people", "invalid"),
        ("SELECT random()", "denied"),
        ("DELETE FROM people", "denied"),
        ("SELECT 1; SELECT 2", "several_statements"),
        ("EXPLAIN SELECT 1", "not_a_query"),
        ("-- nothing", "empty"),
        ("SELECT count(*) FROM people a, people b, people c, people d, people e", "timeout"),
        ("SELECT a.* FROM people a, people b, people c", "too_many_rows"),
        ("SELECT " + "1, " * 3000 + "1", "too_large"),
        ("SELECT '\ud800'", "syntax"),
    ],
)
def test_error_classes(database, sql, kind):
    assert error_class(database, sql) == kind


def test_reads_its_tables_ctes_and_subqueries(database):
    assert database.run("SELECT count(*) FROM people").rows == [(60,)]
    assert database.run("WITH c AS (SELECT id FROM people) SELECT count(*) FROM c").rows == [(60,)]
    assert (
        database.run("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 4) SELECT n FROM c").width
        == 1
    )
    assert database.run("VALUES (1, 2)").rows == [(1, 2)]
    assert database.run("SELECT name FROM people WHERE name = 'N7'").rows == [("n7",)]


def test_reads_a_wide_table():
    wide = Database({"wide": {f"a_rather_long_name_{number}": "VARCHAR" for number in range(1000)}})
    wide.fill({"wide": [tuple(range(1000))]})
    assert wide.run("SELECT * FROM wide").width == 1000


def test_goes_on_after_errors(database):
    for sql in (
        "DROP TABLE people",
        "SELECT count(*) FROM people a, people b, people c, people d, people e",
        "SELECT x",
    ):
        error_class(database, sql)
    assert database.run("SELECT max(id) FROM people").rows == [(59,)]


def test_a_result_of_just_the_limit_is_returned(database):
    sql = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT {}) SELECT n FROM c"
    assert len(database.run(sql.format(MAX_CELLS)).rows) == MAX_CELLS
    assert error_class(database, sql.format(MAX_CELLS + 1)) == "too_many_rows"


def test_the_clock_stands_still(database):
    now = database.run("SELECT date('now'), datetime(), CURRENT_TIMESTAMP, strftime('%Y'), date('NOW', '+1 day')").rows
    time.sleep(1.1)
    assert (
        database.run("SELECT date('now'), datetime(), CURRENT_TIMESTAMP, strftime('%Y'), date('NOW', '+1 day')").rows
        == now
    )
    assert now[0][0] == "2024-07-01"
    assert now[0][2] == "2024-07-01 12:00:00"
    assert database.run("SELECT strftime('%Y', '1999-12-31'), date('1999-12-31', '+1 day')").rows == [
        ("1999", "2000-01-01")
    ]


def how_busy():
    """Seconds that pass for a second of this process's processor time: 1 on an idle machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.3:
        pass
    return (time.perf_counter() - wall) / (time.process_time() - cpu)


def test_hostile_statements_are_stopped_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil"
    predictions = [sql.replace("{file}", str(file)) for sql in HOSTILE for sql in (sql, RIGHT)]
    busy = how_busy()
    moments = [time.perf_counter()]
    verdicts = score(
        [ROW] * len(predictions), predictions, processes=1, progress=lambda _: moments.append(time.perf_counter())
    )
    waits = [after - before for before, after in pairwise(moments)]
    assert len(HOSTILE) >= 100
    assert all(verdict.strict for verdict in verdicts[1::2])
    assert not any(verdict.strict or verdict.lenient for verdict in verdicts[::2])
    # Patterns and the like are honest SQL, and merely slow; everything else must have been refused.
    accepted = [sql for sql, verdict in zip(HOSTILE, verdicts[::2], strict=True) if verdict.valid]
    assert all("LIKE" in sql or "GLOB" in sql or "aaaa" in sql for sql in accepted)
    assert max(waits) < 2 * max(busy, how_busy())
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_bounded():
    """Measured in a fresh process, whose children are the workers alone."""
    program = f"""
import resource, sys
sys.path.insert(0, "tests")
from hostile_sql import HOSTILE
from qlora.sql.verdict import score
row = {ROW!r}
score([row], ["SELECT 1"])
before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
score([row] * len(HOSTILE), HOSTILE, processes=1)
print((resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before) / 1024)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(output) < 128


def test_a_killed_worker_loses_no_row():
    rows = [{**ROW, "answer": f"SELECT name FROM people WHERE age > {number}"} for number in range(40)]
    predictions = [f"SELECT name FROM people p WHERE {number} < p.age" for number in range(40)]
    killed = []

    def kill(done):
        if done in (3, 20):
            workers = [one for one in psutil.Process().children() if "qlora.sql.pool" in one.cmdline()]
            workers[0].kill()
            killed.append(workers[0].pid)

    verdicts = score(rows, predictions, processes=2, progress=kill)
    assert len(killed) == 2
    assert all(verdict.strict for verdict in verdicts)


def test_a_statement_that_ends_its_worker_costs_one_row():
    joins = " JOIN ".join(f"people p{number}" for number in range(1, 60))
    slow = f"SELECT p1.name FROM {joins} ORDER BY 1"
    verdicts = score([ROW] * 3, [RIGHT, slow, RIGHT], processes=1)
    assert [verdict.strict for verdict in verdicts] == [True, False, True]
    assert verdicts[1].error == "timeout"


def test_a_gold_query_that_costs_too_much_is_counted():
    joins = " JOIN ".join(f"people p{number}" for number in range(1, 60))
    row = {**ROW, "answer": f"SELECT p1.name FROM {joins} ORDER BY 1"}
    verdicts = score([row, ROW], [RIGHT, RIGHT], processes=1)
    assert verdicts[0].gold in ("invalid", "undetermined")
    assert not verdicts[0].strict
    assert verdicts[1].strict
