"""Intervals, distances, outcomes and gates: against what can be worked out by hand or by brute force."""

import math

from qlora.reporting import bootstrap, gates, outcomes
from qlora.reporting.outcomes import Outcomes
from qlora.runtime.console import Refusal
from qlora.scoring.top_tokens import COUNT, Top, kl_divergence, load, same_top, save
from tools import compare

import numpy as np
import pandas
import pytest

ROWS = [{"id": f"f:{row}", "group": f"g{row // 2}", "messages": [{"content": row}]} for row in range(6)]


def test_the_interval_covers_the_truth_about_19_times_in_20_also_with_few_groups():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        groups = np.repeat(np.arange(12), 6)
        # Rows of a group share half of their luck.
        luck = np.where(random.random(72) < 0.5, random.random(12)[groups], random.random(72))
        interval = bootstrap.ratio(luck < 0.4, np.ones(72), groups, seed=trial)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.92 <= covered / 300 <= 0.99


def test_rows_of_one_group_tell_less():
    right = np.tile([1, 0], 50)
    alone = bootstrap.ratio(right, np.ones(100), np.arange(100))
    together = bootstrap.ratio(np.sort(right), np.ones(100), np.arange(100) // 10)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_rows_that_are_hard_for_both_cancel_out_of_a_paired_difference():
    random = np.random.default_rng(0)
    first = random.random(200) < 0.5
    second = first | (np.arange(200) % 10 == 0)
    paired = bootstrap.ratio(second * 1 - first, np.ones(200), np.arange(200))
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.08


def test_one_group_has_no_interval():
    interval = bootstrap.ratio([1, 0], [1, 1], [7, 7])
    assert interval.value == 0.5
    assert math.isnan(interval.low)
    assert not interval.excludes_zero


def softmax_top(logits: np.ndarray) -> Top:
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :COUNT]
    return Top(ids.astype(np.int32), np.take_along_axis(logprobs, ids, 1).astype(np.float32))


def test_divergence_is_that_of_the_whole_vocabulary_where_the_rest_is_improbable():
    random = np.random.default_rng(0)
    p = random.normal(0, 5, (3000, 1000))
    q = p + random.normal(0, 0.3, p.shape)
    log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    exact = (np.exp(log_p) * (log_p - log_q)).sum(1)
    kept = kl_divergence(softmax_top(p), softmax_top(q))
    assert (kept <= exact + 1e-6).all()
    assert kept.mean() > 0.98 * exact.mean()
    assert (same_top(softmax_top(p), softmax_top(q)) == (p.argmax(1) == q.argmax(1))).all()


def test_an_artifact_is_at_no_distance_from_itself(tmp_path):
    top = softmax_top(np.random.default_rng(0).normal(0, 4, (10, 200)))
    save(tmp_path / "a.npz", [Top(top.ids[:4], top.logprobs[:4]), Top(top.ids[4:], top.logprobs[4:])])
    assert kl_divergence(load(tmp_path / "a.npz"), top).max() < 1e-6
    with pytest.raises(ValueError, match="10 positions against 4"):
        kl_divergence(top, Top(top.ids[:4], top.logprobs[:4]))


def record(row: int, right: bool, nll: float) -> dict:
    """A record of results/predictions; the gold query of row 3 cannot be judged."""
    accuracy = {"execution_accuracy": None if row == 3 else right}
    return {"id": f"f:{row}", "nll": nll, "supervised": 2, "top1": 1, "stopped": True} | accuracy


@pytest.fixture
def found() -> Outcomes:
    return outcomes.collect(
        ROWS,
        {
            "merged": [record(row, row < 4, 0.5) for row in range(6)],
            "Q4_K_M": [record(row, row < 2, 1.0) for row in range(6)],
        },
    )


def with_columns(found: Outcomes, artifact: str | None = None, **columns: list) -> Outcomes:
    """`found` with other values in these columns, of one artifact or of all."""
    frame = found.frame.copy()
    for name in found.artifacts if artifact is None else [artifact]:
        for column, values in columns.items():
            frame.loc[frame["artifact"] == name, column] = values
    return Outcomes(frame)


