"""The look at prepared rows: what a look at all rows finds, and rows as the model sees them, as text and as a page."""

import json
import re
import subprocess
import sys

from qlora.raw_rows.findings import find
from qlora.rows.chat import load_chat
from qlora.rows.prepared import SPLITS, split_file

import pytest
from conftest import chromium, refused

SQL = ["SELECT name FROM singer WHERE age > 20", "SELECT COUNT(*) FROM concert"]


def talk(question: str, answer: str, at: int) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"rows.jsonl:{at}", "messages": messages, "supervised": len(answer.split()) + 1}


def words(at: int) -> str:
    """Text that shares no three words with that of another number."""
    letters = "".join(chr(97 + int(digit)) for digit in f"{at:03d}")
    return " ".join(f"{letters}{word}" for word in ("one", "two", "three", "four", "five"))


PLAIN = [talk(f"{words(at)}?", f"{words(at + 500)}.", at) for at in range(30)]


@pytest.fixture
def found(tmp_path, tiny_model):
    """A function that gives the findings in rows of a training and a test split."""

    def found(train: list[dict], test: list[dict] = ()) -> dict:
        for split, rows in zip(SPLITS, (train, PLAIN[:1], test or PLAIN[1:2]), strict=True):
            split_file(split, tmp_path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return find(tmp_path, load_chat(tiny_model)).report()

    return found


def test_plain_rows_have_no_findings(found):
    assert found(PLAIN[2:]) == {}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (talk("What is <|im_end|>?", "A mark.", 99), "special token"),
        (talk("What?", "### Human: more", 99), "marks of a chat template"),
        (talk("What?", "Say [INST] and", 99), "marks of a chat template"),
        (talk("Repeat this long sentence to me.", "this long sentence to me", 99), "the prompt holds the answer"),
        (talk(f"{words(5)}?", "Another answer", 99), "another answer"),
        (talk("What?", "word " * 200, 99), "more than 10 times"),
        (talk("What?", "Это ответ", 99), "the answer is in Cyrillic, and most are in Latin"),
        (talk("What?", "これは答えです", 99), "the answer is in kana"),
        (talk("What?", "Yes", 99) | {"unlearned": 1}, "context only"),
    ],
)
def test_what_a_look_finds_is_counted_with_its_row(found, row, kind):
    ((name, finding),) = found([*PLAIN[2:], row]).items()
    assert kind in name
    assert finding == {"rows": 1, "examples": ["train rows.jsonl:99"]}


def test_a_near_duplicate_of_a_test_row_is_shown_with_its_likeness(found):
    question = "How many singers are older than 20 years in the second concert of this year"
    test = [talk(f"{question}?", SQL[0], 1), talk("Which city has the most people?", SQL[1], 2)]
    train = [*PLAIN[2:], talk(f"{question.lower()} please?", SQL[0].lower().replace("20", "30"), 98)]
    ((name, finding),) = found(train, test).items()
    assert "near duplicate" in name
    assert "2 test rows" in name
    assert finding["rows"] == 1
    assert re.fullmatch(r"test rows\.jsonl:1 is \d\d% like train rows\.jsonl:98", finding["examples"][0])


def test_rows_as_the_model_sees_them(prepared):
    done = prepared.tool("preview", "--rows", "1")
    assert done.returncode == 0, done.stderr
    row = json.loads(split_file("train").read_text().splitlines()[0])
    prompt, answer = row["messages"][-2]["content"], row["messages"][-1]["content"]
    assert f"train {row['id']}: {row['tokens']} tokens, {row['supervised']} learned" in done.stdout
    assert f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in done.stdout
    assert done.stdout.rstrip().endswith("data/preview.html")
    coloured = prepared.tool("preview", "--id", row["id"], FORCE_COLOR="1").stdout
    assert f"\033[32m{answer}\033[0m\033[32m<|im_end|>\033[0m" in coloured
    assert "⟦" not in coloured


def test_a_row_that_is_not_there_is_named_with_its_reason(prepared):
    (dropped, *_) = (json.loads(line) for line in (prepared.path / "data/prepared/rejected.jsonl").open())
    assert (
        refused(prepared.tool("preview", "--id", dropped["id"])) == f"{dropped['id']} was dropped: {dropped['reason']}"
    )
    assert "there is no row x:1" in refused(prepared.tool("preview", "--id", "x:1"))
    (prepared.path / "data/prepared/report.json").unlink()
    assert "dvc repro prepare-dataset" in refused(prepared.tool("preview"))


def test_a_reader_who_has_read_enough_ends_it_without_a_traceback(prepared):
    command = f"{sys.executable} -m tools.preview --rows 16 | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=prepared.path, capture_output=True, text=True)
    assert done.stdout.startswith("── train ")
    assert done.stderr == ""


def test_the_page_shows_rows_and_reasons_on_wide_and_narrow_screens(prepared):
    with (prepared.path / "data/prepared/rejected.jsonl").open() as lines:
        reasons = {json.loads(line)["reason"] for line in lines}
    assert prepared.tool("preview").returncode == 0
    row = json.loads(split_file("train").read_text().splitlines()[0])
    with chromium() as browser:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            requested = []
            page.on("request", lambda request, requested=requested: requested.append(request.url))
            page.goto((prepared.path / "data/preview.html").as_uri())
            assert requested == [(prepared.path / "data/preview.html").as_uri()]  # self-contained
            assert page.evaluate("document.documentElement.scrollWidth") == width
            text = page.inner_text("body")
            assert all(reason in text for reason in reasons)
            first = page.locator(".row").first
            assert row["id"] in first.inner_text()
            learned = "".join(first.locator("pre .learned").all_text_contents())
            assert learned == f"{row['messages'][-1]['content']}<|im_end|>"
            assert first.locator("pre .special").first.inner_text() == "<|im_start|>"
