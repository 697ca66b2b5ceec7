"""The board: one page of the workspace, commits and experiments, from what Git and results/ hold."""

import json
import re
import shutil
import subprocess

from qlora.runtime.outputs import write_text

import pytest
from conftest import chromium
from repository import CODE, ROOT, TEST_ROWS, git, python, set_param, write_metrics

NAMES = ("base", "merged", "Q8_0")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A commit and an experiment that is far better, as DVC keeps it; the workspace is the commit, with answers."""
    folder = tmp_path_factory.mktemp("board") / "für später"
    folder.mkdir()
    for name in CODE:
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", folder / "params.yaml")
    set_param(folder, "evaluate.artifacts", list(NAMES))
    set_param(folder, "gguf.types", ["Q8_0"])
    set_param(folder, "evaluate.gates", {"Q8_0": {"loss": 0.35}})
    git(folder, "init", "-qb", "main")
    write_metrics(folder, right=10, loss=0.4)
    write_text(folder / ".gitignore", "results/\ndata/\n")
    commit(folder, "the <first> run")
    set_param(folder, "lora.r", 64)
    write_metrics(folder, right=35, loss=0.3)
    commit(folder, "dvc: commit experiment")
    git(folder, "update-ref", "refs/exps/aa/bb/rank-64", "HEAD")
    git(folder, "reset", "-q", "--hard", "HEAD~1")
    messages = [{"role": "user", "content": "How many <b>users</b>?"}, {"role": "assistant", "content": "SELECT 1"}]
    rows = [{"id": f"f:{at}", "group": at, "messages": messages} for at in range(TEST_ROWS)]
    write_lines(folder / "data/prepared/test.jsonl", rows)
    for name in NAMES:
        answers = [
            {"id": row["id"], "answer": f"SELECT '</{name}>'", "execution_accuracy": name == "merged", "error": None}
            | {"nll": 1.0, "supervised": 1, "top1": 1, "stopped": True}
            for row in rows
        ]
        write_lines(folder / f"results/predictions/{name}.jsonl", answers)
    return folder


def commit(folder, message: str) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "-qm", message)


def write_lines(path, rows: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def board(folder) -> subprocess.CompletedProcess:
    done = python(folder, "tools.board")
    assert done.returncode == 0, done.stderr
    return done


def test_the_board_shows_runs_curves_intervals_gates_and_answers(project):
    assert "2 runs, 20 rows with their answers" in board(project).stdout
    page = project / "results/board.html"
    with chromium() as browser:
        for width in (1280, 390):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            requested, problems = [], []
            tab.on("request", lambda request, requested=requested: requested.append(request.url))
            tab.on("pageerror", lambda error, problems=problems: problems.append(error))
            tab.goto(page.as_uri())
            assert requested == [page.as_uri()]  # self-contained
            assert problems == []
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            experiment, last = (row.inner_text() for row in tab.locator(".runs tr").all()[1:])
            assert re.search(r"rank-64\s+lora.r 64", experiment)
            assert "+62.5" in experiment
            assert "1 hold" in experiment
            assert "the <first> run" in last
            assert "1 broken" in last
            assert tab.locator(".runs .better").count() == len(NAMES)
            assert tab.locator(".chart .r1 title").all_text_contents()[-1].startswith("25.0% (")
            gate = tab.locator("tr", has_text=re.compile("^Q8_0.loss"))
            assert gate.inner_text().split() == ["Q8_0.loss", "<=", "0.35", "0.3", "0.4"]
            assert gate.locator(".broken").inner_text() == "0.4"
            row = tab.locator(".row").first.inner_text()
            assert "How many <b>users</b>?" in row
            assert "SELECT '</merged>'" in row
            curve = tab.locator(".chart polyline.r0").first
            assert curve.is_visible()
            tab.locator("[data-run='0']").uncheck()
            assert not curve.is_visible()


def test_a_workspace_with_other_results_is_a_run_of_its_own(project):
    write_metrics(project, right=20, loss=0.2)
    assert "3 runs" in board(project).stdout
    git(project, "checkout", "-q", ".")


def test_commits_of_older_versions_and_with_conflicts_are_left_out_or_drawn_without_curves(project):
    start = git(project, "rev-parse", "HEAD").strip()
    write_metrics(project, right=5, loss=0.5)
    write_text(project / "plots/loss.csv", "step,loss\n1,2\n")
    write_text(project / "plots/artifacts.csv", "artifact,score\nbase,0.1\n")
    commit(project, "other columns")
    for text in ("<<<<<<< HEAD\n", "[]", '{"score": {"base": 1}}'):
        write_text(project / "metrics/summary.json", text)
        commit(project, "not a summary")
    assert "3 runs" in board(project).stdout
    git(project, "reset", "-q", "--hard", start)


def test_answers_that_are_not_here_or_answer_other_rows_are_named(project):
    (project / "results/predictions/Q8_0.jsonl").rename(project / "moved")
    assert "0 rows with their answers" in board(project).stdout
    assert "`make repro` makes them" in (project / "results/board.html").read_text()
    shutil.copy(project / "results/predictions/merged.jsonl", project / "results/predictions/Q8_0.jsonl")
    with (project / "results/predictions/Q8_0.jsonl").open("a") as lines:
        lines.write('{"id": "f:41"}\n')
    board(project)
    assert "answers other rows" in (project / "results/board.html").read_text()
    (project / "moved").rename(project / "results/predictions/Q8_0.jsonl")


def test_without_metrics_there_is_a_sentence(tmp_path):
    for name in CODE:
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", tmp_path / "params.yaml")
    git(tmp_path, "init", "-q")
    commit(tmp_path, "start")
    done = python(tmp_path, "tools.board")
    assert done.returncode == 1
    assert "run `make repro`" in done.stderr
    assert "Traceback" not in done.stderr
