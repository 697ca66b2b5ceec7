"""From messages to ids and loss mask: one BOS, answer and stop token supervised, a pad token that is no stop token."""

import json
import shutil
from dataclasses import replace

from qlora.recipe.schema import Model
from qlora.rows.chat import Chat, Unusable, load_chat
from qlora.rows.loss_mask import IGNORED, Encoded, encode, truncate
from qlora.runtime.console import Refusal
from qlora.source.tokenizer import recorded_template, settled

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHORT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "SELECT COUNT(*) FROM t"}]
LONG = [
    {"role": "system", "content": "Be brief."},
    *SHORT,
    {"role": "user", "content": "And 日本 <b>é</b>?"},
    {"role": "assistant", "content": "SELECT '日本';\n\n-- done"},
]
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + m['role']) }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def chat(tiny_model) -> Chat:
    return load_chat(tiny_model)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Chat:
    """A tokenizer that puts a BOS before every text, as Llama's does; its template holds the BOS, too."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    bpe.train_from_iterator(["select count"], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = LLAMA_TEMPLATE
    folder = tmp_path_factory.mktemp("llama")
    tokenizer.save_pretrained(folder)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return load_chat(folder)


def supervised(encoded: Encoded) -> list[int]:
    assert len(encoded.input_ids) == len(encoded.labels)
    assert all(label in (id_, IGNORED) for id_, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return [label for label in encoded.labels if label != IGNORED]


@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["one turn", "two turns"])
def test_answers_with_their_stop_tokens_are_all_that_is_supervised(chat, messages):
    encoded = encode(chat, messages)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    expected = [id_ for answer in answers for id_ in chat.ids(answer + "<|im_end|>")]
    assert supervised(encoded) == expected
    assert encoded.supervised == len(expected)
    assert encoded.input_ids[-1] == encoded.labels[-1] == chat.tokenizer.eos_token_id


@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["one turn", "two turns"])
def test_the_prompt_that_is_served_is_the_prompt_that_was_trained(chat, messages):
    encoded = encode(chat, messages)
    prompt = encoded.input_ids[: encoded.prompt_length]
    assert prompt == chat.prompt_ids(messages[:-1])
    assert chat.render(messages).startswith(chat.tokenizer.decode(encoded.input_ids))
    assert chat.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_a_truncated_row_ends_with_a_supervised_token(chat):
    encoded = encode(chat, LONG)
    first_answer = next(at for at, label in enumerate(encoded.labels) if label != IGNORED)
    for length in range(first_answer + 1, len(encoded.input_ids) + 1):
        row = truncate(encoded, length)
        assert len(row.input_ids) == len(row.labels) <= length
        assert row.labels[-1] != IGNORED
        assert row.input_ids == encoded.input_ids[: len(row.input_ids)]
        assert row.supervised == sum(label != IGNORED for label in encoded.labels[:length])
    assert truncate(encoded, len(encoded.input_ids)) == encoded


def test_exactly_one_bos_where_the_model_has_one(llama):
    encoded, bos = encode(llama, SHORT), llama.tokenizer.bos_token_id
    assert encoded.input_ids[0] == bos
    assert encoded.input_ids.count(bos) == 1
    assert llama.prompt_ids(SHORT[:-1]).count(bos) == 1
    assert llama.tokenizer.decode(supervised(encoded)) == " SELECT COUNT(*) FROM t</s>"


def test_the_pad_token_is_none_that_training_needs(chat, llama):
    for one in (chat, llama):
        assert one.pad not in (*one.stops, one.tokenizer.bos_token_id)
        assert one.pad < len(one.tokenizer)  # no row is added to the embeddings
    assert llama.pad == llama.tokenizer.unk_token_id


def test_no_token_to_spare_for_padding(tmp_path):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")), eos_token="</s>"
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="<pad>"):
        load_chat(tmp_path)


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A copy of the tiny model's tokenizer to spoil."""
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return tmp_path


def test_what_a_tokenizer_file_keeps_of_another_training_changes_no_ids(folder, chat):
    path = folder / "tokenizer.json"
    spoiled = Tokenizer.from_file(str(path))
    spoiled.enable_truncation(8)
    spoiled.enable_padding(length=512)
    spoiled.save(str(path))
    assert encode(load_chat(folder), LONG) == encode(chat, LONG)


