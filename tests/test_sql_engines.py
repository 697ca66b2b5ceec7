import re
import subprocess
import sys
from pathlib import Path

from qlora.runtime.console import Refusal
from qlora.sql import duckdb_engine, engine, mysql, postgres, servers
from qlora.sql.judge import Judge
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import read_schema
from qlora.sql.verdict import score

import pytest
import sql_servers

PEOPLE = "CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR(50), born DATE, pay NUMERIC(8,2), active BOOLEAN)"
ROWS = {
    "people": [
        (1, "Ann", "2001-02-03", 10.5, 1),
        (2, "bob", "1999-12-31", None, 0),
        (3, None, None, 2, None),
    ]
}


@pytest.fixture(scope="module")
def addresses():
    """Engine -> its address, of the servers that this machine can run."""
    with sql_servers.postgres() as one, sql_servers.mysql() as other:
        yield {"postgres": one, "mysql": other}


@pytest.fixture(params=["postgres", "mysql", "duckdb"])
def name(request, monkeypatch):
    if request.param == "duckdb":
        pytest.importorskip("duckdb", reason="the drivers are not installed (make sql-engines)")
    else:
        for each, address in request.getfixturevalue("addresses").items():
            monkeypatch.setenv(servers.VARIABLES[each], address)
    return request.param


@pytest.fixture
def database(name):
    schema = read_schema(PEOPLE, "postgres")
    with engine.running(name) as run:
        one = engine.Engine("postgres" if name == "duckdb" else name, name, run)
        made = one.database(schema)
        made.fill(ROWS)
        yield made
        del made
        one.end_row()
        if run:
            engine._session(name, run).close()
        engine._session.cache_clear()


def test_a_result_has_the_values_of_sqlite(database):
    result = database.run("SELECT id, name, born, pay FROM people ORDER BY id")
    assert result.width == 4
    assert result.rows == [(1, "Ann", "2001-02-03", 10.5), (2, "bob", "1999-12-31", None), (3, None, None, 2)]
    assert database.run("SELECT COUNT(*) FROM people WHERE active").rows == [(1,)]


def test_filling_replaces_the_rows(database):
    database.fill({"people": [(7, "x", None, None, None)]})
    assert database.run("SELECT id FROM people").rows == [(7,)]


def test_rows_that_a_column_does_not_take_are_left_out(database):
    database.fill({"people": [(7, "x", "2001-01-01", None, None), (7, "same key", None, None, None)]})
    assert database.run("SELECT name FROM people").rows in ([("x",)], [("x",), ("same key",)])


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT nothing FROM people", "unknown_column"),
        ("SELECT id FROM persons", "unknown_table"),
        ("SELECT no_such_function(id) FROM people", "unknown_function"),
        ("SELECT id FROM people WHERE", "syntax"),
        ("SELECT a.id FROM people a, people b WHERE id = 1", "ambiguous"),
    ],
)
def test_error_classes(database, sql, kind):
    with pytest.raises(QueryError) as raised:
        database.run(sql)
    assert raised.value.kind == kind


