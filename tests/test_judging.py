"""judge and report: a scorer of one's own that misbehaves, and rows that are not SQL from preparation to the report."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

from qlora.judging import scorer as scoring
from qlora.judging.general import judge_general
from qlora.judging.scorer import scorer
from qlora.raw_rows.general import general_rows
from qlora.reporting import outcomes
from qlora.runtime.console import Refusal
from stages import evaluate, fetch_base, judge, prepare_dataset, report
from tools import compare

import pytest
from conftest import make_workspace

HOSTILE = """
import os, sys, time
import numpy
sys.stdout.write("imported\\n")

def score(row, answer):
    print("a line for the terminal")
    sys.stderr.write("another\\n")
    os.write(1, b'{"value": 7, "reason": null}\\n')
    if answer == "raise": raise ValueError("no such thing")
    if answer == "exit": sys.exit(3)
    if answer == "die": os._exit(5)
    if answer == "abort": os.abort()
    if answer == "hang": time.sleep(1000)
    if answer == "spin":
        while True: pass
    if answer == "nan": return float("nan")
    if answer == "inf": return numpy.inf
    if answer == "none": return None
    if answer == "text": return "good"
    if answer == "list": return [1, 2]
    if answer == "deep": return score(row, answer)
    if answer == "read": return len(sys.stdin.read())
    if answer == "reason": return 0.25, "a quarter"
    if answer == "numpy": return numpy.float32(0.5)
    return answer == row["id"]
