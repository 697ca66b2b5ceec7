"""The Modelfile, rendered by Go as in Ollama, against the rendering of the chat template."""

import json
import shutil
import subprocess

from qlora.gguf import modelfile
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows.chat import Chat, load_chat
from qlora.source import base_model

import pytest

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
FORGETFUL = (
    "{% for message in messages[-2:] %}<{{ message['role'] }}>{{ message['content'] }}</>{% endfor %}<assistant>"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}}' }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}' }}{% endif %}"
)

# What Ollama does with a Modelfile's TEMPLATE and SYSTEM (server/prompt.go, template/template.go).
PROGRAM = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	var in struct { Template, System string; Conversations [][]Message }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(in.Template))
	var out []string
	for _, messages := range in.Conversations {
		if in.System != "" && messages[0].Role != "system" {
			messages = append([]Message{{"system", in.System}}, messages...)
		}
		var text Writer
		if err := parsed.Execute(&text, map[string]any{"Messages": messages}); err != nil { panic(err) }
		out = append(out, string(text))
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

type Writer []byte
func (w *Writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
"""


@pytest.fixture(scope="module")
def render_with_go(tmp_path_factory):
    """A function (Modelfile, conversations) -> prompts."""
    go = shutil.which("go")
    if not go:
        pytest.skip("no Go on PATH to render Go templates with (apt install golang-go)")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM)
    subprocess.run([go, "build", "-o", "render", "main.go"], cwd=folder, check=True)

    def render(text: str, conversations: list) -> list[str]:
        request = {"Template": between(text, 'TEMPLATE """'), "System": between(text, 'SYSTEM """')}
        talks = [[{"Role": m["role"], "Content": m["content"]} for m in talk] for talk in conversations]
        request["Conversations"] = talks
        done = subprocess.run(
            [folder / "render"], input=json.dumps(request), capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return render


def between(text: str, start: str) -> str:
    return text.partition(start)[2].partition('"""')[0]


@pytest.fixture
def chat() -> Chat:
    return load_chat(base_model.fetch(Model(id=EMBEDDED)))


@pytest.mark.parametrize("template", ["own", LLAMA_3, MISTRAL, BRACES], ids=["SmolLM2", "Llama-3", "Mistral", "braces"])
@pytest.mark.parametrize("system_prompt", [None, 'Write "one" query.\nNo {{ prose }}.'])
def test_ollama_renders_what_training_saw(chat, render_with_go, template, system_prompt):
    if template != "own":
        chat.tokenizer.chat_template = template
    adds_bos = template in (LLAMA_3, MISTRAL)  # as llama.cpp's converter sets it for these models
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
    assert between(text, 'SYSTEM """') == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert "temperature" not in modelfile.write(chat, False, None, 2048, greedy=False)


@pytest.mark.parametrize("template", [SYSTEM_IN_FIRST_TURN, FORGETFUL])
def test_a_template_of_another_form_gets_no_modelfile(chat, template):
    chat.tokenizer.chat_template = template
    with pytest.raises(modelfile.Inexpressible):
        modelfile.write(chat, True, None, 2048, greedy=False)