def test_every_stop_token_of_the_generation_config_counts(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    chat = load_chat(folder)
    assert chat.stops == [0, 2]
    assert chat.pad not in (0, 2)


def test_a_pad_token_that_is_the_stop_token_is_not_used(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    chat = load_chat(folder)
    assert chat.tokenizer.eos_token == chat.tokenizer.pad_token == settings["eos_token"]
    assert chat.pad not in (chat.tokenizer.eos_token_id, chat.tokenizer.bos_token_id)


def test_a_tokenizer_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(Refusal, match="no chat template"):
        load_chat(folder)


def name_no_stop_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    for name in ("generation_config.json", "config.json"):
        (folder / name).unlink(missing_ok=True)


def test_the_special_token_that_the_template_puts_behind_an_answer_is_a_stop_token(folder):
    name_no_stop_token(folder)
    chat = load_chat(folder)
    assert chat.tokenizer.convert_ids_to_tokens(chat.stops) == ["<|im_end|>"]


def test_a_tokenizer_without_stop_token_is_refused(folder):
    name_no_stop_token(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(Refusal, match=r"generation_config\.json .*eos"):
        load_chat(folder)


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Refusal, match=f"^{folder}: no usable tokenizer"):
        load_chat(folder)


def with_template(chat: Chat, template: str) -> Chat:
    """`chat` with another template; the caller's own stays as it is."""
    own = chat.tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, eos_token=own.eos_token)
    tokenizer.chat_template = template
    return replace(chat, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "eos"),
        ("{% for m in messages %}{{ m['content'] }}{{ '!' if loop.last }}{{ eos_token }}{% endfor %}", "its prompt"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}{% if x", ""),
    ],
)
def test_a_template_that_cannot_teach_is_named(chat, template, reason):
    with pytest.raises(Unusable, match=f"^chat template: .*{reason}"):
        encode(with_template(chat, template), SHORT)


def test_a_token_of_prompt_and_answer_together_is_named(chat):
    messages = [SHORT[0], {"role": "assistant", "content": "\n\nSELECT"}]  # the prompt ends with a line break, too
    with pytest.raises(Unusable, match=r"^tokenizer: "):
        encode(chat, messages)


def test_a_role_that_the_template_does_not_know(llama):
    with pytest.raises(Unusable, match=r"^chat template: no system"):
        encode(llama, LONG)


@pytest.mark.parametrize("messages", [[], SHORT[:1]])
def test_the_last_message_must_be_an_answer(chat, messages):
    with pytest.raises(Unusable, match="last message"):
        encode(chat, messages)


def test_only_the_last_answer_is_learned_where_the_template_rewrites_earlier_ones(chat):
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}[...]"
        "{% else %}<|im_start|>{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    encoded = encode(with_template(chat, template), LONG)
    assert chat.tokenizer.decode(supervised(encoded)) == LONG[-1]["content"] + "<|im_end|>"


# A base model without a chat template


@pytest.mark.parametrize(("has_tokens", "end"), [(True, "<|im_end|>"), (False, "</s>")])
def test_chatml_ends_answers_with_a_token_that_the_tokenizer_has(folder, tmp_path, has_tokens, end):
    tokenizer = load_chat(folder).tokenizer
    if not has_tokens:  # Llama's: a tokenizer that knows no <|im_end|>
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<unk>", "<s>", "</s>"]
        bpe.train_from_iterator(["a"], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(Refusal, match=r"no chat template; .*model\.chat_template"):
        load_chat(tmp_path / "base")
    chat, changes = settled(tmp_path / "base", Model(id="./base", chat_template="chatml"))
    assert changes[0] == "it is model.chat_template"
    assert chat.render(LONG[:3]) == (
        f"<|im_start|>system\nBe brief.{end}\n<|im_start|>user\nHow many?{end}\n"
        f"<|im_start|>assistant\nSELECT COUNT(*) FROM t{end}\n"
    )
    answers = [message["content"] for message in LONG if message["role"] == "assistant"]
    expected = [id_ for answer in answers for id_ in chat.ids(answer + end)]
    assert supervised(encode(chat, LONG)) == expected


def test_a_template_of_ones_own_is_recorded_with_its_text(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}assistant: "
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/mine.jinja").write_text(text)
    model = Model(id="./base", chat_template="templates/mine.jinja")
    recorded = model.model_copy(update={"chat_template": recorded_template(model)})
    assert settled(folder, model)[0].render(SHORT) == settled(folder, recorded)[0].render(SHORT)
    (tmp_path / "templates/mine.jinja").write_text("Answer.")
    with pytest.raises(Refusal, match="no Jinja template"):
        settled(folder, model)
    (tmp_path / "templates/mine.jinja").unlink()
    with pytest.raises(Refusal, match=r"cannot read templates/mine\.jinja"):
        settled(folder, model)
    assert settled(folder, recorded)[0].render(SHORT).startswith("user: How many?")