HOSTILE = (
    "DROP TABLE people",
    "DELETE FROM people",
    "UPDATE people SET name = 'x'",
    "INSERT INTO people (id) VALUES (9)",
    "CREATE TABLE t (a INT)",
    "CREATE TEMPORARY TABLE t (a INT)",
    "ALTER TABLE people ADD COLUMN c INT",
    "TRUNCATE people",
    "GRANT ALL ON people TO PUBLIC",
    "SELECT 1; DROP TABLE people",
    "SELECT id FROM people; DELETE FROM people",
    "WITH t AS (DELETE FROM people RETURNING *) SELECT * FROM t",
    "SELECT id INTO t FROM people",
    "COPY people TO '{file}'",
    "COPY (SELECT 1) TO '{file}'",
    "COPY people FROM PROGRAM 'touch {file}'",
    "COPY people TO PROGRAM 'cat > {file}'",
    "SELECT * FROM people INTO OUTFILE '{file}'",
    "SELECT 1 INTO DUMPFILE '{file}'",
    "SELECT 1 /* */ into/**/outfile '{file}'",
    "LOAD DATA INFILE '/etc/passwd' INTO TABLE people",
    "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE people",
    "EXPORT DATABASE '{file}'",
    "ATTACH '{file}' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA enable_profiling",
    "SET statement_timeout = 0",
    "SET ROLE admin",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION admin",
    "SET GLOBAL max_connections = 1",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL no_such_procedure()",
    "VACUUM",
    "LISTEN x",
    "LOCK TABLE people",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SHUTDOWN",
    "KILL 1",
    "SELECT id FROM people FOR UPDATE",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '{file}')",
    "SELECT pg_sleep(100)",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
    "SELECT set_config('role', 'admin', false)",
    "SELECT dblink('host=127.0.0.1', 'SELECT 1')",
    "SELECT SLEEP(100)",
    "SELECT BENCHMARK(1000000000000, MD5('x'))",
    "SELECT LOAD_FILE('/etc/passwd')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT * FROM mysql.user",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "SELECT getenv('HOME')",
    "SELECT COUNT(*) FROM people a, people b, people c, people d, people e, people f, people g, people h, people i, "
    "people j, people k, people l, people m, people n, people o, people p, people q, people r, people s, people t",
    "WITH RECURSIVE c AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
)
# What some engine answers, without anything of the system's.
HARMLESS = (
    HOSTILE[-1],  # MariaDB ends the recursion after 1,000 steps
    "SELECT LOAD_FILE('/etc/passwd')",  # MariaDB: NULL
    "SELECT BENCHMARK(1000000000000, MD5('x'))",  # MariaDB: 0, when its time is over
)


def test_hostile_statements_do_no_harm(database, name, tmp_path):
    for sql in HOSTILE:
        file = Path("/tmp") / f"hostile-{tmp_path.name}-{name}"
        try:
            found = database.run(sql.replace("{file}", str(file)))
        except QueryError:
            found = None
        if found:
            assert sql in HARMLESS, sql
            assert "root:" not in str(found.rows)
        assert not file.exists(), sql
        assert database.run("SELECT id, name FROM people ORDER BY id").rows == [(1, "Ann"), (2, "bob"), (3, None)], sql


def test_a_role_reads_only_the_tables_of_its_row(name, database):
    if name == "duckdb":
        pytest.skip("it runs in the worker")
    kind = "SCHEMA" if name == "postgres" else "DATABASE"
    with database.session.owner.cursor() as cursor:
        cursor.execute(f"CREATE {kind} another")
        cursor.execute("CREATE TABLE another.t (a INT)")
        with pytest.raises(QueryError) as raised:
            database.run("SELECT * FROM another.t")
        cursor.execute(f"DROP {kind} another" + " CASCADE" * (name == "postgres"))
    assert raised.value.kind == "denied"


def test_a_run_leaves_nothing(name):
    if name == "duckdb":
        pytest.skip("it runs in the worker")
    rows = [{"question": "", "context": PEOPLE, "answer": "SELECT name FROM people WHERE pay > 3"}] * 3
    verdicts = score(rows, ["SELECT name FROM people WHERE 3 < pay", "SELECT name", "SELECT name FROM people"],
                     dialect=name, engine=name)  # fmt: skip
    assert [verdict.strict for verdict in verdicts] == [True, False, False]
    if name == "postgres":
        with postgres.connect() as owner:
            names = owner.execute("SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles").fetchall()
    else:
        with mysql.connect().cursor() as cursor:
            names = mysql._made(cursor, "")
    assert [one for one in names if servers.PREFIX in str(one)] == []


