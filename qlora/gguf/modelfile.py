"""An Ollama Modelfile for a GGUF: the chat template in Go's syntax, system prompt, stop tokens, parameters.

Ollama does not run the Jinja template in a GGUF; it guesses one that looks like it. Jinja cannot be translated in
general, but its renderings can be examined: conversations of placeholders show the texts around each message, and a Go
template of these texts is compared with the real rendering of other conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora.rows.chat import Chat, Messages, Unusable

NAME = "Modelfile"
MARKS = [f"placeholder{number}" for number in range(8)]  # texts that are in no template
CONTEXT = 8192  # tokens a request, if the model was trained on that many


class Inexpressible(ValueError):
    """The template does more than put texts around messages; the message quotes an example."""


@dataclass(frozen=True)
class Form:
    """A chat template that puts fixed texts before, between and behind messages, and the system message into a turn.

    Attributes:
        first: Before the first question of a conversation without a system message.
        later: Between an answer and the next question.
        answer: Between a question and its answer, if a turn follows.
        prompt: Behind the last question: it opens the model's answer.
        system: Before and behind the system message, which replaces `first`; None if the template refuses one.
        system_later: Before the system message in later turns, if the last question gets it and not the first one.
    """

    first: str
    later: str
    answer: str
    prompt: str
    system: tuple[str, str] | None = None
    system_later: str | None = None

    def render(self, messages: Messages) -> str:
        """The conversation as a prompt, without the BOS that the tokenizer adds."""
        system = "".join(message["content"] for message in messages if message["role"] == "system")
        turns = [message for message in messages if message["role"] != "system"]
        text = ""
        for at, message in enumerate(turns):
            if message["role"] == "assistant":
                before = self.answer
            elif system and at == (0 if self.system_later is None else len(turns) - 1):
                before = system.join((self.system_later if at else self.system[0], self.system[1]))
            else:
                before = self.later if at else self.first
            text += before + message["content"]
        return text + self.prompt


def write(
    chat: Chat,
    adds_bos: bool,
    system_prompt: str | None,
    context: int,
    greedy: bool,
) -> str:
    """The text of the Modelfile beside model.gguf.

    Args:
        chat: The tokenizer and template that the GGUF holds.
        adds_bos: Whether the GGUF's tokenizer puts a BOS before every prompt.
        system_prompt: The recipe's.
        context: Tokens that the model was trained on.
        greedy: Decode greedily, as `evaluate` does, unless a request says otherwise.

    Raises:
        Inexpressible: if a Modelfile cannot render what the chat template renders.
    """
    form = read_form(chat, adds_bos)
    lines = ["FROM ./model.gguf", f'TEMPLATE """{go_template(form)}"""']
    if system_prompt and form.system:
        lines.append(f'SYSTEM """{system_prompt}"""')
    lines += [f'PARAMETER stop "{token}"' for token in chat.tokenizer.convert_ids_to_tokens(chat.stops)]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    if greedy:
        lines.append("PARAMETER temperature 0")
    if any('"""' in text for text in (system_prompt or "", go_template(form))):
        raise Inexpressible('template or system prompt holds """, which ends a text in a Modelfile')
    return "\n".join(lines) + "\n"


def read_form(chat: Chat, adds_bos: bool) -> Form:
    """Find the texts around messages by rendering placeholders.

    Raises:
        Inexpressible: if ten other conversations show that the template does more.
    """
    bos = chat.tokenizer.bos_token

    def rendered(*roles: str, order: Sequence[int] | None = None) -> list[str]:
        """The texts before, between and after the placeholders of a prompt with these roles, in the text's `order`."""
        text = prompt_of([{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)])
        pieces = []
        for at in order or range(len(roles)):
            piece, found, text = text.partition(MARKS[at])
            if not found:
                raise Inexpressible(f"a conversation of {', '.join(roles)} is not rendered message by message")
            pieces.append(piece)
        return [*pieces, text]

    def prompt_of(messages: Messages) -> str:
        text = chat.render(messages, prompt=True)
        return text.removeprefix(bos) if adds_bos and bos else text

    first, prompt = rendered("user")
    _, answer, later, _ = rendered("user", "assistant", "user")
    form = Form(first, later, answer, prompt)
    try:
        before, behind, _ = rendered("system", "user")
    except Unusable:  # the template refuses a system message
        pass
    else:
        roles = ("system", "user", "assistant", "user")
        text = prompt_of([{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)])
        is_late = text.find(MARKS[0]) > text.find(MARKS[1])
        system_later = rendered(*roles, order=(1, 2, 0, 3))[2] if is_late else None
        form = replace(form, system=(before, behind), system_later=system_later)
    for messages in conversations(with_system=form.system is not None):
        expected = prompt_of(messages)
        if form.render(messages) != expected:
            raise Inexpressible(f"{expected!r} is not its messages with texts around them")
    return form


def conversations(with_system: bool) -> list[list[dict[str, str]]]:
    """Ten conversations of different lengths and scripts, half of them with a system message if that is allowed.

    No message begins or ends with white space: some templates strip it, which no Modelfile can do.
    """
    contents = ["Why?", "SELECT 1;\n\nSELECT 2", '{{ .Role }} "x" <|y|>', "naïve 日本 😀", "a\\b\tc {% z %}"]
    found = []
    for turns in (1, 2, 3, 4, 5):
        talk = [
            {"role": role, "content": contents[(turn + turns) % len(contents)]}
            for turn in range(turns)
            for role in ("user", "assistant")
        ][:-1]
        system = [{"role": "system", "content": f"Answer {contents[turns - 1]}"}] if with_system else []
        found += [talk, system + talk]
    return found


def go_template(form: Form) -> str:
    """The form as a template of Go's text/template, for the `.Messages` and `.System` that Ollama passes to it.

    `.Messages` has the system message, too, and `.System` is its text.
    """
    first, later = _literal(form.first), _literal(form.later)
    if form.system:
        here = "$.System" if form.system_later is None else "(and $.System (eq (len (slice $.Messages $i)) 1))"
        before, behind = map(_literal, form.system)
        first = f"{{{{ if {here} }}}}{before}{{{{ $.System }}}}{behind}{{{{ else }}}}{first}{{{{ end }}}}"
        if form.system_later is not None:
            before = _literal(form.system_later)
            later = f"{{{{ if {here} }}}}{before}{{{{ $.System }}}}{behind}{{{{ else }}}}{later}{{{{ end }}}}"
    return (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if $first }}}}{first}{{{{ else }}}}{later}{{{{ end }}}}{{{{ .Content }}}}'
        f'{{{{ $first = false }}}}{{{{ else if eq .Role "assistant" }}}}{_literal(form.answer)}{{{{ .Content }}}}'
        f"{{{{ end }}}}{{{{ end }}}}{_literal(form.prompt)}"
    )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
