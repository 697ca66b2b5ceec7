"""Pairs of queries whose difference, or equality, only data made for their predicates shows."""

from qlora.sql.judge import Judge

import pytest

SHOPS = "CREATE TABLE shops (id INTEGER PRIMARY KEY, name TEXT, city TEXT, opened DATE, sales INTEGER)"
STAFF = "CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, dept TEXT, pay INTEGER, started TIMESTAMP)"
TOWNS = (
    "CREATE TABLE a (id INTEGER PRIMARY KEY, town TEXT); CREATE TABLE b (a_id INTEGER REFERENCES a(id), score INTEGER)"
)
PEOPLE = "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, born DATE)"
ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER, price REAL)"
VISITS = "CREATE TABLE visits (id INTEGER PRIMARY KEY, page TEXT)"
USERS = "CREATE TABLE users (id INTEGER, name TEXT, city TEXT, active BOOLEAN, born DATE)"
ORDERS = "CREATE TABLE orders (id INTEGER PRIMARY KEY, placed DATE, sent DATE)"
CLIENTS = (
    "CREATE TABLE c (id INTEGER PRIMARY KEY, name TEXT);"
    "CREATE TABLE o (id INTEGER PRIMARY KEY, c_id INTEGER REFERENCES c(id), state TEXT)"
)
ACCOUNTS = (
    "CREATE TABLE acc (id INTEGER PRIMARY KEY, owner TEXT, opened DATE NOT NULL,"
    " rate INTEGER NOT NULL CHECK (rate > 3), kind TEXT NOT NULL CHECK (kind IN ('a', 'b')))"
)

