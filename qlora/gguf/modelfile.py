"""An Ollama Modelfile for a GGUF: the chat template in Go's syntax, system prompt, stop tokens, parameters.

Ollama does not run the Jinja template in a GGUF; it guesses one by its looks. Jinja cannot be translated in general,
but what a template renders can be looked at: the texts around each message are read off conversations of
placeholders, and what a Go template of these texts renders is held against the real rendering of longer ones.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qlora.rows import chat

NAME = "Modelfile"
MARKS = [f"placeholder{number}" for number in range(8)]  # texts that no template holds
CONTEXT = 8192  # tokens a request, where the model was trained on that many


class NotOfThisForm(ValueError):
    """The template does more than to put texts around messages; the message says what was seen."""


@dataclass(frozen=True)
class Form:
    """A chat template that puts a text before and one after each message, by its role.

    around: role -> (before, after); no system where the template refuses one. prompt: opens the answer.
    default_system: what the template says as system where a conversation does not.
    """

    around: dict[str, tuple[str, str]]
    prompt: str
    default_system: str | None

    def render(self, messages: chat.Messages) -> str:
        """The conversation up to where the answer begins, without a BOS that the tokenizer adds."""
        if self.default_system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        return "".join(message["content"].join(self.around[message["role"]]) for message in messages) + self.prompt


def write(
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    adds_bos: bool,
    system_prompt: str | None,
    context: int,
    greedy: bool,
) -> str:
    """The Modelfile that lies beside model.gguf.

    Args:
        tokenizer: With the chat template that the GGUF holds.
        stops: Ids that end an answer.
        adds_bos: Whether the GGUF's tokenizer puts a BOS before every prompt.
        system_prompt: The recipe's.
        context: Tokens that the model was trained on.
        greedy: Whether answers are the most probable ones, as in `evaluate`, unless a request says otherwise.

    Raises:
        NotOfThisForm: if no template of Ollama's could render what this one does.
    """
    form = read_form(tokenizer, adds_bos)
    lines = ["FROM ./model.gguf", f'TEMPLATE """{go_template(form)}"""']
    system = system_prompt or form.default_system
    if system and "system" in form.around:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(stops)]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    if greedy:
        lines.append("PARAMETER temperature 0")
    if any('"""' in text for text in (system or "", go_template(form))):
        raise NotOfThisForm('template or system prompt holds """, which ends a text in a Modelfile')
    return "\n".join(lines) + "\n"


def read_form(tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> Form:
    """Find the texts around messages by rendering placeholders.

    Raises:
        NotOfThisForm: if the rendering of ten other conversations shows that there is more to it.
    """

    def rendered(*roles: str, prompt: bool) -> list[str]:
        """The texts before, between and behind the placeholders of such a conversation."""
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)]
        text = without_bos(chat.render(tokenizer, messages, prompt=prompt))
        pieces = []
        for mark in MARKS[: len(roles)]:
            piece, found, text = text.partition(mark)
            if not found:
                raise NotOfThisForm(f"a conversation of {', '.join(roles)} is not rendered message by message")
            pieces.append(piece)
        return [*pieces, text]

    def without_bos(text: str) -> str:
        return text.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else text

    start, after_prompted = rendered("user", prompt=True)
    after_user = rendered("user", prompt=False)[1]
    if not after_prompted.startswith(after_user):
        raise NotOfThisForm("the generation prompt is not just put behind the conversation")
    prompt = after_prompted.removeprefix(after_user)
    _, to_assistant, to_user, _ = rendered("user", "assistant", "user", prompt=True)
    after_assistant = rendered("user", "assistant", prompt=False)[2]
    before = {"user": to_user.removeprefix(after_assistant), "assistant": to_assistant.removeprefix(after_user)}
    around = {"user": (before["user"], after_user), "assistant": (before["assistant"], after_assistant)}
    default_system = None
    try:
        before_system, system_to_user, _ = rendered("system", "user", prompt=True)
    except chat.Unusable:  # the template refuses a system message
        pass
    else:
        around = {"system": (before_system, system_to_user.removesuffix(before["user"])), **around}
        opening, closing = before_system, system_to_user
        if start != before["user"] and start.startswith(opening) and start.endswith(closing):
            default_system = start[len(opening) : len(start) - len(closing)]
    form = Form(around, prompt, default_system)
    for messages in conversations(with_system="system" in around):
        expected = without_bos(chat.render(tokenizer, messages, prompt=True))
        if form.render(messages) != expected:
            raise NotOfThisForm(f"{expected!r} is not its messages with texts around them")
    return form


def conversations(with_system: bool) -> list[list[dict[str, str]]]:
    """Ten conversations of several lengths and characters, half of them with a system message if there may be one.

    None begins or ends with white space, which some templates take off and no Modelfile can.
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
    """The form in the syntax of Go's text/template, over the `.Messages` that Ollama gives it."""
    branches = [
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
        f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"
        for number, (role, (before, after)) in enumerate(form.around.items())
    ]
    return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_literal(form.prompt)}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
