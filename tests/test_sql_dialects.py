"""Queries of PostgreSQL and MySQL, translated to SQLite. Where there are servers, these say what is right."""

from random import Random

from qlora.sql import engine, servers
from qlora.sql.comparison import same_results
from qlora.sql.judge import Judge
from qlora.sql.queries import is_ordered
from qlora.sql.sandbox import QueryError
from qlora.sql.schema import read_schema
from qlora.sql.shapes import SHAPES
from qlora.sql.suite import Suite

import pytest
import sql_servers

SCHEMAS = {
    "postgres": (
        "CREATE TABLE public.customers (id serial PRIMARY KEY, name varchar(60) NOT NULL, email text, city text, "
        "born date, active boolean NOT NULL, made timestamp, tags text[], facts jsonb); "
        "CREATE TABLE public.orders (id integer PRIMARY KEY, customer_id integer REFERENCES customers(id), "
        "placed date NOT NULL, sent timestamp, status text, total numeric(10,2), weight double precision, n integer)"
    ),
    "mysql": (
        "CREATE TABLE `customers` (`id` int NOT NULL AUTO_INCREMENT, `name` varchar(60) NOT NULL, `email` varchar(99), "
        "`city` varchar(60), `born` date, `active` tinyint(1) NOT NULL, `made` datetime, `facts` json, "
        "PRIMARY KEY (`id`)); "
        "CREATE TABLE `orders` (`id` int PRIMARY KEY, `customer_id` int, `placed` date NOT NULL, `sent` datetime, "
        "`status` enum('new','paid'), `total` decimal(10,2), `weight` double, `n` int)"
    ),
}
# Each is computed by SQLite and by the server on the same rows.
SAME = {
    "postgres": [
        "SELECT id, EXTRACT(YEAR FROM placed), EXTRACT(DOW FROM placed), DATE_PART('hour', sent) FROM orders",
        "SELECT EXTRACT(DAY FROM sent - placed), EXTRACT(EPOCH FROM sent), EXTRACT(WEEK FROM placed) FROM orders",
        "SELECT DATE_TRUNC('month', placed), DATE_TRUNC('week', sent), SUM(total) FROM orders GROUP BY 1, 2",
        "SELECT placed + INTERVAL '1 month', sent - INTERVAL '2 days 3 hours', placed - 7, placed + 7 FROM orders",
        "SELECT sent::date - placed, placed - DATE '2020-01-01' FROM orders",
        "SELECT id FROM orders WHERE sent BETWEEN '2021-01-01' AND '2023-06-30' OR placed >= '2022-05-05'",
        "SELECT id FROM orders WHERE sent >= placed OR sent - placed > INTERVAL '5 days'",
        "SELECT id FROM orders WHERE placed >= CURRENT_DATE - INTERVAL '2 years'",
        "SELECT EXTRACT(YEAR FROM AGE('2024-07-01', born)), AGE(made, born) > INTERVAL '20 years' FROM customers",
        "SELECT TO_CHAR(placed, 'YYYY-MM'), TO_CHAR(sent, 'FMDay DD Mon, HH12:MI AM'), TO_CHAR(placed, 'Q') "
        "FROM orders",
        "SELECT n / 2, n % 3, -7 / 2, total / 3, total % 2, n * 1.5, COUNT(*) OVER () / 2 FROM orders",
        "SELECT SUM(n) / COUNT(*), AVG(n), SUM(total) / COUNT(*), ROUND(AVG(total), 1), COUNT(*) * 100 / 7 FROM orders",
        "SELECT ROUND(total), ROUND(weight), total::int, weight::int, TRUNC(total, 1), CEIL(total), ABS(n) FROM orders",
        "SELECT id::text || '-' || status, active::int, COALESCE(born::text, '?') "
        "FROM customers c JOIN orders o USING (id)",
        "SELECT CONCAT(name, '/', city), CONCAT_WS(',', name, city), name || '!', LENGTH(name) FROM customers",
        "SELECT SPLIT_PART(name, 'a', 2), LEFT(name, -1), RIGHT(name, 2), INITCAP(city), STRPOS(name, 'a') "
        "FROM customers",
        "SELECT SUBSTRING(name FROM 2 FOR 3), SUBSTR(name, 0, 3), LPAD(name, 6, 'xy'), REVERSE(city) FROM customers",
        "SELECT REGEXP_REPLACE(name, '[aeiou]', '_', 'g'), TRANSLATE(name, 'ab', 'x'), TRIM(BOTH 'a' FROM city) "
        "FROM customers",
        "SELECT name FROM customers WHERE name ~ '^[A-M]' OR city !~* 'a' OR name SIMILAR TO '(K|L)%'",
        "SELECT name FROM customers WHERE city ILIKE '%an%' AND name NOT LIKE 'a%'",
        "SELECT city, STRING_AGG(name, ', ' ORDER BY id DESC), COUNT(*) FILTER (WHERE active) "
        "FROM customers GROUP BY city",
        "SELECT status, BOOL_OR(total > 5), ARRAY_AGG(id ORDER BY id) FROM orders GROUP BY status",
        "SELECT DISTINCT ON (customer_id) customer_id, id FROM orders ORDER BY customer_id, placed DESC, id LIMIT 4",
        "SELECT PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY total), STDDEV(weight), VAR_POP(weight) FROM orders",
        "SELECT id FROM orders WHERE status = ANY(ARRAY['new', 'paid']) OR id <> ALL (SELECT id FROM customers)",
        "SELECT GREATEST(n, 5, NULL), LEAST(total, 10), NULLIF(n, 3), n IS DISTINCT FROM 3 FROM orders",
        "SELECT name FROM customers ORDER BY born DESC, id",
        "SELECT name FROM customers ORDER BY city, id LIMIT 5",
        "SELECT id, LAG(total) OVER (PARTITION BY status ORDER BY placed, id), RANK() OVER (ORDER BY n) FROM orders",
        "SELECT c.name, COUNT(o.id) FROM customers c LEFT JOIN orders o ON o.customer_id = c.id GROUP BY c.id",
        "SELECT EXTRACT(MONTH FROM placed) AS m, COUNT(*) FROM orders GROUP BY m HAVING COUNT(*) > 1 ORDER BY m",
        "SELECT facts->>'plan', facts->'n', facts#>>'{place,city}', jsonb_typeof(facts->'plan') FROM customers",
        "SELECT name FROM customers WHERE facts->>'plan' = 'gold' OR (facts->>'n')::numeric > 5 OR facts ? 'plan'",
        'SELECT name FROM customers WHERE facts @> \'{"plan": "gold"}\'',
        "SELECT c.id, e.value FROM customers c, jsonb_array_elements_text(c.facts->'list') AS e "
        "WHERE jsonb_typeof(c.facts->'list') = 'array'",
        "SELECT name FROM customers WHERE 'vip' = ANY(tags) OR tags && ARRAY['new'] OR tags @> ARRAY['old', 'vip']",
        "SELECT name FROM customers WHERE 'vip' <> ALL(tags)",
        "SELECT tags[1], array_length(tags, 1), cardinality(tags), array_to_string(tags, ';', '-') FROM customers",
        "SELECT array_position(tags, 'vip'), array_remove(tags, 'vip'), array_append(tags, 'z') FROM customers",
        "SELECT UNNEST(tags) AS tag, COUNT(*) FROM customers GROUP BY tag ORDER BY 2 DESC, 1",
        "SELECT c.name, t.tag FROM customers c, UNNEST(c.tags) AS t(tag)",
        "SELECT g.x, COUNT(o.id) FROM generate_series(1, 5) AS g(x) LEFT JOIN orders o ON o.n = g.x GROUP BY g.x",
        "SELECT d::date, COUNT(o.id) FROM generate_series('2023-01-30'::date, '2023-02-02'::date, '1 day') d "
        "LEFT JOIN orders o ON o.placed = d::date GROUP BY d ORDER BY d",
        "SELECT c.name, x.k, x.s FROM customers c CROSS JOIN LATERAL "
        "(SELECT COUNT(*) AS k, SUM(total) AS s FROM orders o WHERE o.customer_id = c.id) x WHERE x.k > 0",
        "SELECT c.name, x.id FROM customers c LEFT JOIN LATERAL "
        "(SELECT id FROM orders o WHERE o.customer_id = c.id ORDER BY total DESC, id LIMIT 2) x ON true",
        "SELECT status, GROUPING(status), SUM(n) FROM orders GROUP BY ROLLUP(status) ORDER BY 1, 2",
        "SELECT status, n, COUNT(*) FROM orders GROUP BY CUBE(status, n)",
        "SELECT status, n, COUNT(*) FROM orders GROUP BY GROUPING SETS ((status), (n), ()) HAVING COUNT(*) > 1",
        "SELECT id FROM orders WHERE total >= ALL(SELECT total FROM orders WHERE total IS NOT NULL)",
        "SELECT id FROM orders WHERE NOT (n > ANY(SELECT id FROM customers))",
        "SELECT name FROM customers WHERE name LIKE ANY (ARRAY['A%', '%n']) OR city ILIKE ANY ('{b%,%o}')",
        "SELECT id FROM orders WHERE n BETWEEN SYMMETRIC 9 AND 2",
        "SELECT id, TO_DATE('05 Dec 2000', 'DD Mon YYYY') FROM orders WHERE placed >= TO_DATE('2021-03', 'YYYY-MM')",
        "SELECT TO_CHAR(n, '000'), TO_CHAR(n, 'FM9,999'), TO_CHAR(total, '999990.99') FROM orders "
        "WHERE n < 900 AND ABS(total) < 99999",
        "SELECT x.a, x.b FROM (VALUES (1, 'x'), (2, 'y')) AS x(a, b) JOIN orders ON orders.n = x.a",
        "SELECT FORMAT('%s-%s', name, city), num_nulls(email, city), (regexp_match(email, 'a(.)'))[1] FROM customers",
        "SELECT WIDTH_BUCKET(total, 0, 50, 5), GCD(n, 12), made + make_interval(days => n) "
        "FROM orders JOIN customers c ON c.id = customer_id WHERE n < 1000",
        "SELECT REGR_SLOPE(weight, n), REGR_INTERCEPT(weight, n) FROM orders",
        "SELECT name FROM customers WHERE name SIMILAR TO '(A|B|K)%' OR email ~ '@(gmail|yahoo)[.]com$'",
    ],
    "mysql": [
        "SELECT YEAR(placed), MONTH(sent), DAYOFWEEK(placed), WEEKDAY(placed), HOUR(sent), QUARTER(placed) FROM orders",
        "SELECT DATE_FORMAT(placed, '%Y-%m'), DATE_FORMAT(sent, '%M %e, %H:%i'), DAYNAME(placed) FROM orders",
        "SELECT DATE_ADD(placed, INTERVAL 1 MONTH), DATE_SUB(sent, INTERVAL 3 HOUR), placed + INTERVAL 2 DAY "
        "FROM orders",
        "SELECT DATEDIFF(sent, placed), TIMESTAMPDIFF(MONTH, placed, sent), LAST_DAY(placed) FROM orders",
        "SELECT id FROM orders WHERE placed > DATE_SUB(CURDATE(), INTERVAL 900 DAY) OR DATE(sent) = placed",
        "SELECT IF(total > 5, 'high', 'low'), IFNULL(status, 'x'), n DIV 2, n / 0, n MOD 3 FROM orders",
        "SELECT ROUND(total, 1), TRUNCATE(total, 1), CEIL(total), CAST(total AS SIGNED), FORMAT(total, 1) FROM orders",
        "SELECT CONCAT(name, '/', city), CONCAT_WS(',', name, city), CHAR_LENGTH(name), LENGTH(city) FROM customers",
        "SELECT SUBSTRING_INDEX(name, 'a', 1), LEFT(name, 3), SUBSTRING(name, -2), LOCATE('A', name) FROM customers",
        "SELECT name FROM customers WHERE name REGEXP '^[a-m]' OR city LIKE '%AN%'",
        "SELECT name FROM customers WHERE LOWER(city) = 'BERN' OR city IN ('bern', 'PARIS')",
        "SELECT city, GROUP_CONCAT(name ORDER BY id SEPARATOR '; ') FROM customers GROUP BY city",
        "SELECT SUM(status = 'paid'), COUNT(DISTINCT status, n), STD(weight) FROM orders",
        "SELECT active XOR (city = 'Bern'), NOT active, FIELD(city, 'bern', 'Paris') FROM customers",
        "SELECT name FROM customers ORDER BY born DESC, id LIMIT 2, 3",
        "SELECT status, COUNT(*) AS k FROM orders GROUP BY status HAVING k > 1",
        "SELECT name FROM customers WHERE NOT city <=> 'Bern' AND YEAR(born) = '1999'",
        "SELECT JSON_EXTRACT(facts, '$.n'), JSON_UNQUOTE(JSON_EXTRACT(facts, '$.plan')), JSON_LENGTH(facts) "
        "FROM customers",
        "SELECT name FROM customers WHERE JSON_CONTAINS(facts, '5', '$.n')",
        "SELECT STR_TO_DATE('03,5,2023', '%d,%m,%Y'), STR_TO_DATE('2023-05-03 10:11', '%Y-%m-%d %H:%i'), id "
        "FROM orders WHERE placed > STR_TO_DATE('01/02/2020', '%d/%m/%Y')",
        "SELECT status, COUNT(*) FROM orders GROUP BY status WITH ROLLUP",
        "SELECT YEAR(placed), status, SUM(n) FROM orders GROUP BY YEAR(placed), status WITH ROLLUP",
        "SELECT SOUNDEX(name), HEX(name), SHA1(name), SHA2(name, 256), STRCMP(name, 'k'), QUOTE(name) FROM customers "
        "WHERE CHAR_LENGTH(name) < 50",
        "SELECT INSERT(name, 2, 2, 'x'), REGEXP_INSTR(name, '[aeiou]'), CONVERT(name USING utf8mb4) FROM customers",
        "SELECT name FROM customers WHERE BINARY city = 'Bern' OR name LIKE BINARY '%A%'",
        "SELECT TO_DAYS(sent), TIMESTAMPADD(HOUR, 3, sent), ADDDATE(placed, 3), SUBDATE(placed, INTERVAL 1 MONTH) "
        "FROM orders",
        "SELECT YEARWEEK(placed), WEEK(placed, 1), MAKEDATE(2023, n), TIME_TO_SEC(TIME(sent)) FROM orders WHERE n > 0",
        "SELECT SEC_TO_TIME(n), PERIOD_ADD(202311, n), ADDTIME(sent, '01:00:00'), MICROSECOND(sent) FROM orders "
        "WHERE n BETWEEN 0 AND 999",
        "SELECT n & 3, n | 4, n ^ 1, CONV(n, 10, 2), BIT_COUNT(n) FROM orders WHERE n >= 0",
        "SELECT id FROM orders WHERE total >= ALL(SELECT total FROM orders WHERE total IS NOT NULL)",
    ],
}
# What the server refuses is an error here, too.
REFUSED = {
    "postgres": [
        'SELECT name FROM customers WHERE city = "Bern"',
        "SELECT `name` FROM customers",
        "SELECT IFNULL(city, 'x') FROM customers",
        "SELECT NVL(city, 'x') FROM customers",
        "SELECT city, COUNT(*) AS k FROM customers GROUP BY city HAVING k > 2",
        "SELECT city AS c FROM customers WHERE c = 'x'",
        "SELECT city, name, COUNT(*) FROM customers GROUP BY city",
        "SELECT city, COUNT(*) FROM customers",
        "SELECT * FROM customers GROUP BY city",
        "SELECT name FROM customers WHERE born LIKE '2012%'",
        "SELECT name FROM customers WHERE active = 1",
        "SELECT name FROM customers WHERE id = 'abc'",
        "SELECT name FROM customers WHERE name = 3",
        "SELECT name FROM customers WHERE id",
        "SELECT SUM(name) FROM customers",
        "SELECT ROUND(weight, 2) FROM orders",
        "SELECT COALESCE(total, 'none') FROM orders",
        "SELECT CASE WHEN active THEN 1 ELSE 'no' END FROM customers",
        "SELECT strftime('%Y', born) FROM customers",
        "SELECT YEAR(placed) FROM orders",
        "SELECT DATEDIFF(sent, placed) FROM orders",
        "SELECT * FROM (SELECT id FROM orders)",
        "SELECT DISTINCT city FROM customers ORDER BY name",
        "SELECT city FROM customers WHERE COUNT(*) > 1 GROUP BY city",
        "SELECT id FROM customers c JOIN orders o ON o.customer_id = c.id",
        'SELECT "Name" FROM customers',
        "SELECT name FROM customers LIMIT 2, 3",
        "SELECT sent + 1 FROM orders",
        "SELECT LENGTH(id) FROM customers",
        "SELECT LEFT(placed, 4) FROM orders",
        "SELECT name FROM customers WHERE name REGEXP 'a'",
        "SELECT GROUP_CONCAT(name) FROM customers",
        "SELECT name FROM customers UNION SELECT id FROM orders",
        "SELECT DATE_SUB(placed, INTERVAL 3 DAY) FROM orders",
        "SELECT name FROM other.customers",
    ],
    "mysql": [
        "SELECT name FROM customers WHERE name ILIKE 'a%'",
        "SELECT name::text FROM customers",
        "SELECT DATE_TRUNC('month', placed) FROM orders",
        "SELECT STRING_AGG(name, ',') FROM customers",
        "SELECT strftime('%Y', born) FROM customers",
        "SELECT city AS c FROM customers WHERE c = 'x'",
        "SELECT id FROM customers c JOIN orders o ON o.customer_id = c.id",
        "SELECT nothing FROM customers",
    ],
}