def test_outcomes_survive_git_and_say_what_changed(found, tmp_path):
    outcomes.write(found, tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_text()
    again = outcomes.parse(text)
    pandas.testing.assert_frame_equal(again.frame, found.frame)
    assert list(again.rows["group"]) == [0, 0, 1, 1, 2, 2]
    assert again.interval("merged", "execution_accuracy").value == 3 / 5  # row 3 is not judged
    assert again.difference("merged", "Q4_K_M", "execution_accuracy").value == pytest.approx(-1 / 5)
    assert again.difference("merged", "Q4_K_M", "loss").value == 0.25
    assert len(text.splitlines()) == 1 + 2 * 6  # a line for each artifact and row
    with pytest.raises(ValueError, match="columns"):
        outcomes.parse("artifact,id\nmerged,f:1\n")


def test_chats_have_no_execution_accuracy(tmp_path):
    records = [
        {key: value for key, value in record(row, True, 0.5).items() if "accuracy" not in key} for row in range(6)
    ]
    outcomes.write(outcomes.collect(ROWS, {"base": records}), tmp_path / "rows.csv")
    found = outcomes.parse((tmp_path / "rows.csv").read_text())
    assert [metric for metric in outcomes.MEASURES if found.has("base", metric)] == [
        *("loss", "next_token_accuracy", "stop_rate")
    ]


def test_verdicts_of_many_kinds_survive_git(tmp_path):
    """F1 by fields, a share, and labels, of rows of which the last is not judged; b is better than a."""
    fields = {"a": [(0.5, 4), (1, 2), (None, None)], "b": [(1, 4), (0.5, 4), (None, None)]}
    answered = {"a": [0, 0, -1], "b": [0, 1, 0]}
    predictions = {
        name: [
            record(row, True, 0.5)
            | ({} if weight is None else {"json_fields_weight": weight})
            | {"json_fields": value, "rouge_l": 0.123456789, "label": row % 2, "label_answered": answered[name][row]}
            for row, (value, weight) in enumerate(fields[name])
        ]
        for name in fields
    }
    found = outcomes.collect(ROWS[:3], predictions)
    outcomes.write(found, tmp_path / "rows.csv")
    for one in (found, outcomes.parse((tmp_path / "rows.csv").read_text())):
        assert one.interval("a", "json_fields").value == pytest.approx((0.5 * 4 + 1 * 2) / 6)
        assert one.difference("a", "b", "json_fields").value == pytest.approx(6 / 8 - 4 / 6)
        assert one.interval("a", "rouge_l").value == pytest.approx(0.123457, abs=1e-6)
        # Labels 0, 1, 0: a answers 0, 0 and none; b answers 0, 1, 0.
        assert one.interval("a", "macro_f1").value == pytest.approx((2 * 1 / (2 + 2) + 0) / 2)
        assert one.difference("a", "b", "macro_f1").value == pytest.approx(0.75)
    differences = {(one.artifact, one.metric) for one in compare.differences(found, found)}
    assert {("a", "json_fields"), ("b", "macro_f1"), ("b", "rouge_l")} <= differences


def test_predictions_of_other_rows_are_refused():
    with pytest.raises(Refusal, match=r"results/predictions/base\.jsonl .*`dvc repro judge@base`"):
        outcomes.collect(ROWS, {"base": [record(row, True, 0.5) for row in range(5)]})


def test_experiments_are_compared_on_the_same_rows_only(found):
    table = compare.difference_table(compare.differences(found, found))
    (line,) = (line for line in table.split("\n") if line.startswith("| Q4_K_M     | loss "))
    cells = [cell.strip() for cell in line.split("|")[3:7]]
    assert cells == ["0.500", "0.500", "+0.0000 (+0.0000 to +0.0000)", "no difference seen"]
    with pytest.raises(Refusal, match=r"\(6 and 6; data\.\*"):
        compare.differences(found, with_columns(found, digest=["another"] * 6))
    longer = with_columns(found, supervised=[3] * 6)  # another tokenizer
    assert {one.metric for one in compare.differences(found, longer)} == {"execution_accuracy", "stop_rate"}


def test_only_rows_that_both_judged_are_compared(found):
    """Rows 0, 1 and 2 are right in both; with other databases row 3 is judged, too, and row 2 no longer."""
    other = with_columns(found, "merged", execution_accuracy=[1, 1, None, 1, 0, 0])
    (accuracy, *_) = compare.differences(found, other)
    assert (accuracy.artifact, accuracy.metric) == ("merged", "execution_accuracy")
    assert (accuracy.before, accuracy.after, accuracy.change.value) == (0.5, 0.5, 0)


def test_gates_hold_at_their_limit_and_break_beyond_it():
    metrics = {
        "adapter": {"execution_accuracy": 0.57, "loss": 0.2},
        "merged": {"execution_accuracy": 0.56, "loss": 0.25, "same_top_token": 0.99},
    }
    limits = {
        "execution_accuracy_drop_from_adapter": 0.01,
        "loss_rise_from_adapter": 0.04,
        "same_top_token": 0.995,
        "loss": 0.3,
        "valid_sql": 0.5,
    }
    checked = gates.check({"merged": limits}, metrics)
    assert [gate.holds for gate in checked] == [True, False, False, True, False]
    assert [gate.sign for gate in checked] == ["<=", "<=", ">=", "<=", ">="]
    assert checked[1].margin == pytest.approx(-0.01)
    assert math.isnan(checked[4].margin)  # never measured
    assert [gate.note for gate in checked] == ["", "", "", "", "not measured: name it in evaluate.metrics"]


def test_a_gate_on_an_accuracy_of_few_or_no_judged_rows_says_so():
    limits = {name: {"execution_accuracy": 0.1, "stop_rate": 0.1} for name in ("base", "merged", "Q8_0")}
    metrics = {
        "base": {"execution_accuracy": None, "stop_rate": 1.0, "judged": 0, "rows": 50},
        "merged": {"execution_accuracy": 0.5, "stop_rate": 1.0, "judged": 12, "rows": 50},
        "Q8_0": {"execution_accuracy": 0.5, "stop_rate": 1.0, "judged": 30, "rows": 50},
    }
    checked = gates.check(limits, metrics)
    assert [gate.holds for gate in checked] == [False, True, True, True, True, True]
    assert [bool(gate.note) for gate in checked] == [True, False, True, False, False, False]
    assert "none of the 50" in checked[0].note
    assert "12 judged rows" in checked[2].note