"""


def test_a_row_on_which_a_scorer_misbehaves_is_counted_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROW_SECONDS", 1.0)
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    failing = {
        "raise": "ValueError: no such thing",
        "exit": "SystemExit: 3",
        "die": "ended its process (status 5)",
        "abort": "ended its process (SIGABRT)",
        "hang": "took longer than 1 s",
        "spin": "took longer than 1 s",
        "nan": "returned nan",
        "inf": "returned inf",
        "none": "returned None",
        "text": "returned 'good'",
        "list": "TypeError",
        "deep": "RecursionError",
    }
    answers = [answer for failed in failing for answer in (failed, "f:1")]
    records = scorer([{"id": "f:1"}] * len(answers), answers, path)
    for (failed, reason), record in zip(failing.items(), records[::2], strict=True):
        assert (record["scorer"], record["outcome"]) == (0, "failed"), failed
        assert reason in record["reason"]
    assert records[1::2] == [{"scorer": 1.0}] * len(failing)
    others = scorer([{"id": "f:1"}] * 4, ["reason", "numpy", "read", "wrong"], path)
    assert others == [{"scorer": 0.25, "reason": "a quarter"}, {"scorer": 0.5}, {"scorer": 0.0}, {"scorer": 0.0}]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import no_such_module\ndef score(row, answer): return 1", "ModuleNotFoundError"),
        ("def score(row): return 1", "TypeError: too many positional arguments"),
        ("import os\nos._exit(9)\ndef score(row, answer): return 1", r"ended its process \(status 9\)"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_refused(tmp_path, code, sentence):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(Refusal, match=rf"mine\.py cannot be used: .*{sentence}"):
        scorer([{"id": "f:1"}], [""], tmp_path / "mine.py")


def test_a_scorer_that_hangs_on_every_row_is_called_off(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROW_SECONDS", 0.1)
    monkeypatch.setattr(scoring, "MOST_HANGS", 2)
    (tmp_path / "mine.py").write_text("import time\ndef score(row, answer): time.sleep(9)")
    with pytest.raises(Refusal, match="on each of 2 rows: f:1 and before"):
        scorer([{"id": f"f:{at}"} for at in range(5)], [""] * 5, tmp_path / "mine.py")


FEELINGS = ("glad", "sad", "angry")
OTHER = """{"prompt": "What is 2 + 2?", "answer": "4", "check": "number", "kind": "sums"}
{"prompt": "What is 3 + 4?", "answer": "7", "check": "number", "kind": "sums"}
{"prompt": "Say hello.", "answer": "Hello"}
{"prompt": "A list of 1 and 2 in JSON?", "answer": "[1, 2]", "check": "json"}
{"prompt": "Say A in capitals.", "answer": "A", "check": "pattern", "pattern": "^A$"}
"""
RIGHT = ["It is 4", "7.", "hello.", "```\n[1, 2]\n```", "A"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory, tiny_model):
    """A workspace whose rows name feelings. The base's answers are the tiny model's; the others are made up."""
    workspace = make_workspace(tmp_path_factory.mktemp("classified"), tiny_model)
    rows = [{"prompt": f"How does number {at} feel?", "completion": FEELINGS[at % 3], "number": at} for at in range(90)]
    (workspace.path / "data/raw/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workspace.path / "data/raw/other.jsonl").write_text(OTHER)
    workspace.set(
        {
            "data.source": "data/raw/rows.jsonl",
            "data.task": "chat",
            "data.columns": {},
            "data.keep": ["number"],
            "data.system_prompt": None,
            "data.test_rows": 15,
            "data.near_duplicates": "keep",
            "evaluate.general": "data/raw/other.jsonl",
            "evaluate.preference.artifacts": ["merged"],
            "evaluate.preference.model": "large",
            "evaluate.artifacts": ["base", "adapter", "merged"],
            "evaluate.gates": {"merged": {"label_accuracy": 0.9, "label_accuracy_drop_from_adapter": 0.1}},
        }
    )
    with contextlib.chdir(workspace.path):
        for stage, *arguments in ([fetch_base], [prepare_dataset], [evaluate, "--artifact", "base"]):
            run(stage, *arguments)
    answers = workspace.path / "results/answers"
    records = [json.loads(line) for line in (answers / "base.jsonl").read_text().splitlines()]
    golds = [row["messages"][-1]["content"] for row in rows_of(workspace)]
    for artifact, wrong in (("adapter", 0), ("merged", 3)):
        given = ["I do not know" if at < wrong - 1 else "sad" if at < wrong else gold for at, gold in enumerate(golds)]
        lines = [record | {"answer": answer} for record, answer in zip(records, given, strict=True)]
        (answers / f"{artifact}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.copy(answers / "base.npz", answers / f"{artifact}.npz")
        language = json.loads((answers / "base.json").read_text())
        assert len(language["general"]) == len(RIGHT)
        language["general"] = [*RIGHT[wrong:], *["sad"] * wrong]
        (answers / f"{artifact}.json").write_text(json.dumps(language))
    (workspace.path / "results/train").mkdir()
    (workspace.path / "results/train/metrics.json").write_text(
        json.dumps({"validation_loss": 1.0, "kept_step": 2, "run": "1"})
    )
    (workspace.path / "results/train/log.csv").write_text("step,loss,eval_loss\n1,2.0,\n2,1.5,1.0\n")
    return workspace


def rows_of(workspace) -> list[dict]:
    return [json.loads(line) for line in (workspace.path / "data/prepared/test.jsonl").read_text().splitlines()]


def run(stage, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage.__name__, *arguments])
        stage.main()


def judge_all() -> None:
    for artifact in ("base", "adapter", "merged"):
        run(judge, "--artifact", artifact)


def scores(artifact: str) -> dict:
    return json.loads(Path(f"results/scores/{artifact}.json").read_text())


def test_a_classification_is_judged_by_its_labels_up_to_the_report_and_the_comparison(classified, capsys, monkeypatch):
    monkeypatch.chdir(classified.path)
    judge_all()
    rows = [1, 0.5, None, *[1] * 12]
    preference = {"preference": 0.96, "agreement": 0.9, "judged": 14, "model": "large", "rows": rows}
    Path("results/scores/merged.preference.json").write_text(json.dumps(preference))
    assert "metrics: label_accuracy, because the 15 gold answers are 3 labels" in capsys.readouterr().out
    assert list(scores("adapter"))[:3] == ["label_accuracy", "macro_f1", "judged"]
    assert scores("adapter")["label_accuracy"] == scores("adapter")["macro_f1"] == 1
    with pytest.raises(
        Refusal, match=r"2 of 2 gates broken: merged\.label_accuracy is .* 0\.9 \(of 15 judged rows: fewer"
    ):
        report.main()
    page = Path("results/report.md").read_text()
    for words in ("SQL", "query", "queries", "execution", "database"):
        assert words not in page
    assert "label accuracy |" in page.splitlines()[2]
    assert "## Confusion" in page
    assert "no label" in page
    preferred = page.partition("## Preferred to the base model")[2].splitlines()
    assert re.fullmatch(r"\| merged +\| +96\.4% \(.* to .*\) \| +90\.0% \| +14 \|", preferred[4])
    elsewhere = page.partition("## What tuning cost elsewhere")[2].splitlines()
    assert re.fullmatch(r"\| adapter +\| +100\.0% \(100\.0% to 100\.0%\) \| .*", elsewhere[5])
    assert scores("merged")["general"] == 0
    assert scores("adapter")["general_by_kind"] == {"sums": 1, "general": 1}
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert summary["metric"] == "label_accuracy"
    assert summary["score"]["adapter"] == 1
    found = outcomes.parse(Path("plots/rows.csv").read_text())
    assert found.interval("adapter", "macro_f1").value == 1
    assert found.interval("merged", "macro_f1").value == pytest.approx(scores("merged")["macro_f1"], abs=1e-4)
    assert found.difference("adapter", "merged", "macro_f1").value < 0
    assert {one.metric for one in compare.differences(found, found)} >= {"label_accuracy", "macro_f1", "loss"}


def test_metrics_by_name_and_a_scorer_are_judged_from_the_same_answers(classified, monkeypatch):
    monkeypatch.chdir(classified.path)
    Path("scorers").unlink()
    Path("scorers").mkdir()
    Path("scorers/mine.py").write_text(
        "def score(row, answer):\n"
        "    if row['kept']['number'] % 2: raise KeyError('odd')\n"
        "    return len(answer) / 10, 'by its length'\n"
    )
    classified.set(
        {
            "evaluate.metrics": ["exact_match", "rouge_l", {"name": "number_match", "tolerance": 0.1}],
            "evaluate.scorer": "scorers/mine.py",
            "evaluate.gates": {"merged": {"exact_match": 0.5, "scorer": 0.0}},
        }
    )
    judge_all()
    measured = scores("merged")
    assert next(iter(measured)) == "scorer"
    assert measured["exact_match"] == measured["rouge_l"] == 0.8
    assert measured["number_match"] is None
    report.main()
    page = Path("results/report.md").read_text()
    assert "## Rows without a verdict" in page
    assert "KeyError: 'odd'" in page
    assert "by its length" in page
    assert json.loads(Path("metrics/summary.json").read_text())["metric"] == "scorer"


def test_a_gate_on_what_is_not_measured_is_refused_and_a_missing_scorer_too(classified, monkeypatch):
    monkeypatch.chdir(classified.path)
    classified.set({"evaluate.metrics": ["exact_match"], "evaluate.gates": {"merged": {"rouge_l": 0.5}}})
    with pytest.raises(Refusal, match=r"rouge_l: is not measured; name rouge_l in evaluate\.metrics"):
        judge_all()
    classified.set({"evaluate.gates": {}, "evaluate.scorer": "scorers/other.py"})
    with pytest.raises(Refusal, match=r"scorers/other\.py cannot be read"):
        judge_all()


def test_a_column_to_keep_that_no_row_has_is_refused(classified, monkeypatch):
    monkeypatch.chdir(classified.path)
    classified.set({"data.keep": ["nubmer"], "evaluate.scorer": None, "evaluate.gates": {}})
    with pytest.raises(Refusal, match=r"data\.keep: no row has a column 'nubmer'"):
        run(prepare_dataset)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a"}', "answer must be a text"),
        ('{"prompt": "a", "answer": 3}', "answer must be a text"),
        ('{"prompt": "a", "answer": "b", "check": "near"}', "check is 'near'; it may be exact, number, json, pattern"),
        ('{"prompt": "a", "answer": "b", "check": "pattern"}', "a pattern belongs to check: pattern"),
        ('{"prompt": "a", "answer": "b", "check": "pattern", "pattern": "("}', "no regular expression"),
        ("", "is empty"),
    ],
)
def test_a_general_set_that_cannot_be_used_is_refused_with_its_line(tmp_path, line, sentence):
    (tmp_path / "other.jsonl").write_text(line + "\n")
    with pytest.raises(Refusal, match=rf"other\.jsonl(, line 1:)? .*{sentence}"):
        general_rows(str(tmp_path / "other.jsonl"))


def test_the_built_in_general_set_accepts_its_own_answers_and_no_others():
    rows = general_rows("builtin")
    assert rows == general_rows("builtin")
    assert len({row["id"] for row in rows}) == len(rows) == 229
    golds = [row["messages"][-1]["content"] for row in rows]
    assert judge_general(rows, golds)["general"] == 1
    assert judge_general(rows, ["SELECT name FROM users WHERE id = 7"] * len(rows))["general"] < 0.02
    assert (
        judge_general(rows, ["I'm sorry, but I can't help with that."] * len(rows))["general_by_kind"]["refusals"] == 1
    )