DIFFERENT = {
    "lower literal": (
        SHOPS,
        "SELECT name FROM shops WHERE LOWER(city) LIKE LOWER('%York%')",
        "SELECT name FROM shops WHERE LOWER(city) LIKE LOWER('%Paris%')",
    ),
    "upper literal": (
        SHOPS,
        "SELECT SUM(sales) FROM shops WHERE UPPER(city) = UPPER('york')",
        "SELECT MAX(sales) FROM shops WHERE UPPER(city) = UPPER('york')",
    ),
    "concatenated pattern": (
        USERS,
        "SELECT id FROM users WHERE city LIKE '%' || 'bern' || '%'",
        "SELECT id FROM users WHERE name = 'nobody'",
    ),
    "concatenated columns": (
        USERS,
        "SELECT id FROM users WHERE name || ' ' || city = 'Ann Bern'",
        "SELECT id FROM users WHERE 1 = 0",
    ),
    "length": (USERS, "SELECT id FROM users WHERE LENGTH(name) > 12", "SELECT id FROM users WHERE LENGTH(name) > 13"),
    "position": (USERS, "SELECT id FROM users WHERE INSTR(city, 'er') > 0", "SELECT id FROM users WHERE 1 = 0"),
    "part": (
        USERS,
        "SELECT id FROM users WHERE SUBSTR(name, 3, 2) IN ('an', 'on')",
        "SELECT id FROM users WHERE SUBSTR(name, 2, 2) IN ('an', 'on')",
    ),
    "tail after a character": (
        USERS,
        "SELECT id FROM users WHERE SUBSTR(name, INSTR(name, '@') + 1) = 'x.org'",
        "SELECT id FROM users WHERE name = 'x.org'",
    ),
    "tuple": (
        USERS,
        "SELECT id FROM users WHERE (name, city) IN (VALUES ('Ann', 'Bern'), ('Bob', 'Rome'))",
        "SELECT id FROM users WHERE name IN ('Ann', 'Bob') AND city IN ('Bern', 'Rome')",
    ),
    "coalesced": (
        USERS,
        "SELECT id FROM users WHERE COALESCE(city, 'none') = 'none'",
        "SELECT id FROM users WHERE city IS NULL",
    ),
    "literal of a CTE": (
        USERS,
        "WITH q AS (SELECT id, UPPER(city) AS place FROM users) SELECT id FROM q WHERE place = 'BERN'",
        "WITH q AS (SELECT id, UPPER(city) AS place FROM users) SELECT id FROM q WHERE place = 'ROME'",
    ),
    "folded constant": (
        SHOPS,
        "SELECT name FROM shops WHERE sales > 2 * 2000",
        "SELECT name FROM shops WHERE sales > 2 * 2001",
    ),
    "cast text": (
        USERS,
        "SELECT id FROM users WHERE CAST(name AS INTEGER) > 57",
        "SELECT id FROM users WHERE CAST(name AS INTEGER) > 58",
    ),
    "cases": (
        SHOPS,
        "SELECT SUM(CASE WHEN SUBSTR(city, 1, 1) = 'Q' THEN sales ELSE 0 END) FROM shops",
        "SELECT SUM(CASE WHEN SUBSTR(city, 1, 1) = 'R' THEN sales ELSE 0 END) FROM shops",
    ),
    "join on an expression": (
        CLIENTS,
        "SELECT c.name FROM c JOIN o ON SUBSTR(o.state, 1, 3) = c.name",
        "SELECT c.name FROM c JOIN o ON o.state = c.name",
    ),
    "partition": (
        STAFF,
        "SELECT name, SUM(pay) OVER (PARTITION BY dept) FROM staff",
        "SELECT name, SUM(pay) OVER () FROM staff",
    ),
    "rank": (
        TOWNS,
        "SELECT town FROM (SELECT a.town, b.score, RANK() OVER (PARTITION BY a.town ORDER BY b.score DESC) AS k"
        " FROM b JOIN a ON a.id = b.a_id) WHERE k <= 5",
        "SELECT a.town FROM b JOIN a ON a.id = b.a_id",
    ),
    "direction of a window": (
        STAFF,
        "SELECT name, RANK() OVER (ORDER BY pay DESC) FROM staff",
        "SELECT name, RANK() OVER (ORDER BY pay) FROM staff",
    ),
    "lag": (
        STAFF,
        "SELECT id, LAG(pay) OVER (ORDER BY id) FROM staff",
        "SELECT id, LEAD(pay) OVER (ORDER BY id) FROM staff",
    ),
    "year": (
        PEOPLE,
        "SELECT COUNT(*) FROM people WHERE strftime('%Y', born) BETWEEN '1970' AND '1979' AND name = 'Ada'",
        "SELECT COUNT(*) FROM people WHERE strftime('%m', born) BETWEEN '1970' AND '1979'",
    ),
    "weekday": (
        "CREATE TABLE races (id INTEGER PRIMARY KEY, name TEXT, held TEXT)",
        "SELECT name FROM races WHERE strftime('%w', held) IN ('0', '6')",
        "SELECT name FROM races WHERE strftime('%w', held) IN ('0', '5')",
    ),
    "month and day": (
        SHOPS,
        "SELECT COUNT(*) FROM shops WHERE strftime('%Y', opened) = '2023' AND strftime('%m', opened) = '06'",
        "SELECT COUNT(*) FROM shops WHERE strftime('%Y', opened) = '2023' AND strftime('%d', opened) = '06'",
    ),
    "time of day": (
        STAFF,
        "SELECT COUNT(*) FROM staff WHERE date(started) > '2014-09-01'",
        "SELECT COUNT(*) FROM staff WHERE started > '2014-09-01'",
    ),
    "hours and minutes": (
        STAFF,
        "SELECT strftime('%H', started) FROM staff",
        "SELECT strftime('%M', started) FROM staff",
    ),
    "date difference": (
        ORDERS,
        "SELECT id FROM orders WHERE date(sent) <= date(placed, '+3 days')",
        "SELECT id FROM orders WHERE date(sent) <= date(placed, '+4 days')",
    ),
    "days between": (
        ORDERS,
        "SELECT id FROM orders WHERE julianday(sent) - julianday(placed) > 30",
        "SELECT id FROM orders WHERE julianday(sent) - julianday(placed) >= 30",
    ),
    "age": (
        PEOPLE,
        "SELECT name FROM people WHERE strftime('%Y', 'now') - strftime('%Y', born) >= 50",
        "SELECT name FROM people WHERE strftime('%Y', 'now') - strftime('%Y', born) >= 60",
    ),
    "product": (
        ITEMS,
        "SELECT id FROM items WHERE n * price BETWEEN 100 AND 200",
        "SELECT id FROM items WHERE n * price BETWEEN 100 AND 300",
    ),
    "great count": (
        VISITS,
        "SELECT page FROM visits GROUP BY page HAVING COUNT(*) < 200",
        "SELECT DISTINCT page FROM visits",
    ),
    "one great count or another": (
        VISITS,
        "SELECT page FROM visits GROUP BY page HAVING COUNT(*) > 100",
        "SELECT page FROM visits GROUP BY page HAVING COUNT(*) > 200",
    ),
    "great limit": (
        VISITS,
        "SELECT id FROM visits ORDER BY id LIMIT 100",
        "SELECT id FROM visits ORDER BY id LIMIT 120",
    ),
    "replaced text": (SHOPS, "SELECT REPLACE(name, '-', ' ') FROM shops", "SELECT name FROM shops"),
    "capitals": (SHOPS, "SELECT UPPER(name) FROM shops", "SELECT name FROM shops"),
    "blanks": (SHOPS, "SELECT TRIM(name) FROM shops", "SELECT name FROM shops"),
    "formatted": (SHOPS, "SELECT printf('%.2f', sales) FROM shops", "SELECT printf('%.1f', sales) FROM shops"),
    "negative": (ITEMS, "SELECT SUM(ABS(price)) FROM items", "SELECT SUM(price) FROM items"),
    "rounded": (ITEMS, "SELECT ROUND(price, 1) FROM items", "SELECT ROUND(price) FROM items"),
    "null in NOT EXISTS": (
        CLIENTS,
        "SELECT name FROM c WHERE NOT EXISTS (SELECT 1 FROM o WHERE o.c_id = c.id AND o.state <> 'paid')",
        "SELECT name FROM c WHERE NOT EXISTS"
        " (SELECT 1 FROM o WHERE o.c_id = c.id AND (o.state <> 'paid' OR o.state IS NULL))",
    ),
    "null in INTERSECT": (
        CLIENTS,
        "SELECT name FROM c INTERSECT SELECT state FROM o",
        "SELECT DISTINCT c.name FROM c JOIN o ON c.name = o.state",
    ),
}
EQUAL = {
    "boolean": (
        USERS,
        "SELECT SUM(CASE WHEN active THEN 1 ELSE 0 END) FROM users",
        "SELECT SUM(CASE WHEN active = 1 THEN 1 ELSE 0 END) FROM users",
    ),
    "boolean literal": (USERS, "SELECT id FROM users WHERE active = TRUE", "SELECT id FROM users WHERE active"),
    "listed values": (
        ACCOUNTS,
        "SELECT owner FROM acc WHERE kind = 'a'",
        "SELECT owner FROM acc WHERE kind <> 'b'",
    ),
    "checked number": (
        ACCOUNTS,
        "SELECT owner FROM acc WHERE rate > 0 AND owner = 'x'",
        "SELECT owner FROM acc WHERE owner = 'x'",
    ),
    "date as text": (
        ACCOUNTS,
        "SELECT id FROM acc WHERE strftime('%Y', opened) = '1993'",
        "SELECT id FROM acc WHERE opened LIKE '1993%'",
    ),
    "order by date": (USERS, "SELECT name FROM users ORDER BY born", "SELECT name FROM users ORDER BY julianday(born)"),
    "other capitals": (
        SHOPS,
        "SELECT name FROM shops WHERE city = 'York'",
        "SELECT name FROM shops WHERE city = 'york'",
    ),
    "backquotes": (SHOPS, "SELECT COUNT(*) FROM shops", "SELECT COUNT(*) FROM `shops`"),
    "quoted CTE": (
        SHOPS,
        'WITH "my x" AS (SELECT id FROM shops) SELECT COUNT(*) FROM "my x"',
        "SELECT COUNT(id) FROM shops",
    ),
    "materialized CTE": (
        SHOPS,
        "SELECT id FROM shops",
        "WITH x AS MATERIALIZED (SELECT id FROM shops) SELECT id FROM x",
    ),
    "another table, kept by its key": (
        TOWNS,
        "SELECT score FROM b WHERE NOT a_id IS NULL",
        "SELECT b.score FROM b JOIN a ON a.id = b.a_id",
    ),
}
BLIND = {
    "contradiction": (USERS, "SELECT id FROM users WHERE 1 = 0", "the result is empty on every database"),
    "capitals in LOWER": (
        USERS,
        "SELECT COUNT(*) FROM users WHERE LOWER(name) = 'BERN'",
        "the result is the same on every database",
    ),
    "no such value": (
        ACCOUNTS,
        "SELECT id FROM acc WHERE kind = 'c'",
        "the result is empty on every database",
    ),
    "LIMIT": (USERS, "SELECT id FROM users LIMIT 1", "LIMIT without ORDER BY"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    schema, gold, prediction = DIFFERENT[name]
    for one, other in ((gold, prediction), (prediction, gold)):
        judge = Judge(schema, one)
        if one == gold or not judge.gold:
            assert judge.gold is None
            assert judge.judge(one).strict
            verdict = judge.judge(other)
            assert (verdict.valid, verdict.strict) == (True, False)


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    schema, gold, prediction = EQUAL[name]
    for one, other in ((gold, prediction), (prediction, gold)):
        verdict = Judge(schema, one).judge(other)
        assert (verdict.strict, verdict.gold, verdict.error) == (True, None, None)


@pytest.mark.parametrize("name", BLIND)
def test_a_gold_query_that_tells_nothing_judges_nothing(name):
    schema, gold, reason = BLIND[name]
    for prediction in (gold, "SELECT id FROM users WHERE 2 = 3", "nonsense"):
        verdict = Judge(schema, gold).judge(prediction)
        assert (verdict.strict, verdict.lenient, verdict.gold, verdict.reason) == (False, False, "undetermined", reason)
