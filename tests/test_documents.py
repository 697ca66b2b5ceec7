"""Raw text (data.task: text): documents are learned whole, by a model that has no chat template."""

import json
import re
import sys
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import Model
from qlora.rows import documents
from qlora.rows.chat import Chat
from qlora.rows.loss_mask import IGNORED, encode
from qlora.rows.prepared import read
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model, tokenizer
from stages import convert_gguf, evaluate, fetch_base, judge, merge, prepare_dataset, quantize_load_train, report

import pytest
import real_tokenizers
from repository import ROOT

# fmt: off
TEXTS = [
    "One sentence.", "Größe, 日本語 and 😀: three scripts.", "def f(x):\n    return x\n\n\nprint(f(2))",
    "word " * 300 + "end.", "a" * 700, "多" * 300, "line\n" * 200 + "end", "1234567890" * 40, " ".join("😀" * 90),
]
# fmt: on
RECIPE = {
    "data.source": "data/raw/docs.jsonl",
    "data.task": "text",
    "data.system_prompt": None,
    "data.columns": {},
    "train.max_length": 64,
    "evaluate.artifacts": ["base", "merged", "bf16"],
}


def plain(folder: Path) -> Chat:
    return tokenizer.settled(folder, Model(id=str(folder), chat_template="plain"))[0]


def document(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", ["tiny", "llama-2", "phi-3", "llama-3"])
@pytest.mark.parametrize("limit", [16, 64])
def test_pieces_are_the_document_and_each_is_learned_from_its_second_token(tmp_path, tiny_model, name, limit):
    chat = plain(tiny_model if name == "tiny" else real_tokenizers.write(name, tmp_path / name))
    bos, eos = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id
    adds_bos = chat.tokenizer("a")["input_ids"][0] == bos
    for text in TEXTS:
        pieces = list(documents.pieces(chat, document(text), limit))
        assert "".join(piece["content"] for (piece,) in pieces) == text
        for at, piece in enumerate(pieces):
            row = encode(chat, piece)
            assert 1 < len(row.input_ids) <= limit
            assert (row.input_ids[0] == bos) == adds_bos
            assert row.labels == [IGNORED, *row.input_ids[1:]]
            assert (row.input_ids[-1] == eos) == (at == len(pieces) - 1)  # only where the document ends
            ids = row.input_ids[adds_bos : len(row.input_ids) - (row.input_ids[-1] == eos)]
            assert ids == chat.ids(piece[0]["content"])
    words = [piece["content"] for (piece,) in documents.pieces(chat, document(TEXTS[3]), limit)]
    assert all(word.startswith(" word") for word in words[1:])  # cut between words


@pytest.fixture
def texts(workspace, monkeypatch) -> Path:
    """The workspace with a recipe for documents, and a model without a chat template."""
    monkeypatch.chdir(workspace.path)
    (workspace.path / "tiny/chat_template.jinja").unlink()
    paragraphs = [text for path in sorted((ROOT / "docs").glob("*.md")) for text in path.read_text().split("\n\n")]
    rows = [{"text": text, "url": "x"} for text in paragraphs if re.search(r"\w{3}", text)]
    Path("data/raw/docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace.set(RECIPE)
    return workspace


def test_every_stage(texts, monkeypatch):
    fetch_base.main()
    prepare_dataset.main()
    rows = read("train")
    assert {len(row["messages"]) for row in rows} == {1}
    assert max(row["tokens"] for row in rows) <= 64
    quantize_load_train.main()
    merge.main()
    convert_gguf.main()
    assert "{{ .Content }}" in Path("models/bf16/Modelfile").read_text()
    for artifact in RECIPE["evaluate.artifacts"]:
        monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", artifact])
        evaluate.main()
        judge.main()
    report.main()
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert summary["metric"] == "loss"
    scores = [json.loads(Path(f"results/scores/{name}.json").read_text())["loss"] for name in ("merged", "bf16")]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert "perplexity" in Path("results/report.md").read_text()
    end = next(row for row in rows if "continues" not in row["messages"][0])
    done = texts.tool("preview", "--id", end["id"])
    assert done.stdout.rstrip().endswith("<|im_end|>⟧"), done.stderr


def test_what_does_not_fit_documents_is_named(texts):
    odd = {"data.system_prompt": "Be brief.", "train.loss_on": "last_answer", "model.chat_template": "chatml"}
    texts.set(odd)
    with pytest.raises(Refusal) as refusal:
        load_params()
    assert all(f"{key}: data.task text learns documents" in str(refusal.value) for key in odd)
    texts.set(RECIPE | {"train.loss_on": "all_answers", "model.chat_template": None})
    model = load_params().model_of_task
    write_json(Path("models/base/base.json"), base_model.describe(model, base_model.fetch(model)))
    rows = Path("data/raw/docs.jsonl")
    for row, named in (({"txt": "a"}, "data.columns.text"), ({"text": "a", "body": "b"}, "'text', 'body'")):
        rows.write_text(json.dumps(row))
        with pytest.raises(Refusal, match=named):
            prepare_dataset.main()
    good = [f"Document {word}." for word in ("one", "two", "three", "four", "five", "six")]
    odd = ["A document with <|im_end|> in it", " ", None, good[0]]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*good, *odd]))
    prepare_dataset.main()
    reasons = json.loads(Path("data/prepared/report.json").read_text())["rows"]["rejected"]
    assert reasons == {
        "the answer holds the stop token <|im_end|> as text": 1,
        "'text' is empty": 1,
        "'text' is missing": 1,
        "duplicate": 1,
    }
