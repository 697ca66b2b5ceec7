"""An Ollama Modelfile for a GGUF: the chat template in Go's syntax, system prompt, stop tokens, parameters.

Ollama does not run the Jinja template in a GGUF; it guesses one that looks like it. Jinja cannot be translated in
general, but its renderings can be examined: conversations of placeholders show the texts around each message, and a Go
template of these texts is compared with the real rendering of other conversations.
"""

from dataclasses import dataclass

from qlora.rows.chat import Chat, Messages, Unusable

NAME = "Modelfile"
MARKS = [f"placeholder{number}" for number in range(8)]  # texts that are in no template
CONTEXT = 8192  # tokens a request, if the model was trained on that many


class Inexpressible(ValueError):
    """The template does more than put texts around messages; the message quotes an example."""


@dataclass(frozen=True)
class Form:
    """A chat template that puts one text before and one after each message, depending on the message's role.

    Attributes:
        around: Role -> (before, after); no system role if the template refuses it.
        prompt: The text that opens the model's answer.
        default_system: The system prompt that the template adds to a conversation without one.
    """

    around: dict[str, tuple[str, str]]
    prompt: str
    default_system: str | None

    def render(self, messages: Messages) -> str:
        """The conversation as a prompt, without the BOS that the tokenizer adds."""
        if self.default_system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        return "".join(message["content"].join(self.around[message["role"]]) for message in messages) + self.prompt


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
    system = system_prompt or form.default_system
    if system and "system" in form.around:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{token}"' for token in chat.tokenizer.convert_ids_to_tokens(chat.stops)]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    if greedy:
        lines.append("PARAMETER temperature 0")
    if any('"""' in text for text in (system or "", go_template(form))):
        raise Inexpressible('template or system prompt holds """, which ends a text in a Modelfile')
    return "\n".join(lines) + "\n"


def read_form(chat: Chat, adds_bos: bool) -> Form:
    """Find the texts around messages by rendering placeholders.

    Raises:
        Inexpressible: if ten other conversations show that the template does more.
    """
    bos = chat.tokenizer.bos_token

    def rendered(*roles: str, prompt: bool) -> list[str]:
        """The texts before, between and after the placeholders of a conversation with these roles."""
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)]
        text = without_bos(chat.render(messages, prompt=prompt))
        pieces = []
        for mark in MARKS[: len(roles)]:
            piece, found, text = text.partition(mark)
            if not found:
                raise Inexpressible(f"a conversation of {', '.join(roles)} is not rendered message by message")
            pieces.append(piece)
        return [*pieces, text]

    def without_bos(text: str) -> str:
        return text.removeprefix(bos) if adds_bos and bos else text

    start, after_prompted = rendered("user", prompt=True)
    after_user = rendered("user", prompt=False)[1]
    if not after_prompted.startswith(after_user):
        raise Inexpressible("the generation prompt does not just follow the conversation")
    prompt = after_prompted.removeprefix(after_user)
    _, to_assistant, to_user, _ = rendered("user", "assistant", "user", prompt=True)
    after_assistant = rendered("user", "assistant", prompt=False)[2]
    before = {"user": to_user.removeprefix(after_assistant), "assistant": to_assistant.removeprefix(after_user)}
    around = {"user": (before["user"], after_user), "assistant": (before["assistant"], after_assistant)}
    default_system = None
    try:
        before_system, system_to_user, _ = rendered("system", "user", prompt=True)
    except Unusable:  # the template refuses a system message
        pass
    else:
        around = {"system": (before_system, system_to_user.removesuffix(before["user"])), **around}
        opening, closing = before_system, system_to_user
        if start != before["user"] and start.startswith(opening) and start.endswith(closing):
            default_system = start[len(opening) : len(start) - len(closing)]
    form = Form(around, prompt, default_system)
    for messages in conversations(with_system="system" in around):
        expected = without_bos(chat.render(messages, prompt=True))
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
    """The form as a template of Go's text/template, for the `.Messages` that Ollama passes to it."""
    branches = [
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
        f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        for number, (role, (before, after)) in enumerate(form.around.items())
    ]
    return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_literal(form.prompt)}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
