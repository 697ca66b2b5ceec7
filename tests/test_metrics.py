"""Metrics by name: each against cases made by hand, and what `auto` chooses."""

import json
import random

from qlora.judging import choice, code_tests, labels, overlap, verdicts
from qlora.judging.json_fields import json_fields
from qlora.judging.matches import exact_match, number_match, regex_match
from qlora.judging.texts import normalised, without_reasoning
from qlora.judging.tool_calls import tool_call
from qlora.recipe.schema import JudgedBy
from qlora.runtime.console import Refusal

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer


def row(gold: str, calls: list[tuple[str, dict]] = (), **kept: str) -> dict:
    message = {"role": "assistant", "content": gold}
    if calls:
        functions = [{"type": "function", "function": {"name": name, "arguments": args}} for name, args in calls]
        message["tool_calls"] = functions
    return {"id": "f:1", "group": "1", "messages": [{"role": "user", "content": "?"}, message], "kept": kept}


def values(records: list[dict], name: str) -> list:
    return [record[name] for record in records]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", 1),
        ("  paris.\n", 1),
        ('"PARIS"', 1),
        ("<think>It is in France.</think>\n\nParis", 1),
        ("Paris, France", 0),
        ("<think>Paris", 0),
        ("", 0),
    ],
)
def test_exact_match_forgives_case_space_quotes_and_a_full_stop(answer, right):
    assert values(exact_match([row("Paris")], [answer]), "exact_match") == [right]


def test_reasoning_is_no_part_of_an_answer():
    assert without_reasoning("so it is 4</think> 4") == "4"  # the template opened the block in the prompt
    assert normalised("\uff21\u00a0B") == "a b"


def test_labels_are_the_gold_answers_and_anything_else_is_none():
    rows = [row(label) for label in ("Yes", "no", "no", "Maybe")]
    records = labels.label_accuracy(rows, ["yes.", "NO", "yes", "I cannot say"])
    assert values(records, "label_accuracy") == [1, 1, 0, 0]
    assert values(records, "outcome") == ["right", "right", "another label", "no label"]
    counts = labels.label_counts(np.array(values(records, "label")), np.array(values(records, "label_answered")))
    # yes: 1 of 1 right and 1 of 2 answers; no: 1 of 2 and 1 of 1; maybe: never.
    assert labels.macro_f1(counts.sum(0)) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "right"),
    [
        ("#### 1,234", "so it is 1234.", 0, 1),
        ("0.5", "the ratio is .50", 0, 1),
        ("5", "5kg", 0, 1),
        ("-7", "\u22127", 0, 1),
        ("100", "first 100, then 101", 0, 0),
        ("100", "101", 0.01, 1),
        ("100", "102", 0.01, 0),
        ("0", "0.005", 0.01, 1),
        ("1e3", "1000", 0, 1),
        ("9" * 400, "9" * 399 + "8", 0, 0),
        ("3", "three", 0, 0),
        ("three", "3", 0, None),
    ],
)
def test_the_last_numbers_are_compared(gold, answer, tolerance, right):
    assert values(number_match([row(gold)], [answer], tolerance), "number_match") == [right]


def test_what_a_pattern_finds_is_compared_and_a_pattern_may_take_too_long():
    pattern = r"Answer:\s*(\w+)"
    answers = ["Answer: A ... no. Answer: b", "B", "answer: b", "Answer: c"]
    assert values(regex_match([row("Answer: B")] * 4, answers, pattern), "regex_match") == [1, 0, 0, 0]
    assert values(regex_match([row("B")], ["Answer: B"], pattern), "regex_match") == [None]
    slow = regex_match([row("x" * 3 + "y")], ["x" * 40], r"^(x|x)*y$")
    assert slow[0]["regex_match"] == 0


GOLD = '{"name": "Ada", "age": 36, "tags": ["a", "b"], "at": {"open": true}}'


@pytest.mark.parametrize(
    ("answer", "valid", "exact", "f1"),
    [
        (GOLD, 1, 1, 1),
        (f"```json\n{GOLD}\n```", 1, 1, 1),
        ('{"tags": ["b", "a"], "at": {"open": true}, "age": 36.0, "name": "Ada"}', 1, 1, 1),
        ('{"name": "Ada", "age": 36}', 1, 0, 2 * 2 / (5 + 2)),
        ('{"name": "ada", "age": "36", "tags": ["a", "a"], "at": {"open": 1}}', 1, 0, 2 * 1 / (5 + 5)),
        ("{}", 1, 0, 0),
        ("Here: " + GOLD, 0, 0, 0),
        ('{"name": NaN}', 0, 0, 0),
        ("[" * 100_000, 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_fields_of_json_are_counted(answer, valid, exact, f1):
    (record,) = json_fields([row(GOLD)], [answer], None)
    assert (record["json_valid"], record["json_exact"]) == (valid, exact)
    assert record["json_fields"] == pytest.approx(f1)


def test_the_mean_of_rows_by_their_fields_is_the_micro_f1():
    rows = [row('{"a": 1}'), row('{"a": 1, "b": 2, "c": 3}'), row("no JSON")]
    records = json_fields(rows, ['{"a": 1}', '{"a": 1, "b": 0}', "{}"], None)
    assert verdicts.mean(records, "json_fields") == round(2 * 2 / (2 * 2 + 1 + 2), 4)
    assert verdicts.mean(records, "json_exact") == 0.5  # the third row is not judged


def test_valid_json_follows_the_schema(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}))
    records = json_fields([row('{"a": 1}')] * 3, ['{"a": 2}', '{"a": "2"}', '{"b": 1}'], str(path))
    assert values(records, "json_valid") == [1, 0, 0]
    assert values(records, "outcome") == ["other fields", "not of the schema", "not of the schema"]
    for schema in ({"type": "objekt"}, {"$ref": "https://example.com/schema"}, {"$ref": "#/$defs/no"}):
        path.write_text(json.dumps(schema))
        with pytest.raises(Refusal, match=r"answer\.json (is no JSON schema|refers to)"):
            json_fields([row('{"a": 1}')], ['{"a": 2}'], str(path))


WEATHER = ("get_weather", {"city": "Paris", "days": 2})


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        '{"name": "get_weather", "parameters": {"days": 2.0, "city": "Paris"}}',
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]',
        'get_weather[ARGS]{"city": "Paris", "days": 2}',
        'commentary to=functions.get_weather json{"city": "Paris", "days": 2}',
        '[get_weather(city="Paris", days=2)]',
        '```tool_code\nget_weather(days=2, city="Paris")\n```',
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>",
        '{"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}}',
    ],
)
def test_a_call_is_read_as_models_write_it(answer):
    assert tool_call([row("", [WEATHER])], [answer]) == [{"tool_call": 1, "tool_name": 1, "outcome": "right"}]


