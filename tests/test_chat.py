"""From messages to ids and labels: one BOS, the answer and its stop token supervised, a pad token of its own."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qlora.rows import chat
from qlora.runtime.console import Refusal

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
def tokenizer(tiny_model):
    return chat.load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tokenizer that, as Llama's, puts a BOS before whatever it is given, with the BOS in its template as well."""
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
    return chat.load_tokenizer(folder)


def supervised(encoded: chat.Encoded) -> list[int]:
    assert len(encoded.input_ids) == len(encoded.labels)
    assert all(label in (id_, chat.IGNORED) for id_, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return [label for label in encoded.labels if label != chat.IGNORED]


@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["one turn", "two turns"])
def test_answers_with_their_stop_tokens_are_all_that_is_supervised(tokenizer, messages):
    encoded = chat.encode(tokenizer, messages, [tokenizer.eos_token_id])
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    expected = [id_ for answer in answers for id_ in chat.encode_text(tokenizer, answer + "<|im_end|>")]
    assert supervised(encoded) == expected
    assert encoded.supervised == len(expected)
    assert encoded.input_ids[-1] == encoded.labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["one turn", "two turns"])
def test_the_prompt_that_is_served_is_the_prompt_that_was_trained(tokenizer, messages):
    encoded = chat.encode(tokenizer, messages, [tokenizer.eos_token_id])
    assert encoded.input_ids[: encoded.prompt_length] == chat.encode_prompt(tokenizer, messages[:-1])
    text = chat.render(tokenizer, messages)
    assert text.startswith(tokenizer.decode(encoded.input_ids))
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]).endswith("<|im_start|>assistant\n")


def test_exactly_one_bos_where_the_model_has_one(llama):
    encoded = chat.encode(llama, SHORT, [llama.eos_token_id])
    assert encoded.input_ids[0] == llama.bos_token_id
    assert encoded.input_ids.count(llama.bos_token_id) == 1
    assert chat.encode_prompt(llama, SHORT[:-1]).count(llama.bos_token_id) == 1
    assert llama.decode(supervised(encoded)) == " SELECT COUNT(*) FROM t</s>"


def test_the_pad_token_is_none_that_training_needs(tokenizer, llama):
    for tokenizer_ in (tokenizer, llama):
        assert tokenizer_.pad_token_id is not None
        assert tokenizer_.pad_token_id not in (tokenizer_.eos_token_id, tokenizer_.bos_token_id)
        assert tokenizer_.pad_token_id < len(tokenizer_)  # no row is added to the embeddings
    assert llama.pad_token == "<unk>"


def test_no_token_to_spare_for_padding(tmp_path, llama):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")), eos_token="</s>"
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="no special token to spare for padding"):
        chat.load_tokenizer(tmp_path)


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A copy of the tiny model's tokenizer to spoil."""
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return tmp_path


def test_every_stop_token_of_the_generation_config_counts(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    tokenizer = chat.load_tokenizer(folder)
    assert chat.stop_ids(tokenizer, folder) == [0, 2]
    assert tokenizer.pad_token_id not in (0, 2)


def test_a_pad_token_that_is_the_stop_token_is_replaced(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    tokenizer = chat.load_tokenizer(folder)
    assert tokenizer.eos_token == settings["eos_token"]
    assert tokenizer.pad_token not in (tokenizer.eos_token, tokenizer.bos_token)


def test_a_tokenizer_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(Refusal, match="has no chat template"):
        chat.load_tokenizer(folder)


def test_a_tokenizer_without_stop_token_is_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(Refusal, match="names a stop token"):
        chat.load_tokenizer(folder)


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Refusal, match="no usable tokenizer"):
        chat.load_tokenizer(folder)


def with_template(tokenizer, template: str):
    """The tokenizer with another chat template; the caller's own stays as it is."""
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    copy.chat_template = template
    return copy


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "no stop token"),
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "start with"),
        ("{{ raise_exception('not today') }}", "chat template: not today"),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}{% if x", "chat template: "),
    ],
)
def test_a_template_that_cannot_teach_is_named(tokenizer, template, reason):
    with pytest.raises(chat.Unusable, match=reason):
        chat.encode(with_template(tokenizer, template), SHORT, [tokenizer.eos_token_id])


def test_a_token_of_prompt_and_answer_together_is_named(tokenizer):
    messages = [SHORT[0], {"role": "assistant", "content": "\n\nSELECT"}]  # the prompt ends with a line break, too
    with pytest.raises(chat.Unusable, match="a token spans the end of the prompt"):
        chat.encode(tokenizer, messages, [tokenizer.eos_token_id])


def test_a_role_that_the_template_does_not_know(llama):
    with pytest.raises(chat.Unusable, match="chat template: no system"):
        chat.encode(llama, LONG, [llama.eos_token_id])


def test_the_last_message_must_be_an_answer(tokenizer):
    for messages in ([], SHORT[:1]):
        with pytest.raises(chat.Unusable, match="the last message is not the assistant's"):
            chat.encode(tokenizer, messages, [tokenizer.eos_token_id])


def test_only_the_last_answer_is_learned_where_the_template_rewrites_earlier_ones(tokenizer):
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}[...]"
        "{% else %}<|im_start|>{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    shortening = with_template(tokenizer, template)
    encoded = chat.encode(shortening, LONG, [tokenizer.eos_token_id])
    assert shortening.decode(supervised(encoded)) == LONG[-1]["content"] + "<|im_end|>"
