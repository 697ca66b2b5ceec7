# ruff: noqa: RUF001 (DeepSeek's tokens hold letters that look like others)
"""Known models' real tokenizers and templates: what is learned of a conversation, how llama.cpp and Ollama read it.

python tests/test_families.py [FAMILY ...]     # print what each family learns, and what was settled
"""

import json
import sys
import tempfile
from pathlib import Path

from qlora.gguf import modelfile, parity
from qlora.llama_cpp import tools
from qlora.recipe.schema import Model
from qlora.rows.chat import Chat, Unusable
from qlora.rows.loss_mask import IGNORED, Encoded, encode
from qlora.runtime.console import Refusal
from qlora.source import tokenizer
from stages import convert_gguf, evaluate, fetch_base, merge, prepare_dataset, quantize_load_train

import go_templates
import pytest
import real_tokenizers
from gguf import GGUFReader
from real_tokenizers import FAMILIES

TURNS = [("Hi", "Hello!"), ("Yes", "SELECT 1"), ("y", "Fine."), ("Ok", "A b c"), ("Why?", "Because 3.")]
SQL = (
    "CREATE TABLE head (age INTEGER)\n\nHow many heads are older than 56?",
    "SELECT COUNT(*) FROM head WHERE age > 56",
)
SYSTEM = [{"role": "system", "content": "Answer in one sentence."}]
# Family -> what is learned of an answer.
LEARNED = {
    "llama-2": " {} </s>",
    "zephyr": "{}</s>",
    "llama-3": "{}<|eot_id|>",
    "llama-3 first": "{}<|eot_id|>",
    "llama-3.1": "{}<|eot_id|>",
    "llama-3.2": "{}<|eot_id|>",
    "mistral v0.1": " {}</s>",
    "mistral v0.1 first": "{}</s>",
    "mistral v0.3": " {}</s>",
    "phi-3": "{}<|end|>",
    "qwen2.5": "{}<|im_end|>",
    "qwen3": "{}<|im_end|>",
    "qwq": "</think>\n\n{}<|im_end|>",
    "r1 distill qwen": "</think>\n\n{}<｜end▁of▁sentence｜>",
    "r1 distill llama": "</think>\n\n{}<｜end▁of▁sentence｜>",
    "smollm3": "{}<|im_end|>",
    "gemma 3": "{}<end_of_turn>",
    "gemma 2": "{}<end_of_turn>",
    "gpt-oss": "<|channel|>final<|message|>{}<|return|>",
}
# Their templates render earlier answers otherwise, so only the last one is learned.
LAST_ONLY = {"qwq", "r1 distill qwen", "r1 distill llama", "gpt-oss"}
NO_SYSTEM = {"mistral v0.1 first", "gemma 2"}
# Checked with llama.cpp in every run of the tests, not only in the slow ones: one of each kind of difference.
SAMPLE = ["mistral v0.1", "zephyr", "phi-3", "mistral v0.3"]
SHIPPED = [name for name in FAMILIES if name != "gpt-oss"]


def talk(turns: int) -> list[dict[str, str]]:
    pairs = [(("user", question), ("assistant", answer)) for question, answer in TURNS[:turns]]
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