@pytest.fixture(scope="module", params=["postgres", "mysql"])
def server(request):
    """The dialect, the server's engine and a database of it."""
    with getattr(sql_servers, request.param)() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(servers.VARIABLES[request.param], address)
        with engine.running(request.param) as run:
            yield request.param, engine.Engine(request.param, request.param, run)
            engine._session(request.param, run).close()
            engine._session.cache_clear()


def test_sqlite_returns_what_the_server_returns(server):
    dialect, theirs = server
    ours, schema = engine.Engine(dialect), read_schema(SCHEMAS[dialect], dialect)
    for sql in SAME[dialect]:
        (their_sql, tree), (our_sql, _) = theirs.read(sql, schema), ours.read(sql, schema)
        their_database, our_database = theirs.database(schema), ours.database(schema)
        generator = Suite(ours, schema, our_sql, tree, [], 1, sql, lenient=False).generator
        for number in range(10):
            rows = generator.database(Random(f"{sql}{number}"), SHAPES[number])
            for database in (their_database, our_database):
                database.fill(rows)
            assert same_results(
                their_database.run(their_sql), our_database.run(our_sql), is_ordered(tree), any_column_order=False
            ), sql
        del their_database
    theirs.end_row()


def refuses(one, sql, schema):
    try:
        one.database(schema).run(one.read(sql, schema)[0])
    except QueryError:
        return True
    return False


