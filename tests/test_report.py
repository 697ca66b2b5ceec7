"""report: tables show what is there, summary.json holds what no machine changes, and gaps are named."""

import json

from qlora.recipe.metrics import METRICS
from qlora.reporting import gates, plots, sections, summary
from qlora.reporting.bootstrap import Interval
from qlora.reporting.tables import change, metric_table, number, one_line, show
from qlora.runtime.console import Refusal
from stages import report

import pytest

METRICS_OF_ALL = {"loss": 0.12345, "stop_rate": 1.0, "tokens_per_second": 1234.6, "size_mb": 269.06}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_column_for_each_measure_that_all_artifacts_have():
    metrics = {"base": METRICS_OF_ALL | {"execution_accuracy": 0.0}, "Q8_0": METRICS_OF_ALL}
    head, rule, base, _ = metric_table(metrics, ("execution_accuracy", *sections.LANGUAGE, *sections.COST)).splitlines()
    assert cells(head) == ["artifact", "loss", "stops", "MB", "tokens/s"]
    assert cells(base) == ["base", "0.123", "100.0%", "269", "1,235"]
    assert len(rule) == len(head)


def test_an_interval_is_shown_behind_its_value_unless_it_is_empty():
    intervals = {("base", "loss"): Interval(0.12345, 0.1, 0.2), ("Q8_0", "loss"): Interval(0.12345, 0.1, 0.1)}
    lines = metric_table({"base": METRICS_OF_ALL, "Q8_0": METRICS_OF_ALL}, ["loss"], intervals).splitlines()
    assert [cells(line)[1] for line in lines[2:]] == ["0.123 (0.100 to 0.200)", "0.123"]


def test_values_are_shown_in_their_units():
    assert [show(name, 0.125) for name in ("stop_rate", "loss", "first_token_ms")] == ["12.5%", "0.125", "0.1"]
    assert show("loss", None) == show("loss", float("nan")) == "-"
    assert [number(value) for value in (0.0, 0.001234, 0.1234, 1234.56)] == ["0.000", "0.00123", "0.123", "1,234.6"]
    assert change("stop_rate", Interval(-0.05, -0.1, 0.0)) == "-5.0 (-10.0 to +0.0)"
    assert change("loss", Interval(0.05, float("nan"), float("nan"))) == "+0.0500"


def test_a_text_is_put_in_one_line_without_backquotes():
    assert one_line("a\n b  `c`") == "a b 'c'"
    assert one_line("abcdef", 3) == "abc ..."


def answers(right: str) -> list[dict]:
    """One record a row: 1 for right, 0 for wrong, ? for one whose gold query cannot be judged."""
    accuracy = {"1": True, "0": False, "?": None}
    return [{"execution_accuracy": accuracy[one], "error": None} for one in right]


def test_the_most_telling_answers_are_those_that_artifacts_disagree_on():
    predictions = {"base": answers("0000?"), "adapter": answers("1110?"), "merged": answers("1110?")}
    predictions |= {"Q8_0": answers("1100?"), "Q4_K_M": answers("1000?")}
    assert sections.telling(predictions) == [2, 1, 3]
    chat = {
        name: [{"nll": nll, "supervised": 2} for nll in losses]
        for name, losses in {"adapter": (1, 1, 1), "merged": (1, 3, 2)}.items()
    }
    assert sections.telling(chat) == [1, 2, 0]


def test_rows_that_no_score_can_judge_are_counted_with_an_example():
    rows = [{"id": f"rows.jsonl:{number}", "answer": f"SELECT {number}"} for number in range(4)]
    reasons = [None, "empty", "empty", "tied"]
    lines = sections.unjudged_section(rows, {"base": [{"unjudged": reason} for reason in reasons]})
    assert "3 of 4" in lines[2]
    assert lines[4:6] == ["- 2: empty: rows.jsonl:1: SELECT 1", "- 1: tied: rows.jsonl:3: SELECT 3"]
    assert sections.unjudged_section(rows, {"base": [{"unjudged": None}] * 4}) == []
    assert sections.unjudged_section([{"id": "chat:1"}], {"base": [{}]}) == []


def test_the_gate_table_has_notes_only_where_there_are_any():
    noted = gates.check({"base": {"valid_sql": 0.5}}, {"base": {}})
    plain = gates.check({"base": {"loss": 0.5}}, {"base": {"loss": 0.1}})
    assert cells(sections.gate_table(noted).splitlines()[2])[-1].startswith("not measured")
    assert "note" not in sections.gate_table(plain)
    assert (
        report.gate_in_words(noted[0]) == "base.valid_sql is not measured: name it in evaluate.metrics, must be >= 0.5"
    )


def test_answers_are_counted_by_how_they_ended():
    wrong = answers("01?0")
    wrong[3]["error"] = "no_such_column"
    counts = plots.outcome_counts({"base": wrong})
    assert dict(zip(counts["outcome"], counts["rows"], strict=True)) == dict.fromkeys(
        ["another result", "right", "not judged", "no such column"], 1
    )
    chat = plots.outcome_counts({"base": [{"stopped": True}, {"stopped": False}, {"stopped": True}]})
    assert list(chat["rows"]) == [2, 1]


def test_the_summary_holds_no_number_that_depends_on_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = {"base": METRICS_OF_ALL | {"next_token_accuracy": 0.51234567}}
    checked = gates.check({"base": {"loss": 0.1, "tokens_per_second": 2000.0, "stop_rate": 0.9}}, metrics)
    summary.write(metrics, 0.45678, checked, "chat", {"base": "torch 1"})
    written = json.loads(summary.PATH.read_text())
    values = {gate["gate"]: (gate["holds"], gate["value"]) for gate in written.pop("gates")}
    assert values == {
        "base.loss": (False, 0.12345),
        "base.tokens_per_second": (False, None),
        "base.stop_rate": (True, 1.0),
    }
    assert written == {
        "metric": "next_token_accuracy",
        "score": {"base": 0.5123},
        "loss": {"base": 0.123},
        "size_mb": {"base": 269.06},
        "validation_loss": 0.457,
        "gates_broken": 2,
        "measured_with": {"base": "torch 1"},
    }
    assert summary.broken_gates(summary.read()) == ["base.loss", "base.tokens_per_second"]
    assert not any(METRICS[name].machine_dependent for name in ("next_token_accuracy", "loss", "size_mb"))


def test_a_missing_metric_names_what_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"results/scores/Q8_0\.json .*`dvc repro judge@Q8_0`"):
        report.read_scores("Q8_0")