def learned_texts(chat: Chat, row: Encoded) -> list[str]:
    """The text of each run of supervised tokens; special tokens and white space as they stand in the rendering."""
    runs, run = [], []
    for label in [*row.labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            start = chat.tokenizer.decode([chat.stops[0]])
            runs.append(chat.tokenizer.decode([chat.stops[0], *run]).removeprefix(start))
            run = []
    return runs


@pytest.fixture(scope="session")
def settle(tmp_path_factory):
    """A function: family -> (folder, settled chat, what was settled)."""
    made = {}

    def make(name: str) -> tuple[Path, Chat, list[str]]:
        if name not in made:
            folder = real_tokenizers.write(name, tmp_path_factory.mktemp("families") / name.replace(" ", "-"))
            made[name] = (folder, *tokenizer.settled(folder, Model(id=str(folder))))
        return made[name]

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_with_their_stop_token_are_all_that_is_learned(settle, name):
    _, chat, _ = settle(name)
    for system in [[]] if name in NO_SYSTEM else [[], SYSTEM]:
        for turns in range(1, 6):
            messages = [*system, *talk(turns)]
            row = encode(chat, messages)
            learned = learned_texts(chat, row)
            expected = [LEARNED[name].format(answer).strip() for _, answer in TURNS[:turns]]
            last_only = name in LAST_ONLY or (name == "mistral v0.3" and system)
            assert [text.strip() for text in learned] == (expected[-1:] if last_only else expected)
            assert row.input_ids[-1] in chat.stops
            assert row.input_ids[: row.prompt_length] == chat.prompt_ids(messages[:-1])
            bos = chat.tokenizer.bos_token_id
            if bos is not None and name != "llama-2":  # whose template opens each turn with one
                assert row.input_ids.count(bos) <= 1
    assert chat.pad not in (*chat.stops, chat.tokenizer.bos_token_id)
    assert 0 <= chat.pad < json.loads((settle(name)[0] / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize("name", sorted(NO_SYSTEM))
def test_a_template_without_system_message_is_refused_for_the_recipes_prompt(settle, name):
    _, chat, _ = settle(name)
    tokenizer.check_system_prompt(chat, None)  # as the refusal advises
    with pytest.raises(Refusal, match=r"^data\.system_prompt: .*data\.user_prompt"):
        tokenizer.check_system_prompt(chat, "Write one query.")


@pytest.mark.parametrize("name", ["mistral v0.1", "mistral v0.3"])
def test_ids_are_those_of_mistrals_own_rules(settle, name):
    from sentencepiece import SentencePieceProcessor

    folder, chat, _ = settle(name)
    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected = [1]
    for question, answer in TURNS:  # mistral-common's InstructTokenizerV1 and V3
        asked = model.encode(f"[INST] {question} [/INST]")
        if name == "mistral v0.3":
            asked = [model.piece_to_id("[INST]"), *model.encode(question), model.piece_to_id("[/INST]")]
        expected += [*asked, *model.encode(answer), 2]
    assert encode(chat, talk(5)).input_ids == expected


@pytest.mark.parametrize(("thinking", "opening"), [(None, ""), (False, "<think>\n\n</think>\n\n")])
def test_thinking_can_be_switched_off_where_the_template_can(settle, thinking, opening):
    folder, _, _ = settle("qwen3")
    arguments = {} if thinking is None else {"enable_thinking": thinking}
    chat, _ = tokenizer.settled(folder, Model(id=str(folder), chat_template_kwargs=arguments))
    row = encode(chat, talk(1))
    prompt = chat.tokenizer.decode(row.input_ids[: row.prompt_length])
    assert prompt.endswith(f"<|im_start|>assistant\n{opening}")
    assert learned_texts(chat, row) == ["Hello!<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3", "qwq", "r1 distill qwen"])
def test_reasoning_in_the_rows_is_learned(settle, name):
    _, chat, _ = settle(name)
    reasoned = [talk(1)[0], {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello!"}]
    row = encode(chat, reasoned)
    (text,) = learned_texts(chat, row)
    opened = "" if name == "qwen3" else "<think>\n"  # the others' prompts open it
    prompt = chat.tokenizer.decode(row.input_ids[: row.prompt_length])
    assert prompt.endswith(opened)
    assert opened + text == LEARNED["r1 distill qwen" if "r1" in name else "qwen3"].removeprefix("</think>\n\n").format(
        "<think>\nA greeting.\n</think>\n\nHello!"
    )
    later = encode(chat, [*reasoned, *talk(2)[2:]])  # the templates drop earlier reasoning
    assert len(learned_texts(chat, later)) == 1


def test_an_argument_that_the_template_lacks_is_named(settle):
    folder, _, _ = settle("qwen3")
    model = Model(id=str(folder), chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(Refusal, match=r"^model\.chat_template_kwargs: .*enable_thinkin; did you mean enable_thinking"):
        tokenizer.settled(folder, model)


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2", "gpt-oss"])
def test_the_date_in_a_prompt_stays(settle, name):
    folder, chat, _ = settle(name)
    rendered = chat.render(talk(1)[:1], prompt=True)
    assert "26 Jul 2024" in rendered or "2024-07-26" in rendered
    other, _ = tokenizer.settled(folder, Model(id=str(folder), date="2025-12-31"))
    rendered = other.render(talk(1)[:1], prompt=True)
    assert "31 Dec 2025" in rendered or "2025-12-31" in rendered
    assert other.tokenizer.chat_template.count("strftime_now(") == 0


def test_rows_are_brought_into_the_tokenizers_normal_form(settle):
    _, qwen, _ = settle("qwen3")
    _, llama, _ = settle("llama-3")
    message = {"role": "user", "content": "cafe\u0301"}
    assert qwen.normalized([message]) == [{"role": "user", "content": "caf\u00e9"}]
    assert llama.normalized([message]) == [message]


@pytest.fixture(scope="module")
def render_with_go(tmp_path_factory):
    return go_templates.compiled(tmp_path_factory.mktemp("go"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
def test_the_modelfile_renders_what_was_trained(settle, render_with_go, name, system_prompt):
    _, chat, _ = settle(name)
    bos = chat.tokenizer.bos_token or ""
    adds_bos = bool(bos) and chat.render(talk(1)[:1], prompt=True).startswith(bos)
    takes_system = name not in NO_SYSTEM
    text = modelfile.write(chat, adds_bos, system_prompt if takes_system else None, 4096, greedy=False)
    for token in chat.tokenizer.convert_ids_to_tokens(chat.stops):
        assert f'PARAMETER stop "{token}"' in text
    conversations = modelfile.conversations(with_system=takes_system)
    for messages, prompt in zip(conversations, render_with_go(text, conversations), strict=True):
        if system_prompt and takes_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        assert (bos if adds_bos else "") + prompt == chat.render(messages, prompt=True)


@pytest.mark.parametrize("name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_llama_cpp_reads_the_same_ids(settle, name):
    folder, chat, _ = settle(name)
    compared = parity.check_before_training(chat, folder, Model(id=str(folder)))
    assert compared.texts > 200


@pytest.mark.slow
def test_a_row_that_llama_cpp_reads_otherwise_is_refused_with_the_share(settle):
    folder, chat, _ = settle("qwen3")
    odd = [{"role": "user", "content": "cafe\u0301"}, talk(1)[1]]  # prepare-dataset would bring it into NFC
    model = Model(id=str(folder))
    parity.check_rows(chat, folder, model, [talk(1), chat.normalized(odd)])
    with pytest.raises(Refusal, match=r"1 of 2 rows \(50\.0%\)"):
        parity.check_rows(chat, folder, model, [talk(1), odd])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_stage(workspace, monkeypatch, name):
    monkeypatch.chdir(workspace.path)
    folder = real_tokenizers.write(name, workspace.path / name.replace(" ", "-"))
    real_tokenizers.write_weights(folder)
    changes = {"model.id": f"./{folder.name}", "evaluate.artifacts": ["merged", "bf16"], "train.max_length": 512}
    if name in NO_SYSTEM:
        changes["data.system_prompt"] = None
    workspace.set(changes)
    fetch_base.main()
    prepare_dataset.main()
    quantize_load_train.main()
    merge.main()
    convert_gguf.main()
    scores = {}
    for artifact in ("merged", "bf16"):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--artifact", artifact])
        evaluate.main()
        scores[artifact] = json.loads(Path(f"results/answers/{artifact}.json").read_text())["loss"]
    assert scores["bf16"] == pytest.approx(scores["merged"], abs=0.02)
    assert Path("models/bf16/Modelfile").is_file()
    name_field = GGUFReader(Path("models/bf16/model.gguf")).get_field("general.name").contents()
    assert name_field.startswith(folder.name)
    assert tools.find().converter


def show(names: list[str]) -> None:
    """Print, for each family, what is learned of a text-to-SQL row and of a conversation of five turns."""
    row = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), SQL, strict=True)]
    for name in names or FAMILIES:
        with tempfile.TemporaryDirectory() as work:
            folder = real_tokenizers.write(name, Path(work) / name.replace(" ", "-"))
            chat, changes = tokenizer.settled(folder, Model(id=str(folder)))
            pad, stops = chat.tokenizer.convert_ids_to_tokens([chat.pad, *chat.stops])[0], chat.stops
            print(
                f"\n{name}: pad {pad}, stops {chat.tokenizer.convert_ids_to_tokens(stops)}, settled: {changes or '-'}"
            )
            for system in ([], SYSTEM):
                for what, messages in (("SQL", row), ("five turns", talk(5))):
                    try:
                        learned = learned_texts(chat, encode(chat, [*system, *messages]))
                    except Unusable as reason:
                        learned = f"refused: {reason}"
                    print(f"  {what}{', system prompt' if system else ''}: {learned}")


if __name__ == "__main__":
    show(sys.argv[1:])
