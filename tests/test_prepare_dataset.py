"""prepare-dataset on real rows and a real tokenizer: what is kept, dropped and counted, and how it is split."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qlora.raw_rows.index import Rejections
from qlora.recipe.load import load_params
from qlora.recipe.schema import Model
from qlora.rows.chat import load_chat
from qlora.rows.prepared import PREPARED, SPLITS, encode_rows, evenly, first, read, read_encoded, split_file
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from stages import prepare_dataset

import pytest
from conftest import refused

ALL_ROWS = {"data.train_rows": None, "data.validation_rows": None, "data.test_rows": None}


@dataclass(frozen=True)
class Prepared:
    splits: dict[str, list[dict]]
    rejected: list[dict]
    report: dict

    @property
    def reasons(self) -> Counter:
        return Counter(row["reason"] for row in self.rejected)

    @property
    def rows(self) -> list[dict]:
        return [row for split in SPLITS for row in self.splits[split]]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prepare(workspace, monkeypatch):
    """A function that runs the stage in this process, on `rows` (the built-in ones by default) and changed params."""
    monkeypatch.chdir(workspace.path)
    write_json(Path("models/base/base.json"), base_model.describe(Model(id="./tiny"), Path("tiny")))

    def prepare(rows: list[dict] | None = None, changes: dict | None = None, test_rows=()) -> Prepared:
        if rows is not None:
            Path("data/raw/text2sql.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if test_rows:
            Path("data/raw/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test_rows))
        workspace.set(ALL_ROWS | (changes or {}))
        prepare_dataset.main()
        output = Path("data/prepared")
        assert {path.name for path in output.iterdir()} == {
            *(f"{s}.jsonl" for s in SPLITS),
            "general.json",
            "rejected.jsonl",
            "report.json",
        }
        return Prepared(
            {split: read_jsonl(output / f"{split}.jsonl") for split in SPLITS},
            read_jsonl(output / "rejected.jsonl"),
            json.loads((output / "report.json").read_text()),
        )

    return prepare


def sql_rows(groups: int, per_group: int = 1) -> list[dict]:
    """Rows without near duplicates: each has a word of its own."""
    names = ["".join(chr(97 + int(digit)) for digit in f"{n:04d}") for n in range(groups * per_group)]
    return [
        {"question": f"Count {name}", "context": f"CREATE TABLE t (x{n % groups:03d} INT)", "answer": f"SELECT {name}",
         "schema": f"g{n % groups}"}
        for n, name in enumerate(names)
    ]  # fmt: skip


# What every run promises


def test_no_row_gets_lost_and_the_counts_are_right(prepare):
    source = read_jsonl(Path("data/raw/text2sql.jsonl"))
    prepared = prepare(changes={"data.train_rows": 10, "train.max_length": 110})
    ids = [row["id"] for row in [*prepared.rows, *prepared.rejected]]
    assert sorted(ids) == sorted(f"text2sql.jsonl:{n}" for n in range(1, len(source) + 1))
    assert prepared.report["rows"] == {s: len(prepared.splits[s]) for s in SPLITS} | {"rejected": prepared.reasons}
    assert prepared.reasons["beyond data.train_rows"] > 0
    assert prepared.reasons["longer than train.max_length"] > 0
    assert len(prepared.splits["train"]) == 10
    for row in prepared.rows:
        original = source[int(row["id"].split(":")[1]) - 1]
        assert {name: row[name] for name in ("question", "context", "answer")} == {
            name: original[name].strip() for name in ("question", "context", "answer")
        }


def test_tokens_are_those_of_the_template(prepare):
    prepared = prepare()
    tokenizer = load_chat(Path("tiny")).tokenizer
    for split in SPLITS:
        total = supervised = 0
        for row in prepared.splits[split]:
            ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
            assert tokenizer.decode(ids[-2:]) == "<|im_end|>\n"  # the line break has no loss and is not counted
            assert row["tokens"] == len(ids) - 1
            answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            assert row["supervised"] == len(answer) + 1  # and the stop token
            total, supervised = total + row["tokens"], supervised + row["supervised"]
        report = prepared.report["tokens"][split]
        assert (report["total"], report["supervised"]) == (total, supervised)
        assert report["max"] == max(row["tokens"] for row in prepared.splits[split])
        assert report["truncated_share"] == 0


def test_a_group_is_in_one_split(prepare):
    prepared = prepare()
    groups = {split: {row["group"] for row in prepared.splits[split]} for split in SPLITS}
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    assert prepared.report["groups"] == {split: len(groups[split]) for split in SPLITS}
    assert {row["group"] for row in prepared.rows} <= {
        row["schema"] for row in read_jsonl(Path("data/raw/text2sql.jsonl"))
    }


def test_without_a_group_column_the_schema_decides_whatever_its_white_space(prepare):
    rows = sql_rows(groups=12, per_group=4)
    for row in rows[:24]:  # half of each group
        row["context"] = "  " + row["context"].replace(" (", "\n  (").lower() + "\n"
    prepared = prepare(rows, {"data.columns.group": None, "data.test_fraction": 0.4})
    assert len(prepared.rows) == len(rows)
    tables = {split: {row["context"].split()[-2] for row in prepared.splits[split]} for split in SPLITS}
    assert sum(map(len, tables.values())) == 12


def test_a_seed_gives_the_same_rows_and_another_seed_others(prepare):
    first, again = prepare(), prepare()
    assert first == again
    assert prepare(changes={"data.seed": 1}).splits["test"] != first.splits["test"]


def test_chat_rows_keep_their_turns_and_their_first_question_groups_them(prepare):
    def conversation(n: int, first: str) -> dict:
        word = "".join(chr(97 + int(digit)) for digit in f"{n:04d}")
        turns = ["user", "assistant", "user", "assistant"]
        texts = [first, f"answer {word}", f"and {word}?", f"more {word}"]
        return {"messages": [{"role": r, "content": c} for r, c in zip(turns, texts, strict=True)]}

    firsts = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    rows = [conversation(n, firsts[n % 10]) for n in range(40)]
    changes = {"data.task": "chat", "data.columns.group": None, "data.system_prompt": None}
    prepared = prepare(rows, changes)
    assert len(prepared.rows) == 40
    assert sorted(str(row["messages"]) for row in prepared.rows) == sorted(str(row["messages"]) for row in rows)
    seen = {split: {row["messages"][0]["content"] for row in prepared.splits[split]} for split in SPLITS}
    assert sum(map(len, seen.values())) == 10


# Duplicates


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, "duplicate"),
        ({"question": "  Count aaaa "}, "duplicate"),
        ({"question": "count AAAA?"}, "near duplicate"),
        ({"question": "aaaa, count!"}, "near duplicate"),
        ({"answer": "select AAAA;"}, "near duplicate"),
        ({"question": "Count aaaa 12", "answer": "SELECT aaaa 12"}, None),
        ({"question": "Count zzzz"}, None),
        ({"answer": "SELECT zzzz"}, None),
        ({"schema": "g5", "question": "count AAAA?"}, None),  # another schema's question
    ],
)
def test_what_counts_as_a_duplicate(prepare, changed, reason):
    rows = sql_rows(groups=10)
    prepared = prepare([*rows, rows[0] | changed])
    assert prepared.rejected == ([{"id": "text2sql.jsonl:11", "reason": reason}] if reason else [])


def test_numbers_and_literals_make_near_duplicates_which_can_be_kept(prepare):
    rows = sql_rows(groups=10)
    rows += [
        rows[0] | {"question": f"older than {n} from x", "answer": f"SELECT a FROM t WHERE b > {n} AND c = 'v{n}'"}
        for n in (20, 30.5)
    ]
    assert prepare(rows).reasons == {"near duplicate": 1}
    assert prepare(rows, {"data.near_duplicates": "keep"}).rejected == []
    assert prepare([*rows, rows[0]], {"data.near_duplicates": "keep"}).reasons == {"duplicate": 1}


def test_training_gives_way_to_a_file_of_test_rows(prepare):
    rows = sql_rows(groups=10, per_group=2)
    test_rows = [rows[0], rows[1] | {"question": "Another one"}]
    prepared = prepare(rows, {"data.test_source": "data/raw/test.jsonl"}, test_rows)
    assert [row["id"] for row in prepared.splits["test"]] == ["test.jsonl:1", "test.jsonl:2"]
    assert not {"g0", "g1"} & {row["group"] for s in ("train", "validation") for row in prepared.splits[s]}
    assert prepared.reasons == {"duplicate": 1, "its group is in data.test_source": 3}
    assert len(prepared.splits["train"]) + len(prepared.splits["validation"]) == 16


# Several sources


def write_source(name: str, rows: list[dict]) -> str:
    path = Path("data/raw") / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("first", "second", "changes", "expected"),
    [
        ({}, {}, {}, None),
        ({"rows": 10}, {}, {}, {"a.jsonl": 10}),
        ({"rows": 10}, {"rows": 1000}, {}, {"a.jsonl": 10}),
        ({"weight": 1}, {"weight": 3.0}, {}, (1, 3)),
        ({"weight": 3}, {"weight": 1}, {}, (3, 1)),
        ({"weight": 1, "rows": 5}, {"weight": 2}, {}, {"a.jsonl": 5, "b.jsonl": 10}),
        ({"weight": 1}, {"weight": 3}, {"data.train_rows": 20}, {"a.jsonl": 5, "b.jsonl": 15}),
    ],
)
def test_sources_are_mixed_by_count_or_share(prepare, first, second, changes, expected):
    rows = sql_rows(80)
    names = {"question": "q", "context": "ddl", "answer": "sql", "schema": "schema"}
    renamed = [{names[name]: value for name, value in row.items()} for row in rows]
    columns = {"question": "q", "context": "ddl", "answer": "sql", "group": "schema"}
    sources = [
        {"source": write_source("a.jsonl", rows[:40])} | first,
        {"source": write_source("b.jsonl", renamed[40:]), "columns": columns} | second,
    ]
    prepared = prepare(changes={"data.source": None, "data.sources": sources} | changes)
    ids = [row["id"] for row in [*prepared.rows, *prepared.rejected]]
    assert sorted(ids) == sorted(f"{name}:{n}" for name in ("a.jsonl", "b.jsonl") for n in range(1, 41))
    found = Counter(row["id"].split(":")[0] for row in prepared.splits["train"])
    reported = {Path(name).name: source["rows"]["train"] for name, source in prepared.report["sources"].items()}
    assert reported == found
    if expected is None:
        assert prepared.rejected == []
        return
    assert set(prepared.reasons) == {"beyond the rows or the weight of its source"}
    if isinstance(expected, dict):
        assert found | expected == found
    else:
        assert found["a.jsonl"] * expected[1] == pytest.approx(found["b.jsonl"] * expected[0], abs=max(expected))


def test_a_duplicate_in_a_later_source_is_dropped_and_test_rows_stay_apart(prepare):
    rows = sql_rows(groups=10, per_group=4)
    sources = [
        {"source": write_source("a.jsonl", rows[:20])},
        {"source": write_source("b.jsonl", [*rows[15:], rows[0]])},
    ]
    write_source("c.jsonl", [rows[0], rows[1]])
    changes = {"data.source": None, "data.sources": sources, "data.test_source": "data/raw/c.jsonl"}
    prepared = prepare(changes=changes)
    assert {row["id"] for row in prepared.splits["test"]} == {"c.jsonl:1", "c.jsonl:2"}
    duplicates = [row["id"] for row in prepared.rejected if row["reason"] == "duplicate"]
    assert {"a.jsonl:1", "a.jsonl:2", "b.jsonl:26"} <= set(duplicates)
    assert not {"g0", "g1"} & {row["group"] for split in ("train", "validation") for row in prepared.splits[split]}
    assert prepared.report["sources"]["data/raw/c.jsonl"]["rows"]["test"] == 2


# Rows that cannot be used


def test_each_bad_row_is_dropped_with_its_reason(prepare):
    rows = sql_rows(groups=10)
    good = rows[0]
    bad = {
        "'answer' is empty": good | {"answer": " "},
        "'question' is not text": good | {"question": 3},
        "'context' is missing": {name: value for name, value in good.items() if name != "context"},
        "'schema' is missing": good | {"schema": None, "question": "Who?"},
        "longer than train.max_length": good | {"question": "word " * 400},
        "a character is cut in half (an unpaired surrogate)": good | {"question": "\ud83d"},
        "a NUL character": good | {"question": "a\0b"},
    }
    prepared = prepare([*rows, *bad.values()])
    assert {row["reason"]: row["id"] for row in prepared.rejected} == {
        reason: f"text2sql.jsonl:{n}" for n, reason in enumerate(bad, 11)
    }
    assert len(prepared.rows) == 10


def test_what_no_score_can_judge_is_counted_with_reasons_before_training(prepare, capfd):
    rows = sql_rows(60)
    for number, row in enumerate(rows):
        row["context"] = f"CREATE TABLE t{number} (x INT, name TEXT)"
        where = ("x > 3", "1 = 0", "y > 3")[number % 3]
        row["answer"] = f"SELECT name FROM t{number} WHERE {where}"
    gold = prepare(rows).report["gold"]
    counts = {reason: found["rows"] for reason, found in gold["unjudged"].items()}
    assert set(counts) == {"the result is empty on every database", "the gold query fails: unknown_column"}
    assert 0 < sum(counts.values()) < gold["rows"]
    example = gold["unjudged"]["the gold query fails: unknown_column"]["example"]
    assert example.startswith("text2sql.jsonl:")
    assert example in capfd.readouterr().out


def test_reasons_stay_few_and_short_whatever_the_rows_hold(prepare):
    rows = [
        {"messages": [{"from": "narrator", "value": f"{n} " * 500}, {"from": "gpt", "value": "Yes."}]}
        for n in range(60)
    ]
    with pytest.raises(Refusal, match=r"60 a message needs role .*\(first: text2sql\.jsonl:1\)") as refusal:
        prepare(rows, {"data.task": "chat", "data.columns": {"messages": "messages"}})
    assert len(str(refusal.value)) < 300


def test_what_a_template_says_of_a_row_is_one_kind_among_few(tmp_path):
    with (tmp_path / "rejected.jsonl").open("w") as file:
        rejected = Rejections(file)
        for n in range(1000):
            rejected.add(f"rows:{n}", f"{n} " * 500)
    assert len(rejected.reasons) <= 51
    assert max(map(len, rejected.reasons)) <= 200
    assert (tmp_path / "rejected.jsonl").stat().st_size < 1000 * 400
    assert len(rejected.most_common(2)) < 600


def test_an_overlong_row_can_be_truncated(prepare):
    rows = sql_rows(groups=10)
    rows += [
        rows[0] | {"question": "long answer", "answer": "SELECT " + "a, " * 300},
        rows[0] | {"question": "word " * 400},
    ]
    prepared = prepare(rows, {"data.overlong": "truncate", "train.max_length": 200})
    (row,) = (row for row in prepared.rows if row["question"] == "long answer")
    assert row["tokens"] > 200
    prompt = load_chat(Path("tiny")).prompt_ids(row["messages"][:-1])
    assert row["supervised"] == 200 - len(prompt)
    assert prepared.reasons == {"truncated to train.max_length, nothing of the answer is left": 1}
    (split,) = (split for split in SPLITS if row in prepared.splits[split])
    report = prepared.report["tokens"][split]
    assert report["truncated_share"] == pytest.approx(1 / len(prepared.splits[split]), abs=1e-4)
    assert report["total"] == sum(min(r["tokens"], 200) for r in prepared.splits[split])


@pytest.mark.parametrize(
    ("rows", "changes", "named"),
    [
        (sql_rows(4), {"train.max_length": 16}, r"4 longer than train\.max_length \(first: text2sql\.jsonl:1\)"),
        (sql_rows(4), {"data.validation_fraction": 0.01}, r"for validation: 4 groups .*data\.validation_fraction"),
        (sql_rows(1, 9), {}, r"for validation and test: 1 groups .*data\.columns\.group"),
        ([], {}, r"text2sql\.jsonl: .*empty"),
        (sql_rows(4), {"data.columns.answer": "sql"}, r"'sql'; it has 'question', 'context'.*data\.columns"),
    ],
)
def test_what_leaves_a_split_empty_is_refused(prepare, rows, changes, named):
    with pytest.raises(Refusal, match=named):
        prepare(rows, changes)
    assert not Path("data/prepared").exists()
    assert not list(Path("data").glob(".*"))


def test_a_refusal_leaves_what_was_there(prepare):
    before = prepare()
    with pytest.raises(Refusal):
        prepare([])
    assert read_jsonl(Path("data/prepared/train.jsonl")) == before.splits["train"]


# What other stages read


def test_rows_are_taken_from_the_start_or_evenly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PREPARED.mkdir(parents=True)
    split_file("train").write_text("".join(f'{{"n": {n}, "messages": []}}\n' for n in range(10)))
    assert [row["n"] for row in evenly("train", 4)] == [0, 2, 5, 7]
    assert [row["n"] for row in first("train", 4)] == [0, 1, 2, 3]
    assert evenly("train", 99) == first("train", 99) == read("train")


def test_every_reader_truncates_to_the_same_length(prepare):
    rows = [row | {"answer": "SELECT " + "a, " * 100} for row in sql_rows(groups=10)]
    prepare(rows, {"data.overlong": "truncate", "train.max_length": 100, "data.near_duplicates": "keep"})
    chat = load_chat(Path("tiny"))
    encoded = read_encoded("test", chat, 100)
    assert {len(row.input_ids) for row in encoded} == {100}
    for one, other in zip(encoded, encode_rows(read("test"), chat, 100), strict=True):
        assert (list(one.input_ids), list(one.labels)) == (list(other.input_ids), list(other.labels))


def test_from_the_command_line_it_is_a_sentence_and_a_status(workspace):
    lines = (workspace.path / "data/raw/text2sql.jsonl").read_text().splitlines()
    (workspace.path / "data/raw/text2sql.jsonl").write_text("\n".join([*lines[:6], "{broken", *lines[6:]]))
    params = load_params(workspace.path / "params.yaml")
    write_json(workspace.path / "models/base/base.json", base_model.describe(params.model, workspace.path / "tiny"))
    sentence = refused(workspace.run("prepare_dataset"))
    assert sentence.startswith("data/raw/text2sql.jsonl, line 7: ")
