"""A chat template made to render the same wherever and whenever it is served.

What its renderings depend on besides the conversation (today's date, arguments that each server sets in its own way) is
written into it. llama.cpp, vLLM, transformers and Ollama then get it from the template alone.
"""

import json
import re
from collections.abc import Mapping
from datetime import date as Date
from pathlib import Path

from qlora.runtime.console import Refusal

END = "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    f"{{{{ '{END}' }}}}{{{{ '\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Documents as they are (data.task: text), each with its end; a request's messages as one text.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' and not message['continues'] %}{{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "plain": PLAIN}
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
TODAY = {"date_string": "%d %b %Y", "datetime": "%b %d %Y"}  # what llama-server hands to every template, and how


def read(name: str | None) -> str | None:
    """The template that model.chat_template names: chatml, or a file; plain if the task is text.

    Raises:
        Refusal: if the file is missing, not UTF-8, or no template.
    """
    if name is None or name in TEMPLATES:
        return name and TEMPLATES[name]
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"model.chat_template: cannot read {name} ({error}); put a Jinja template there") from None
    if "{" not in text:
        raise Refusal(f"model.chat_template: {name} is no Jinja template: it renders no message")
    return text


def of_several(named: Mapping[str, str]) -> str | None:
    """One template for a repository's several (Hermes, Command R+): tool_use for requests with tools, else default.

    transformers chooses in this way; a GGUF, vLLM's server and Ollama take one template.
    """
    default, tools = (named.get(name, "").removesuffix("\n") for name in ("default", "tool_use"))
    return f"{{% if tools %}}{tools}{{% else %}}{default}{{% endif %}}" if default and tools else default or None


def mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def arguments(template: str) -> list[str]:
    """The names of arguments that the template asks for, if they are given."""
    names = re.findall(r"\b(\w+) is (?:not )?defined", template)
    return sorted(set(names) - {"messages", "tools", "strftime_now", "bos_token", "eos_token", "add_generation_prompt"})


def with_date(template: str, date: str) -> str:
    """The template with `date` (YYYY-MM-DD) wherever it asks for today's."""
    day = Date.fromisoformat(date)
    template = CLOCK.sub(lambda call: json.dumps(day.strftime(call[2])), template)
    return with_arguments(template, {name: day.strftime(form) for name, form in TODAY.items()})


def with_arguments(template: str, arguments: Mapping[str, object]) -> str:
    """The template with these values of the arguments that it mentions, whatever a request says."""
    for name, value in arguments.items():
        if mentions(template, name):
            literal = "none" if value is None else json.dumps(value, ensure_ascii=False)
            # The line break belongs to the tag (trim_blocks), so the template's own first line begins a line, too.
            template = f"{{% set {name} = {literal} %}}\n{template}"
    return template


def with_bos(template: str) -> str:
    """The template with the BOS before everything."""
    return f"{{% if bos_token %}}{{{{ bos_token }}}}{{% endif %}}\n{template}"