def test_sqlite_refuses_what_the_server_refuses(server):
    dialect, theirs = server
    ours, schema = engine.Engine(dialect), read_schema(SCHEMAS[dialect], dialect)
    for sql in REFUSED[dialect]:
        for one in (theirs, ours):
            assert refuses(one, sql, schema), f"{one.name} runs {sql}"
    theirs.end_row()


@pytest.mark.parametrize(("dialect", "sql"), [(dialect, sql) for dialect, some in REFUSED.items() for sql in some])
def test_what_a_server_refuses_is_wrong(dialect, sql):
    verdict = Judge(SCHEMAS[dialect], "SELECT name FROM customers", dialect=dialect, databases=2).judge(sql)
    assert verdict.error not in (None, "untranslated")
    assert not verdict.strict


PAIRS = [
    # dialect, gold, prediction, verdict
    ("postgres",
     "SELECT name FROM customers WHERE city = 'East'", "SELECT name FROM customers WHERE city = 'east'", False),
    ("mysql", "SELECT name FROM customers WHERE city = 'East'", "SELECT name FROM customers WHERE city = 'east'", True),
    ("postgres",
     "SELECT name FROM customers WHERE name LIKE 'A%'", "SELECT name FROM customers WHERE name ILIKE 'A%'", False),
    ("mysql",
     "SELECT name FROM customers WHERE name LIKE 'A%'", "SELECT name FROM customers WHERE name LIKE 'a%'", True),
    ("postgres", "SELECT n / 2 FROM orders", "SELECT n / 2.0 FROM orders", False),
    ("mysql", "SELECT n / 2 FROM orders", "SELECT n DIV 2 FROM orders", False),
    ("postgres",
     "SELECT name FROM customers ORDER BY born, id", "SELECT name FROM customers ORDER BY born NULLS LAST, id",
     True),
    ("postgres", "SELECT name FROM customers ORDER BY born, id",
     "SELECT name FROM customers ORDER BY born NULLS FIRST, id", False),
    ("mysql",
     "SELECT name FROM customers ORDER BY born, id", "SELECT name FROM customers ORDER BY born IS NOT NULL, born, id",
     True),
    ("postgres", "SELECT id FROM orders WHERE EXTRACT(YEAR FROM placed) = 2023",
     "SELECT id FROM orders WHERE placed >= '2023-01-01' AND placed < '2024-01-01'", True),
    ("postgres", "SELECT id FROM orders WHERE EXTRACT(YEAR FROM placed) = 2023",
     "SELECT id FROM orders WHERE placed > '2023-01-01' AND placed < '2024-01-01'", False),
    ("postgres", "SELECT id FROM orders WHERE DATE_TRUNC('month', placed) = '2023-05-01'",
     "SELECT id FROM orders WHERE TO_CHAR(placed, 'YYYY-MM') = '2023-05'", True),
    ("postgres", "SELECT id FROM orders WHERE sent > placed + INTERVAL '3 days'",
     "SELECT id FROM orders WHERE sent > placed + INTERVAL '4 days'", False),
    ("mysql", "SELECT id FROM orders WHERE YEAR(placed) = 2023",
     "SELECT id FROM orders WHERE placed BETWEEN '2023-01-01' AND '2023-12-31'", True),
    ("mysql",
     "SELECT id FROM orders WHERE DATEDIFF(sent, placed) > 3", "SELECT id FROM orders WHERE DATEDIFF(sent, placed) > 4",
     False),
    ("mysql", "SELECT name FROM customers WHERE TIMESTAMPDIFF(YEAR, born, CURDATE()) >= 40",
     "SELECT name FROM customers WHERE born <= DATE_SUB(CURDATE(), INTERVAL 40 YEAR)", True),
    ("postgres", "SELECT city, STRING_AGG(name, ', ' ORDER BY name) FROM customers GROUP BY city",
     "SELECT city, STRING_AGG(name, ', ' ORDER BY name DESC) FROM customers GROUP BY city", False),
    ("postgres", "SELECT 100 * COUNT(*) FILTER (WHERE active) / COUNT(*) FROM customers",
     "SELECT COUNT(CASE WHEN active THEN 1 END) * 100 / COUNT(*) FROM customers", True),
    ("postgres", "SELECT name FROM customers WHERE facts->>'plan' = 'gold'",
     "SELECT name FROM customers WHERE facts @> '{\"plan\": \"gold\"}'", True),
    ("postgres", "SELECT name FROM customers WHERE facts->>'plan' = 'gold'",
     "SELECT name FROM customers WHERE facts->>'plan' <> 'gold'", False),
    ("postgres", "SELECT name FROM customers WHERE (facts->>'n')::int > 5",
     "SELECT name FROM customers WHERE (facts->>'n')::int >= 5", False),
    ("postgres", "SELECT name FROM customers WHERE 'vip' = ANY(tags)",
     "SELECT name FROM customers WHERE tags @> ARRAY['vip']", True),
    ("postgres", "SELECT name FROM customers WHERE 'vip' = ANY(tags)",
     "SELECT name FROM customers WHERE tags[1] = 'vip'", False),
    ("postgres", "SELECT status, SUM(n) FROM orders GROUP BY ROLLUP(status)",
     "SELECT status, SUM(n) FROM orders GROUP BY status", False),
    ("postgres", "SELECT id FROM orders WHERE total > ALL(SELECT total FROM orders WHERE status = 'new')",
     "SELECT id FROM orders WHERE total > ANY(SELECT total FROM orders WHERE status = 'new')", False),
    ("postgres", "SELECT c.name, x.total FROM customers c CROSS JOIN LATERAL (SELECT total FROM orders o "
     "WHERE o.customer_id = c.id ORDER BY total DESC, id LIMIT 1) x",
     "SELECT c.name, MAX(o.total) FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.id, c.name", False),
    ("mysql", "SELECT name FROM customers WHERE JSON_EXTRACT(facts, '$.plan') = 'gold'",
     "SELECT name FROM customers WHERE JSON_UNQUOTE(JSON_EXTRACT(facts, '$.plan')) = 'gold'", True),
    ("mysql", "SELECT id FROM orders WHERE placed > STR_TO_DATE('01/02/2023', '%d/%m/%Y')",
     "SELECT id FROM orders WHERE placed > '2023-02-01'", True),
    ("mysql", "SELECT id FROM orders WHERE placed > STR_TO_DATE('01/02/2023', '%d/%m/%Y')",
     "SELECT id FROM orders WHERE placed > '2023-01-02'", False),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "gold", "prediction", "strict"), PAIRS)
