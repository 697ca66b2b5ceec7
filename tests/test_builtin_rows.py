"""The built-in text-to-SQL rows and the program that makes them."""

import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from data.text2sql import generate
from data.text2sql.domains import article, plural, read_schemas

import pytest
import sqlglot

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data/raw/text2sql.jsonl"
KINDS = {kind.name: kind for kind in generate.KINDS}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """The committed rows."""
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def test_generator_makes_the_committed_bytes():
    """Another process, with another hash seed, makes the same file."""
    command = [sys.executable, "-m", "data.text2sql.generate", "--check"]
    for seed in ("0", "1"):
        done = subprocess.run(command, cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_check_finds_another_file(tmp_path, monkeypatch, capsys):
    """`--check` fails on a missing or a changed file, and names it."""
    monkeypatch.setattr(generate, "FILE", tmp_path / "rows.jsonl")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert generate.main() == 1
    assert str(tmp_path / "rows.jsonl") in capsys.readouterr().err


def test_enough_rows_schemas_and_kinds(rows):
    """The file is as large and as varied as promised, and no larger."""
    assert len(rows) >= 4000
    assert len({row["schema"] for row in rows}) >= 60
    assert len({row["kind"] for row in rows}) >= 25
    assert FILE.stat().st_size < 2_000_000
    assert all(row.keys() == {"question", "context", "answer", "schema", "kind"} for row in rows)


def test_each_kind_has_rows_over_many_schemas(rows):
    """Each kind has at least 60 rows over at least 10 schemas."""
    schemas = defaultdict(list)
    for row in rows:
        schemas[row["kind"]].append(row["schema"])
    assert schemas.keys() == KINDS.keys()
    assert {kind: len(found) for kind, found in schemas.items() if len(found) < 60 or len(set(found)) < 10} == {}


def test_each_kind_is_asked_in_three_ways_or_more(rows):
    """Each kind has three wordings or more that the file really uses."""
    used = defaultdict(set)
    for row in rows:
        for wording in KINDS[row["kind"]].wordings:
            pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(wording))
            if re.fullmatch(pattern, row["question"], re.IGNORECASE):
                used[row["kind"]].add(wording)
                break
    assert {kind: len(used[kind]) for kind in KINDS if len(used[kind]) < 3} == {}


def test_rows_of_a_schema_share_a_context_and_no_query(rows):
    """A schema has one context; within it no two rows differ in their literals alone."""
    assert len({(row["schema"], row["context"]) for row in rows}) == len({row["schema"] for row in rows})
    questions = Counter((row["schema"], generate.skeleton(row["question"])) for row in rows)
    answers = Counter((row["schema"], generate.skeleton(row["answer"])) for row in rows)
    assert len(questions) >= 3500
    assert max(answers.values()) == 1


def test_every_answer_runs_and_parses(rows):
    """Each answer runs in SQLite on its context and is one SELECT that sqlglot reads."""
    databases = {}
    for row in rows:
        if row["schema"] not in databases:
            databases[row["schema"]] = sqlite3.connect(":memory:")
            databases[row["schema"]].executescript(row["context"])
        databases[row["schema"]].execute(row["answer"])
        assert isinstance(sqlglot.parse_one(row["answer"], read="sqlite"), sqlglot.exp.Query)


def test_questions_are_clean_english(rows):
    """No placeholder, doubled word or wrong article is left, and a question mark ends a question."""
    for row in rows:
        question = row["question"]
        assert not re.search(r"[{}_]|  | [.,?]", question), question
        assert not re.search(r"\b(\w+) \1\b", question), question
        assert not re.search(r"\ba [aeio]|\ban [^aeiouh]", question), question
        assert question[0].isupper(), question
        asks = question.split()[0] in {"What", "Which", "How"}
        assert question.endswith("?") or (question.endswith(".") and not asks) or "Give their" in question, question


def test_values_stand_in_the_question_as_in_the_answer(rows):
    """Each text value of an answer can be copied from its question."""
    for row in rows:
        for value in re.findall(r"'%?(.*?)%?'", row["answer"]):
            assert value in row["question"], row


def test_words():
    """Plurals and articles."""
    assert [plural(word) for word in ("city", "match", "year of hire", "series", "day")] == [
        "cities",
        "matches",
        "years of hire",
        "series",
        "days",
    ]
    assert [article(word) for word in ("age", "price", "hourly rate", "unit price")] == [
        "an age",
        "a price",
        "an hourly rate",
        "a unit price",
    ]


def test_domains_are_well_formed():
    """Every schema name is used once and every table has its own name."""
    schemas = read_schemas()
    assert len({schema.name for schema in schemas}) == len(schemas)
    assert all(len({table.name for table in schema.tables}) == len(schema.tables) for schema in schemas)
