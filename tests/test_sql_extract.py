import time

from qlora.sql.extract import extract

import pytest


@pytest.mark.parametrize(
    ("answer", "sql"),
    [
        ("SELECT a FROM t", "SELECT a FROM t"),
        ("  select a from t ;\n", "select a from t"),
        ("```sql\nSELECT a\nFROM t;\n```\nThis reads a.", "SELECT a\nFROM t"),
        ("```\nSELECT a FROM t", "SELECT a FROM t"),
        ("```python\nprint(1)\n```\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("`SELECT a FROM t`", "SELECT a FROM t"),
        ("Sure! Here is:\n\nSELECT a FROM t WHERE x = 'a;b';\n\nThe query reads a.", "SELECT a FROM t WHERE x = 'a;b'"),
        ("SELECT a FROM t\n\nThis query reads a.", "SELECT a FROM t"),
        ("SELECT a\n\nFROM t\n\nWHERE x = 1\n\nNote: none", "SELECT a\n\nFROM t\n\nWHERE x = 1"),
        ("SQL: select 1", "select 1"),
        ("Answer: The query is SELECT a FROM t.", "SELECT a FROM t"),
        ("You can select rows like this: SELECT a FROM t", "SELECT a FROM t"),
        ("With this query you select the names:\nSELECT a FROM t", "SELECT a FROM t"),
        ("WITH x AS (SELECT 1)\nSELECT * FROM x", "WITH x AS (SELECT 1)\nSELECT * FROM x"),
        ("the query: with x as (select 1) select * from x", "with x as (select 1) select * from x"),
        ("<|im_start|>assistant\nSELECT a FROM t<|im_end|>\n<|im_start|>user\nSELECT b", "SELECT a FROM t"),
        ("[INST] names? [/INST] SELECT a FROM t </s>", "SELECT a FROM t"),
        ("SELECT a FROM t;\n\n### Question: b?\nSELECT b FROM t", "SELECT a FROM t"),
        ("<think>SELECT 1?</think>\nSELECT 2", "SELECT 2"),
        ("SELECT x FROM t -- not; here\nORDER BY 1", "SELECT x FROM t -- not; here\nORDER BY 1"),
        ("SELECT 1 /* ; */; DROP TABLE t", "SELECT 1 /* ; */; DROP TABLE t"),
        ("SELECT 1; SELECT 2;", "SELECT 1; SELECT 2"),
        ("DROP TABLE t;", "DROP TABLE t"),
        ("(SELECT 1)", "(SELECT 1)"),
        ("I cannot answer that.", "I cannot answer that"),
        ("", ""),
        (" ; ", ""),
    ],
)
def test_finds_the_sql(answer, sql):
    assert extract(answer) == sql


@pytest.mark.parametrize(
    "answer", ["\n" * 50_000 + "x", "'" * 50_001, "SELECT" + "\n \t" * 20_000, "```" * 20_000, "with " * 20_000]
)
def test_long_odd_answers_take_no_time(answer):
    start = time.perf_counter()
    extract(answer)
    assert time.perf_counter() - start < 1
