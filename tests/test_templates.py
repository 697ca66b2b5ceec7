"""Chat templates that a recipe chooses, and rows with tools, on the way to a GGUF."""

import json
from pathlib import Path

from qlora.gguf import parity
from qlora.recipe.schema import Model
from qlora.rows.chat import load_chat
from qlora.rows.fitted import fitted
from qlora.rows.template import CHATML, of_several
from qlora.source import tokenizer
from stages import convert_gguf, fetch_base, merge, prepare_dataset, quantize_load_train

import pytest
import trl
from gguf import GGUFReader

TRL = Path(trl.__file__).parent / "chat_templates"
TOOL = {"name": "weather", "description": "The weather: °C", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2.5]}}}


def asked(city: str) -> list[dict]:
    return [
        {"role": "user", "content": f"Is it sunny in {city}?", "tools": [{"type": "function", "function": TOOL}]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": true}'},
        {"role": "assistant", "content": f"Yes, in {city}."},
    ]


@pytest.mark.slow
def test_chatml_is_trained_merged_and_shipped(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.path)
    (workspace.path / "tiny/chat_template.jinja").unlink()
    workspace.set({"model.chat_template": "chatml", "train.max_length": 512})
    for stage in (fetch_base, prepare_dataset, quantize_load_train, merge, convert_gguf):
        stage.main()
    assert "it is model.chat_template" in capsys.readouterr().out
    merged = load_chat(Path("models/merged"))
    shipped = GGUFReader(Path("models/bf16/model.gguf")).get_field("tokenizer.chat_template").contents()
    assert shipped == merged.tokenizer.chat_template == CHATML
    assert 'PARAMETER stop "<|im_end|>"' in Path("models/bf16/Modelfile").read_text()


def test_rows_with_tools_are_read_by_llama_cpp_as_in_training(tiny_model):
    template = (TRL / "qwen2_5.jinja").read_text(encoding="utf-8")
    model = Model(id=str(tiny_model))
    chat, _ = tokenizer.settled(tiny_model, model)
    chat.tokenizer.chat_template = of_several({"default": CHATML, "tool_use": template})
    rows = [fitted(chat, asked(city)) for city in ("Ulm", "Zürich")]
    assert all('"name": "weather"' in chat.render(messages) for messages in rows)
    parity.check_rows(chat, tiny_model, model, rows)


def test_a_repositorys_several_templates_become_one(tiny_model, tmp_path):
    folder = tmp_path / "named"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").unlink()
    tool_use = (TRL / "qwen2_5.jinja").read_text(encoding="utf-8")
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": tool_use}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    chat = load_chat(folder)
    plain, with_tools = load_chat(tiny_model), load_chat(tiny_model)
    plain.tokenizer.chat_template, with_tools.tokenizer.chat_template = CHATML, tool_use
    without = [{key: value for key, value in message.items() if key != "tools"} for message in asked("Ulm")]
    assert chat.render(asked("Ulm")) == with_tools.render(asked("Ulm"))
    assert chat.render(without) == plain.render(without)
    assert of_several({"default": CHATML}) == CHATML
    assert of_several({"tool_use": CHATML}) is None


@pytest.mark.parametrize("has_tools", [True, False])
def test_the_summary_says_what_the_modelfile_leaves_out(tmp_path, monkeypatch, has_tools):
    monkeypatch.chdir(tmp_path)
    Path("data/prepared").mkdir(parents=True)
    rows = [asked("Ulm")[3:], asked("Ulm") if has_tools else asked("Ulm")[3:]]
    Path("data/prepared/train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    assert convert_gguf.rows_with_tools() == rows[1:] * has_tools
