import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from qlora.sql.judge import Judge
from qlora.sql.verdict import Verdict, score, totals

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SHOP = (
    "CREATE TABLE customers (id INTEGER, name VARCHAR, city VARCHAR, age INTEGER);"
    "CREATE TABLE orders (order_id INTEGER, customer_id INTEGER, amount INTEGER, placed DATE)"
)
JOINED = "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id WHERE o.amount > 100 AND c.city = 'Bern'"

EQUAL = [
    ("SELECT name FROM customers WHERE age > 30", "SELECT name FROM customers WHERE NOT age <= 30"),
    ("SELECT name FROM customers WHERE age > 30", "SELECT name FROM customers WHERE age >= 31"),
    ("SELECT name FROM customers WHERE city = 'Bern'", 'select NAME from CUSTOMERS where CITY = "bern"'),
    ("SELECT name, city FROM customers", "SELECT city, name FROM customers"),
    ("SELECT count(*) FROM customers", "SELECT count(1) FROM (SELECT * FROM customers)"),
    ("SELECT DISTINCT city FROM customers", "SELECT city FROM customers GROUP BY city"),
    ("SELECT name FROM customers WHERE age IN (3, 4)", "SELECT name FROM customers WHERE age = 4 OR age = 3"),
    (JOINED, "SELECT name FROM customers, orders WHERE customer_id = id AND city = 'Bern' AND amount > 100"),
    (JOINED, f"WITH q AS ({JOINED}) SELECT * FROM q"),
    (
        "SELECT name FROM customers WHERE id NOT IN (SELECT customer_id FROM orders WHERE NOT customer_id IS NULL)",
        "SELECT name FROM customers c WHERE id IS NULL AND NOT EXISTS (SELECT 1 FROM orders WHERE customer_id > -99999)"
        " OR NOT id IS NULL AND NOT EXISTS (SELECT 1 FROM orders WHERE customer_id = c.id)",
    ),
    (
        "SELECT city FROM customers ORDER BY age DESC LIMIT 1",
        "SELECT city FROM customers ORDER BY age DESC LIMIT 1 OFFSET 0",
    ),
    (
        "SELECT city, count(*) FROM customers GROUP BY city HAVING count(*) >= 3",
        "SELECT * FROM (SELECT city, count(*) AS n FROM customers GROUP BY city) WHERE n > 2",
    ),
]
DIFFERENT = [
    ("SELECT name FROM customers WHERE age > 30", "SELECT name FROM customers WHERE age >= 30"),
    ("SELECT name FROM customers WHERE age > 30", "SELECT name FROM customers WHERE age > 31"),
    ("SELECT name FROM customers WHERE age > 30", "SELECT name FROM customers"),
    ("SELECT name FROM customers WHERE age > 30", "SELECT city FROM customers WHERE age > 30"),
    ("SELECT min(age) FROM customers WHERE city = 'Bern'", "SELECT max(age) FROM customers WHERE city = 'Bern'"),
    ("SELECT avg(age) FROM customers", "SELECT sum(age) FROM customers"),
    ("SELECT count(*) FROM customers", "SELECT count(age) FROM customers"),
    ("SELECT count(city) FROM customers", "SELECT count(DISTINCT city) FROM customers"),
    ("SELECT city FROM customers", "SELECT DISTINCT city FROM customers"),
    (JOINED, JOINED.replace("JOIN", "LEFT JOIN").replace("WHERE o.amount > 100 AND", "WHERE")),
    (JOINED, JOINED.replace("AND c.city", "OR c.city")),
    (JOINED, JOINED.replace(" ON o.customer_id = c.id", "")),
    ("SELECT name FROM customers WHERE name LIKE '%an%'", "SELECT name FROM customers WHERE name LIKE 'an%'"),
    ("SELECT name FROM customers ORDER BY age", "SELECT name FROM customers ORDER BY age DESC"),
    ("SELECT name FROM customers ORDER BY age", "SELECT name FROM customers"),
    ("SELECT city FROM customers GROUP BY city ORDER BY city", "SELECT city FROM customers GROUP BY city"),
    ("SELECT name FROM customers ORDER BY age LIMIT 3", "SELECT name FROM customers ORDER BY age LIMIT 4"),
    (
        "SELECT city FROM customers GROUP BY city HAVING count(*) > 5",
        "SELECT city FROM customers GROUP BY city HAVING count(*) > 6",
    ),
    (
        "SELECT id FROM customers INTERSECT SELECT customer_id FROM orders",
        "SELECT id FROM customers UNION SELECT customer_id FROM orders",
    ),
    (
        "SELECT name FROM customers WHERE age = (SELECT max(age) FROM customers)",
        "SELECT name FROM customers ORDER BY age DESC LIMIT 1",
    ),
]