def test_verdicts(dialect, gold, prediction, strict):
    verdict = Judge(SCHEMAS[dialect], gold, dialect=dialect).judge(prediction)
    assert (verdict.gold, verdict.error, verdict.strict) == (None, None, strict)


@pytest.mark.parametrize(
    ("dialect", "gold"),
    [
        ("postgres", "SELECT json_agg(name) FROM customers"),
        ("postgres", "SELECT name FROM customers TABLESAMPLE SYSTEM (10)"),
        ("mysql", "SELECT @rank := id FROM customers"),
    ],
)
def test_what_sqlite_lacks_is_said(dialect, gold):
    """Such a gold query is no wrong one: an engine of its dialect would run it."""
    judge = Judge(SCHEMAS[dialect], gold, dialect=dialect)
    assert judge.gold == "undetermined"
    assert "no translation of" in judge.reason
    assert f"evaluate.engine {dialect}" in judge.reason
    assert judge.judge("SELECT name FROM customers").gold == "undetermined"


def test_other_dialects_are_translated_by_sqlglot():
    judge = Judge(SCHEMAS["mysql"], "SELECT TOP 3 name FROM customers ORDER BY id", dialect="tsql")
    assert judge.gold is None
    assert judge.judge("SELECT name FROM customers ORDER BY id OFFSET 0 ROWS FETCH NEXT 3 ROWS ONLY").strict
    assert judge.judge("SELECT TOP 4 name FROM customers ORDER BY id").strict is False
