# ruff: noqa: RUF001 (DeepSeek's tokens hold letters that look like others)
"""The loss mask of real models' chat templates: what is learned is exactly the answers, each with its stop token.

The templates are copies in trl and llama.cpp; rows have one to five turns, with and without a system message, reasoning
and tools. The tokenizer is one of bytes, so the mask follows from the template alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlora.rows.chat import Chat, Unusable
from qlora.rows.fitted import fitted
from qlora.rows.loss_mask import encode
from qlora.rows.template import of_several, with_arguments

import pytest
import real_tokenizers
import trl
from byte_tokenizer import chat, learned

TRL = Path(trl.__file__).parent / "chat_templates"
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
NO_REASONING, NO_TOOLS, NO_CALLS = "knows no reasoning", "leaves out the tools", "leaves out the tool calls"
THINK = "<think>\n{1}\n</think>\n\n{0}"
JSON_CALL = '{"name": "weather", "arguments": {"city": "Ulm"}}'
HERMES_CALL = f"<tool_call>\n{JSON_CALL}\n</tool_call>"
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Ulm"}}'
END = "<｜end▁of▁sentence｜>"


@dataclass(frozen=True)
class Case:
    """A template and what is learned with it.

    Attributes:
        template: Gives its text.
        stop: The special token behind an answer.
        plain: What is learned of an answer but its stop token; {0} is the answer.
        reasoned: The same of one with reasoning, {1}; or the words of the refusal.
        earlier: "all" answers are learned; of plain ones, of those with reasoning. "last": only the last one, because
            the template renders the others otherwise.
        called: What is learned of a call, a result's answer and a further answer, each with its stop token; or the
            words of the refusal.
        system: Whether it knows a system message.
    """

    template: Callable[[], str]
    stop: str
    plain: str = "{0}"
    reasoned: str = NO_REASONING
    earlier: tuple[str, str] = ("all", "all")
    called: list[str] | str = NO_TOOLS
    system: bool = True


def of_trl(name: str) -> Callable[[], str]:
    return lambda: (TRL / f"{name}.jinja").read_text(encoding="utf-8")


def raw(name: str) -> Callable[[], str]:
    return lambda: real_tokenizers.llama_cpp(name)


def hermes() -> str:
    tools = real_tokenizers.llama_cpp("NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja")
    default = real_tokenizers.template("teknium/OpenHermes-2.5-Mistral-7B")()
    return of_several({"default": default, "tool_use": tools})


def told_not_to_think() -> str:
    return with_arguments(of_trl("qwen3")(), {"enable_thinking": False})


def ending(stop: str, *answers: str) -> list[str]:
    return [answer + stop for answer in answers]


of = real_tokenizers.template
CALLED = ("It is sunny.", "Bye")
CASES = {
    "Llama 3": Case(of_trl("llama3"), "<|eot_id|>"),
    "Llama 3.1": Case(
        of("meta-llama-Llama-3.1-8B-Instruct.jinja"), "<|eot_id|>", called=ending("<|eot_id|>", LLAMA_CALL, *CALLED)
    ),
    "Llama 3.2": Case(
        of("meta-llama-Llama-3.2-3B-Instruct.jinja"), "<|eot_id|>", called=ending("<|eot_id|>", LLAMA_CALL, *CALLED)
    ),
    "Mistral v1": Case(
        of("mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'"), "</s>", " {0}", called="roles must alternate"
    ),
    "Mistral v3": Case(of("Mistral-Large-Instruct-2407"), "</s>", " {0}", called=[" Bye</s>"]),
    "Mistral Nemo": Case(of("mistralai-Mistral-Nemo-Instruct-2407.jinja"), "</s>", called=["Bye</s>"]),
    "Ministral 3": Case(
        of("mistralai-Ministral-3-14B-Reasoning-2512.jinja"),
        "</s>",
        called=ending("</s>", '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}', *CALLED),
    ),
    "Qwen2.5": Case(
        of("Qwen-Qwen2.5-7B-Instruct.jinja"), "<|im_end|>", called=ending("<|im_end|>", HERMES_CALL, *CALLED)
    ),
    "Qwen3": Case(
        of_trl("qwen3"),
        "<|im_end|>",
        reasoned=THINK,
        earlier=("all", "last"),
        called=ending("<|im_end|>", HERMES_CALL, *CALLED),
    ),
    "Qwen3 that does not think": Case(
        told_not_to_think,
        "<|im_end|>",
        reasoned="prompts end the reasoning; model.chat_template_kwargs",
        earlier=("last", ""),
        called=["Bye<|im_end|>"],
    ),
    "Qwen3.5": Case(
        of_trl("qwen3_5_think"),
        "<|im_end|>",
        "\n</think>\n\n{0}",
        "{1}\n</think>\n\n{0}",
        ("last", "last"),
        ["\n</think>\n\nBye<|im_end|>"],
    ),
    "DeepSeek distill": Case(
        of_trl("deepseek_r1_distill"), END, "</think>\n\n{0}", "{1}\n</think>\n\n{0}", ("last", "last")
    ),
    "DeepSeek V3.1": Case(
        of("deepseek-ai-DeepSeek-V3.1.jinja"),
        END,
        reasoned="prompts end the reasoning",
        called=ending(
            END,
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Ulm"}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>",
            *CALLED,
        ),
    ),
    "DeepSeek V3.2": Case(
        of("deepseek-ai-DeepSeek-V3.2.jinja"),
        END,
        reasoned="prompts end the reasoning",
        earlier=("last", ""),
        called=[f"Bye{END}"],
    ),
    "Gemma 2": Case(of("google-gemma-2-2b-it.jinja"), "<end_of_turn>", called="roles must alternate", system=False),
    "Gemma 3": Case(of_trl("gemma3"), "<end_of_turn>", called="roles must alternate"),
    "Gemma 4": Case(
        raw("google-gemma-4-31B-it.jinja"), "<turn|>", earlier=("last", ""), called=[*ending("<turn|>", *CALLED)]
    ),
    "Phi-3": Case(of_trl("phi3"), "<|end|>"),
    "Phi-3.5": Case(of("microsoft-Phi-3.5-mini-instruct.jinja"), "<|end|>"),
    "Phi-4": Case(of("phi-4"), "<|im_end|>"),
    "SmolLM3": Case(of("HuggingFaceTB-SmolLM3-3B.jinja"), "<|im_end|>", reasoned=THINK),
    "gpt-oss": Case(
        of_trl("gptoss"),
        "<|return|>",
        "<|channel|>final<|message|>{0}",
        "<|channel|>analysis<|message|>{1}<|end|><|start|>assistant<|channel|>final<|message|>{0}",
        ("last", "last"),
        ["<|channel|>final<|message|>Bye<|return|>"],
    ),
    "OLMo 2": Case(lambda: OLMO2, "<|endoftext|>"),
    "Granite 3.0": Case(of("ibm-granite/granite-3.0-8b-instruct"), "<|end_of_text|>", called=NO_CALLS),
    "Granite 3.3": Case(
        of("ibm-granite-granite-3.3-2B-Instruct.jinja"), "<|end_of_text|>", reasoned=THINK, called=NO_CALLS
    ),
    "Granite 4.0": Case(
        of("ibm-granite-granite-4.0.jinja"), "<|end_of_text|>", called=ending("<|end_of_text|>", HERMES_CALL, *CALLED)
    ),
    "Command R7B": Case(
        raw("CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja"),
        "<|END_RESPONSE|>",
        "<|START_RESPONSE|>{0}",
        earlier=("last", ""),
        called=["<|START_RESPONSE|>Bye<|END_RESPONSE|>"],
    ),
    "Kimi K2 Thinking": Case(
        of("Kimi-K2-Thinking.jinja"), "<|im_end|>", reasoned=THINK, earlier=("last", "last"), called="append"
    ),
    "Spark": Case(of("Spark2.5.jinja"), END, "</think>{0}", "{1}</think>{0}", ("last", "all"), [f"</think>Bye{END}"]),
    "LFM2": Case(of_trl("lfm2"), "<|im_end|>", called=NO_CALLS),
    "Hermes 3": Case(hermes, "<|im_end|>", called=ending("<|im_end|>", HERMES_CALL, "Bye")),
}
PAIRS = [("Hi", "Hello!"), ("y", "SELECT 1"), ("Yes", "Fine."), ("?", "A b c"), ("Why?", "Because 3.")]
SYSTEM = [{"role": "system", "content": "Be brief."}]
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}


def talk(turns: int, thoughts: bool = False) -> list[dict]:
    messages = []
    for number, (question, answer) in enumerate(PAIRS[:turns]):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
        if thoughts:
            messages[-1]["reasoning_content"] = f"thought {number}, which is long"
    return messages


@pytest.fixture(scope="module")
def load():
    """A function: name of a case -> its chat."""
    made = {}

    def load(name: str) -> Chat:
        if name not in made:
            made[name] = chat(CASES[name].template(), CASES[name].stop)
        return made[name]

    return load


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_learned_is_exactly_the_answers_with_their_stop_tokens(load, name, thoughts):
    case, loaded = CASES[name], load(name)
    form = case.reasoned if thoughts else case.plain
    for system in ([], SYSTEM) if case.system else ([],):
        for turns in range(1, 6):
            messages = [*system, *talk(turns, thoughts)]
            if "{0}" not in form:
                with pytest.raises(Unusable, match=form):
                    learned(loaded, messages)
                continue
            answers = [
                form.format(message["content"], message.get("reasoning_content")) + case.stop
                for message in messages
                if message["role"] == "assistant"
            ]
            # Mistral puts the system message into the last question, so earlier prompts are other ones.
            all_ = case.earlier[thoughts] == "all" and not (system and name in ("Mistral v3", "Mistral Nemo"))
            assert learned(loaded, messages) == (answers if all_ else answers[-1:])
            row = encode(loaded, fitted(loaded, messages))
            assert row.input_ids[: row.prompt_length] == loaded.prompt_ids(fitted(loaded, messages)[:-1])


@pytest.mark.parametrize("name", CASES)
def test_calls_are_learned_and_tools_and_results_are_not(load, name):
    case, loaded = CASES[name], load(name)
    messages = [
        {"role": "user", "content": "Is it sunny in Ulm?", "tools": TOOLS},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "It is", "name": "weather", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Bye"},
    ]
    if isinstance(case.called, str):
        with pytest.raises(Unusable, match=case.called):
            learned(loaded, messages)
    else:
        assert learned(loaded, messages) == case.called


@pytest.mark.parametrize("name", ["cohere", "gemma", "gemma3", "lfm2", "llama3", "qwen2_5", "qwen3_instruct_2507"])
def test_marks_of_generation_in_a_template_say_the_same(name):
    """trl's copies for training mark what the model generates."""
    loaded = chat(of_trl(f"{name}_training")(), "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>")
    marked = loaded.tokenizer.apply_chat_template(talk(5), return_dict=True, return_assistant_tokens_mask=True)
    runs = itertools.groupby(zip(marked["input_ids"], marked["assistant_masks"], strict=True), key=lambda pair: pair[1])
    texts = [loaded.tokenizer.decode([id_ for id_, _ in run]).strip() for is_marked, run in runs if is_marked]
    assert learned(loaded, talk(5)) == texts