def judge(gold, prediction, context=SHOP, **settings):
    return Judge(context, gold, **settings).judge(prediction)


@pytest.mark.parametrize(("gold", "prediction"), EQUAL)
def test_equal(gold, prediction):
    assert judge(gold, prediction) == Verdict(True, True, False, True, None)
    assert judge(prediction, gold).strict


@pytest.mark.parametrize(("gold", "prediction"), DIFFERENT)
def test_different(gold, prediction):
    verdict = judge(gold, prediction)
    assert verdict.valid
    assert not verdict.strict
    if "ORDER BY" not in gold or "ORDER BY" in prediction:  # an order that is not asked for does no harm
        assert not judge(prediction, gold).strict


def test_lenient_ignores_distinct_and_nulls():
    assert judge("SELECT city FROM customers", "SELECT DISTINCT city FROM customers").lenient
    assert judge("SELECT count(*) FROM customers", "SELECT count(age) FROM customers").lenient
    assert not judge("SELECT count(*) FROM customers", "SELECT count(*) + 1 FROM customers").lenient


def test_exact_ignores_white_space_and_case():
    assert judge("SELECT name FROM customers", "```sql\nselect  name\nfrom Customers;\n```").exact
    assert not judge("SELECT name FROM customers", "SELECT c.name FROM customers c").exact


def test_gold_status_does_not_depend_on_the_prediction():
    for prediction in ("SELECT name FROM customers LIMIT 2", "nonsense", "SELECT 1", ""):
        assert judge("SELECT nmae FROM customers", prediction).gold == "invalid"
        assert judge("SELECT name FROM customers", prediction, context="no schema").gold == "invalid"
        assert judge("SELECT name FROM customers LIMIT 1", prediction).gold == "undetermined"
        assert judge("SELECT name FROM customers", prediction).gold is None


@pytest.mark.parametrize(
    ("gold", "status"),
    [
        ("SELECT name FROM customers LIMIT 1", "undetermined"),
        ("SELECT name FROM customers WHERE id IN (SELECT customer_id FROM orders LIMIT 2)", "undetermined"),
        ("SELECT count(*) FROM customers LIMIT 1", None),
        ("SELECT name FROM customers ORDER BY age LIMIT 1", None),
        ("SELECT name, count(*) FROM customers GROUP BY city", None),
        ("SELECT name, max(age) FROM customers", None),
    ],
)
def test_undetermined_gold_queries(gold, status):
    reason = status and "LIMIT without ORDER BY"
    assert judge(gold, gold) == Verdict(status is None, status is None, True, True, None, status, reason)


def test_tied_rows_may_come_in_any_order():
    gold = "SELECT c.city FROM customers c JOIN orders o ON o.customer_id = c.id ORDER BY o.amount LIMIT 1"
    other = "SELECT c.city FROM orders o JOIN customers c ON o.customer_id = c.id ORDER BY o.amount LIMIT 1"
    assert all(judge(gold, other, seed=seed).strict for seed in range(20))


def test_bare_columns_may_come_from_any_row():
    gold = "SELECT c.city, count(*) FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.age"
    other = "SELECT c.city, count(*) FROM orders o JOIN customers c ON o.customer_id = c.id GROUP BY c.age"
    assert all(judge(gold, other, seed=seed).strict for seed in range(20))


