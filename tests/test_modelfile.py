"""The Modelfile, rendered by Go as in Ollama, against the rendering of the chat template."""

from qlora.gguf import modelfile
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows.chat import Chat, load_chat
from qlora.source import base_model

import go_templates
import pytest
from go_templates import between

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SYSTEM_IN_FIRST_TURN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{% set ns = message['content'] %}"
    "{% elif message['role'] == 'user' %}[INST] {% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}\n\n{% endif %}{{ message['content'] }} [/INST]{% else %} {{ message['content'] }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST_TURN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% if loop.last and "
    "messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}{{ message['content'] }}[/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for message in messages[-2:] %}<{{ message['role'] }}>{{ message['content'] }}</>{% endfor %}<assistant>"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}}' }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}' }}{% endif %}"
)


@pytest.fixture(scope="module")
def render_with_go(tmp_path_factory):
    return go_templates.compiled(tmp_path_factory.mktemp("go"))


@pytest.fixture
def chat() -> Chat:
    return load_chat(base_model.fetch(Model(id=EMBEDDED)))


@pytest.mark.parametrize(
    "template",
    ["own", LLAMA_3, MISTRAL, SYSTEM_IN_FIRST_TURN, SYSTEM_IN_LAST_TURN, BRACES],
    ids=["SmolLM2", "Llama-3", "Mistral", "system in the first turn", "system in the last turn", "braces"],
)
@pytest.mark.parametrize("system_prompt", [None, 'Write "one" query.\nNo {{ prose }}.'])
def test_ollama_renders_what_training_saw(chat, render_with_go, template, system_prompt):
    if template != "own":
        chat.tokenizer.chat_template = template
    adds_bos = template not in ("own", BRACES)  # as llama.cpp's converter sets it for these models
    text = modelfile.write(chat, adds_bos, system_prompt, 2048, greedy=True)
    takes_system = template != MISTRAL
    conversations = modelfile.conversations(with_system=takes_system)
    assert len(conversations) == 10
    prompts = render_with_go(text, conversations)
    for messages, prompt in zip(conversations, prompts, strict=True):
        if system_prompt and takes_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        bos = chat.tokenizer.bos_token if adds_bos else ""
        assert bos + prompt == chat.render(messages, prompt=True)


def test_the_file_names_model_stop_and_limits(chat):
    text = modelfile.write(chat, False, None, 2048, greedy=True)
    assert text.startswith("FROM ./model.gguf\n")
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 2048\nPARAMETER temperature 0\n')
    assert "You are a helpful AI assistant named SmolLM" in between(text, 'TEMPLATE """')
    assert '\nSYSTEM """' not in text
    assert "temperature" not in modelfile.write(chat, False, None, 2048, greedy=False)


def test_a_template_of_another_form_gets_no_modelfile(chat):
    chat.tokenizer.chat_template = FORGETFUL
    with pytest.raises(modelfile.Inexpressible):
        modelfile.write(chat, True, None, 2048, greedy=False)