def test_calls_are_compared_by_name_and_arguments():
    wrong = {
        '{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}': "other arguments",
        '{"name": "get_time", "arguments": {"city": "Paris", "days": 2}}': "another tool",
        '{"city": "Paris"}': "no call",
        '{"a":' * 3000: "no call",
    }
    records = tool_call([row("", [WEATHER])] * len(wrong), list(wrong))
    assert values(records, "outcome") == list(wrong.values())
    assert values(records, "tool_name") == [1, 0, 0, 0]
    two = row("", [WEATHER, ("get_time", {})])
    swapped = (
        '[{"name": "get_time", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]'
    )
    assert values(tool_call([two], [swapped]), "tool_call") == [1]
    assert values(tool_call([row("Hello")] * 2, ["Hi", '{"name": "a", "arguments": {}}']), "tool_call") == [1, 0]


def test_rouge_l_is_that_of_rouge_score_and_keeps_other_scripts():
    generator, scorer = random.Random(0), RougeScorer(["rougeL"])
    for _ in range(300):
        gold, answer = ("".join(generator.choices("abcA B 12, .!-'", k=generator.randint(1, 40))) for _ in range(2))
        (record,) = overlap.rouge_l([row(gold)], [answer])
        assert (record["rouge_l"] or 0) == pytest.approx(scorer.score(gold, answer)["rougeL"].fmeasure)
    assert values(overlap.rouge_l([row("Čau světe")], ["čau"]), "rouge_l") == [pytest.approx(2 / 3)]
    assert values(overlap.rouge_l([row("東京です")], ["東京"]), "rouge_l") == [pytest.approx(2 * 2 / 6)]


def test_chrf_is_a_share():
    assert values(overlap.chrf([row("the cat"), row("the cat"), row("")], ["the cat", "xyz", "a"]), "chrf") == [
        *(pytest.approx(1), 0, None),
    ]


def test_code_runs_under_limits_and_must_reach_the_end_of_the_tests():
    tests = "assert add(1, 2) == 3"
    right = "def add(a, b):\n    return a + b"
    answers = {
        f"Sure:\n```python\n{right}\n```\nDone.": "passed",
        right: "passed",
        "def add(a, b):\n    return a - b": "failed",
        "import os\nos._exit(0)": "failed",
        "import sys\nsys.exit(0)": "failed",
        "while True: pass": "timeout",
        f"x = 'a' * 10**9\n{right}": "failed",
        f"open('f', 'w').write('a' * 10**8)\n{right}": "failed",
        f"import os\nassert 'QLORA_SECRET' not in os.environ\n{right}": "passed",
        "def add(:": "failed",
    }
    settings = JudgedBy(name="code_tests", tests="test", seconds=2.0, memory_mb=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_SECRET", "1")
        records = code_tests.code_tests([row("", test=tests)] * len(answers), list(answers), settings)
    assert dict(zip(answers, values(records, "outcome"), strict=True)) == answers
    assert code_tests.code_tests([row("", test=tests), row("")], [right] * 2, settings)[1]["code_tests"] is None
    with pytest.raises(Refusal, match=r"data\.keep"):
        code_tests.code_tests([row("")], [right], settings)


@pytest.mark.parametrize(
    ("golds", "chosen"),
    [
        (["spam", "ham"] * 10, ["label_accuracy"]),
        ([f'{{"a": {at}}}' for at in range(20)], ["json_fields"]),
        (['{"a": 1}'] * 20, ["json_fields"]),
        ([str(at) for at in range(20)], ["number_match"]),
        ([f"Sentence number {at} about something." for at in range(20)], ["rouge_l", "exact_match"]),
        (["spam", "ham"], ["rouge_l", "exact_match"]),  # too few rows to call it a closed set
        (["a rather long answer that nobody would call a label of anything", "no"] * 10, ["rouge_l", "exact_match"]),
    ],
)
def test_the_gold_answers_choose_the_metrics(golds, chosen):
    assert choice.choose([row(gold) for gold in golds])[0] == chosen


def test_gold_answers_that_call_tools_choose_tool_call():
    assert choice.choose([row("", [WEATHER]), row("Hello")])[0] == ["tool_call"]