@pytest.mark.parametrize(
    ("prediction", "error"),
    [
        ("", "empty"),
        ("I do not know.", "not_a_query"),
        ("SELECT name FROM clients", "unknown_table"),
        ("SELECT surname FROM customers", "unknown_column"),
        ("SELECT name FROM customers WHERE", "syntax"),
        ("SELECT 1; SELECT 2", "several_statements"),
        ("DROP TABLE customers", "denied"),
    ],
)
def test_errors(prediction, error):
    assert judge("SELECT name FROM customers", prediction) == Verdict(False, False, False, False, error)


def test_other_dialects():
    gold = "SELECT name FROM customers WHERE name ILIKE '%an%' AND EXTRACT(YEAR FROM now()) > 2000 LIMIT 5 OFFSET 0"
    plain = "SELECT c.name::text FROM customers AS c WHERE c.age >= 30"
    assert judge("SELECT name FROM customers WHERE age >= 30", plain, dialect="postgres").strict
    assert judge("SELECT name FROM customers WHERE age >= 30", plain, dialect="sqlite").error == "syntax"
    assert judge(
        'SELECT `name` FROM customers WHERE city = "Bern"',
        "SELECT name FROM customers WHERE city = 'bern'",
        dialect="mysql",
    ).strict
    assert judge(gold, gold, dialect="postgres").gold in (None, "invalid", "undetermined")
    with pytest.raises(ValueError, match="klingon"):
        score([], [], dialect="klingon")


def test_accents_compare_without_case():
    gold = "SELECT age FROM customers WHERE name = 'málaga'"
    assert judge(gold, "SELECT age FROM customers WHERE name = 'MÁLAGA'").strict


def test_verdicts_do_not_depend_on_order_company_or_processes():
    rows = [{"question": "", "context": SHOP, "answer": gold} for gold, _ in EQUAL + DIFFERENT]
    predictions = [prediction for _, prediction in EQUAL + DIFFERENT]
    expected = [judge(row["answer"], prediction) for row, prediction in zip(rows, predictions, strict=True)]
    done = []
    assert score(rows, predictions, processes=1, progress=done.append) == expected
    assert done == list(range(1, len(rows) + 1))
    assert score(rows[::-1], predictions[::-1], processes=3) == expected[::-1]
    assert score(rows[5:9] * 2, predictions[5:9] * 2) == expected[5:9] * 2


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"\b1 .*\b0 "):
        score([{"question": "", "context": SHOP, "answer": "SELECT 1"}], [])
    assert score([], []) == []


def test_totals():
    verdicts = [
        Verdict(True, True, True, True, None),
        Verdict(False, True, False, True, None),
        Verdict(False, False, False, False, "syntax"),
        Verdict(False, False, False, False, "syntax", "undetermined", "it is empty"),
        Verdict(False, False, True, True, None, "invalid", "it fails"),
    ]
    assert totals(verdicts) == {
        "n": 5,
        "judged": 3,
        "strict": 0.333333,
        "lenient": 0.666667,
        "exact": 0.4,
        "valid": 0.6,
        "undetermined": 1,
        "gold_invalid": 1,
        "reasons": {"it is empty": 1, "it fails": 1},
        "errors": {"syntax": 2},
    }
    assert totals([])["strict"] is None


NAMES = st.sampled_from(
    ["name", "city", "age", "id", "customers", "orders", "c", "t", "'a'", "1", "-2.5", "NULL", "*", '"q"', "x"]
)
KEYWORDS = """
    SELECT FROM WHERE AND OR NOT IN LIKE BETWEEN IS NULL GROUP BY HAVING ORDER LIMIT JOIN LEFT ON AS UNION EXCEPT WITH
    DISTINCT COUNT( SUM( MAX( ( ) , = < >= || . ; -- /* */ CASE WHEN THEN END EXISTS OVER( VALUES CAST( ::
"""
WORDS = st.sampled_from(KEYWORDS.split())
SQL = st.lists(st.one_of(NAMES, WORDS), max_size=20).map(lambda words: "SELECT " + " ".join(words))


