"""The demo's page in a browser, with the embedded model as the base and, converted the same way, as the tuned one."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

from qlora.recipe.artifacts import BASE_RECORD
from qlora.recipe.load import load_params
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows import jsonl
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.sql.schema import SchemaError
from tools import demo, serving, trial

import pytest
from conftest import chromium
from playwright.sync_api import expect
from repository import ROOT

SCHEMA = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, country TEXT)"


def test_queries_run_on_the_same_made_up_rows():
    france = "SELECT COUNT(*) AS n FROM users WHERE country = 'France'"
    answers = [f"```sql\n{france};\n```", france, "SELECT country FROM users", "DROP TABLE users"]
    one, other, everyone, gone = trial.run(SCHEMA, answers)
    assert one.sql == france
    assert one.error is None
    assert (one.columns, everyone.columns) == (["n"], ["country"])
    assert one.rows == other.rows == [[sum(row == ["France"] for row in everyone.rows)]]
    assert one.rows[0][0] > 0
    assert gone.error.startswith("denied")
    counted, starred = trial.run(SCHEMA, ["SELECT COUNT(*), 1 FROM users", "SELECT * FROM users"])
    assert counted.columns == ["COUNT(*)", "1"]
    assert starred.columns == ["column 1", "column 2", "column 3"]


def test_a_query_that_never_ends_is_ended_and_named():
    (endless,) = trial.run(
        SCHEMA, ["WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) SELECT COUNT(*) FROM a"]
    )
    assert endless.error.startswith("timeout")
    with pytest.raises(SchemaError):
        trial.run("SELECT 1", ["SELECT 1"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the embedded model, converted, stands where the pipeline would put the bf16 GGUF."""
    path = tmp_path_factory.mktemp("demo")
    for name in ("qlora", "stages", "tools"):
        (path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", path / "params.yaml")
    (path / "data/prepared").mkdir(parents=True)
    with (ROOT / "data/raw/text2sql.jsonl").open() as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 0, 2000, 400)]
    jsonl.write(path / "data/prepared/test.jsonl", ({**row, "messages": []} for row in rows))
    base = base_model.fetch(Model(id=EMBEDDED))
    for name in ("base", "bf16"):
        write_json(path / "models" / name / BASE_RECORD, base_model.describe(Model(id=EMBEDDED), base))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        (path / "models/bf16/model.gguf").symlink_to(serving.find_gguf("base", load_params()))
    return path


@pytest.fixture(scope="module")
def url(place):
    pytest.importorskip("gradio", reason="the demo's packages are not installed (requirements-demo.txt)")
    command = [sys.executable, "-m", "tools.demo", "--artifact", "bf16", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    printed = ""
    while "Ctrl-C" not in printed and (line := process.stdout.readline()):
        printed += line
    yield re.search(r"http://\S+:\d+", printed)[0]
    process.terminate()
    assert process.communicate(timeout=20)[0].strip() == "stopped"
    assert process.returncode == 0


def test_both_models_answer_and_their_sql_is_run(url, tmp_path):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(url)
        example = page.locator(".gallery-item").nth(1)
        example.click()
        expect(page.get_by_label("Question")).to_have_value(re.compile("^" + re.escape(example.inner_text()[:30])))
        page.get_by_label("Schema").fill(SCHEMA)
        page.get_by_label("Question").fill("How many users are there?")
        page.get_by_role("button", name="Ask both").click()
        page.get_by_text(re.compile("runs: |✗")).nth(1).wait_for(timeout=120_000)
        assert page.get_by_text("SELECT").count() >= 2
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            page.wait_for_timeout(500)
            page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + f"/demo-{width}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            left, right = (page.get_by_role("heading", name=name).bounding_box() for name in ("base", "bf16"))
            assert (left["y"] == right["y"]) == (width > 1000)  # side by side, or one below the other


def test_what_is_missing_or_wrong_is_a_sentence_on_the_page(url):
    with chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_label("Schema")).to_have_value(re.compile(r"^CREATE TABLE"))  # an example is filled in
        for schema, question, said in (
            ("CREATE TABLE users (", "How many users are there?", "ends within CREATE TABLE"),
            ("CREATE TABLE users (id INT)", " ", "a question"),
            ("", "", "a schema and a question"),
        ):
            page.get_by_label("Schema").fill(schema)
            page.get_by_label("Question").fill(question)
            page.get_by_role("button", name="Ask both").click()
            page.get_by_text(said).first.wait_for(timeout=20_000)
            assert page.get_by_text("Error", exact=True).count() == 0


def test_a_chat_recipe_shows_both_answers(place, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the demo's packages are not installed (requirements-demo.txt)")
    monkeypatch.chdir(tmp_path)  # where no rows lie to take examples from
    params, gguf = load_params(ROOT / "recipes/mistral-7b-guanaco.yaml"), place / "models/bf16/model.gguf"
    room = serving.room(gguf, params, context=512, slots=2)
    with serving.serve("both", gguf, params, room, options=["--temp", "0"]) as server:
        servers = {"base": server, "tuned": server}
        *_, (one, other) = demo.compare_chat(params.data, servers, "", "What is the capital of France?")
        assert "Paris" in one
        assert "Paris" in other
        demo.build(params, servers)