def test_what_an_ended_run_left_is_dropped_by_the_next(name):
    if name == "duckdb":
        pytest.skip("it runs in the worker")
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = f"{servers.PREFIX}_{ended.stdout.strip()}_abcdef"
    assert servers.is_abandoned(left)
    if name == "postgres":
        with postgres.connect() as owner:
            owner.execute(f"CREATE DATABASE {left}")
            owner.execute(f"CREATE ROLE {left}_77")
    else:
        with mysql.connect().cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {left}_77_0")
            cursor.execute(f"CREATE USER '{left}_77'@'localhost'")
    with engine.running(name):
        pass
    if name == "postgres":
        with postgres.connect() as owner:
            names = owner.execute("SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles").fetchall()
    else:
        with mysql.connect().cursor() as cursor:
            names = mysql._made(cursor, "")
    assert left not in str(names)


@pytest.mark.parametrize("dialect", ["postgres", "mysql"])
def test_what_the_server_refuses_is_an_error(dialect, addresses, monkeypatch):
    monkeypatch.setenv(servers.VARIABLES[dialect], addresses[dialect])
    predictions = {
        "postgres": [
            ('SELECT name FROM people WHERE name = "Ann"', "unknown_column"),
            ("SELECT `name` FROM people", "syntax"),
            ("SELECT IFNULL(name, 'x') FROM people", "unknown_function"),
            ("SELECT name AS n, COUNT(*) FROM people GROUP BY name HAVING n = 'Ann'", "unknown_column"),
            ("SELECT name, COUNT(*) FROM people GROUP BY born", "invalid"),
            ("SELECT name FROM people WHERE id LIKE '1%'", "invalid"),
        ],
        "mysql": [
            ("SELECT name FROM people WHERE name ILIKE 'a%'", "syntax"),
            ("SELECT name::text FROM people", "syntax"),
            ("SELECT DATE_TRUNC('month', born) FROM people", "unknown_function"),
        ],
    }[dialect]
    rows = [{"question": "", "context": PEOPLE, "answer": "SELECT name FROM people"}] * len(predictions)
    verdicts = score(rows, [sql for sql, _ in predictions], dialect=dialect, engine=dialect)
    assert [verdict.error for verdict in verdicts] == [kind for _, kind in predictions]


@pytest.mark.parametrize(
    ("name", "address", "says"),
    [
        ("postgres", None, "QLORA_POSTGRES"),
        ("mysql", None, "QLORA_MYSQL"),
        ("postgres", "postgresql://admin@127.0.0.1:1/x", "127.0.0.1:1.*start it"),
        ("mysql", "mysql://root@127.0.0.1:1", "127.0.0.1:1.*start it"),
        ("postgres", "postgresql://admin@db.example.com/x", "db.example.com.*this machine"),
        ("postgres", "127.0.0.1", "write it as postgresql://"),
    ],
)
def test_an_engine_that_cannot_be_used_is_a_sentence(name, address, says, monkeypatch):
    pytest.importorskip(servers.DRIVERS[name], reason="the drivers are not installed (make sql-engines)")
    monkeypatch.delenv(servers.VARIABLES[name], raising=False)
    if address:
        monkeypatch.setenv(servers.VARIABLES[name], address)
    with pytest.raises(Refusal) as raised:
        engine.check(name)
    assert re.search(says, str(raised.value))
    assert len(str(raised.value)) < 300


def test_a_driver_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(Refusal, match="make sql-engines"):
        engine.check("duckdb")


def test_duckdb_translates_other_dialects():
    pytest.importorskip("duckdb", reason="the drivers are not installed (make sql-engines)")
    gold = "SELECT name FROM people WHERE YEAR(born) = 2001"
    judge = Judge(PEOPLE, gold, dialect="mysql", engine="duckdb")
    assert judge.gold is None
    assert judge.judge("SELECT name FROM people WHERE born >= '2001-01-01' AND born < '2002-01-01'").strict
    assert duckdb_engine._FREE