@pytest.fixture(scope="module")
def judges():
    return [Judge(SHOP, gold, databases=3) for gold, _ in EQUAL[:1] + EQUAL[7:8] + DIFFERENT[13:14]]


@given(st.one_of(st.text(max_size=80), SQL))
@settings(max_examples=400, deadline=None)
def test_any_answer_gets_a_verdict(judges, answer):
    for one in judges:
        verdict = one.judge(answer)
        assert verdict.valid == (verdict.error is None)
        assert verdict.lenient >= verdict.strict
        assert verdict.valid >= verdict.lenient


@given(st.one_of(st.text(max_size=60), SQL))
@settings(max_examples=150, deadline=None)
def test_any_gold_query_gets_a_status(answer):
    one = Judge(SHOP, answer, databases=2)
    assert one.gold in (None, "invalid", "undetermined")
    assert one.judge("SELECT 1").gold == one.gold


def run_command(*arguments):
    command = [sys.executable, "-m", "tools.score_sql", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)


@pytest.fixture
def files(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": "?", "context": SHOP, "answer": gold}) + "\n" for gold, _ in EQUAL[:4])
    )
    predictions = tmp_path / "predictions.jsonl"
    answers = [EQUAL[0][1], EQUAL[1][0], "SELECT x", "line\u2028separator"]
    predictions.write_text("".join(json.dumps({"prediction": answer}, ensure_ascii=False) + "\n" for answer in answers))
    return ["--rows", rows, "--predictions", predictions, "--output", tmp_path / "scores.json"]


def test_command(files):
    done = run_command(*files)
    assert done.returncode == 0, done.stderr
    scores = json.loads(files[-1].read_text())
    assert [row["strict"] for row in scores["rows"]] == [True, True, False, False]
    assert scores["rows"][1] == asdict(Verdict(True, True, True, True, None))
    assert scores["totals"]["errors"] == {"not_a_query": 1, "unknown_column": 1}
    assert re.search(r"strict +50\.0 % .*\b4\b", done.stdout)


def test_command_counts_a_missing_prediction_as_wrong(files):
    lines = files[3].read_text().split("\n")
    files[3].write_text("\n".join(['{"prediction": null}', *lines[1:]]))
    done = run_command(*files)
    assert done.returncode == 0, done.stderr
    scores = json.loads(files[-1].read_text())
    assert [row["strict"] for row in scores["rows"]] == [False, True, False, False]
    assert scores["rows"][0]["error"] == "empty"


@pytest.mark.parametrize(
    ("argument", "text", "says"),
    [
        (1, None, r"rows\.jsonl"),
        (1, "", r"rows\.jsonl .*empty"),
        (3, '{"prediction": "SELECT 1"}\n{"prediction"\n', r"predictions\.jsonl, line 2.*JSON"),
        (3, '["SELECT 1"]\n', r"predictions\.jsonl, line 1.*list"),
        (3, '{"prediction": 7}\n', r'predictions\.jsonl, line 1.*"prediction"'),
        (1, '{"question": "?", "context": "x"}\n', r'rows\.jsonl, line 1.*"answer"'),
        (3, '{"prediction": "SELECT 1"}\n', r"rows\.jsonl .*\b4 .*predictions\.jsonl .*\b1 "),
    ],
)
def test_command_refuses_in_one_sentence(files, argument, text, says):
    files[argument].unlink() if text is None else files[argument].write_text(text)
    done = run_command(*files)
    assert done.returncode == 1
    assert re.search(says, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not files[-1].exists()


def test_command_refuses_an_unknown_dialect(files):
    done = run_command(*files, "--dialect", "klingon")
    assert done.returncode == 1
    assert "klingon" in done.stderr
