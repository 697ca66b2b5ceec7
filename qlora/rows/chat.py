"""One way from messages to token ids, shared by preparing, training, scoring and the checks of what is served.

The model's own chat template renders the conversation and its own tokenizer splits it, once, without adding special
tokens: those that belong there stand in the template, so there is exactly one BOS where the model has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from qlora.runtime.console import Refusal

IGNORED = -100  # label of a position without loss (torch.nn.CrossEntropyLoss)
Messages = Sequence[dict[str, str]]


class Unusable(ValueError):
    """The template or the tokenizer cannot express a conversation; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as training sees it: ids and labels of equal length; a label is its id or IGNORED.

    The last position is supervised: it is the stop token of the last answer.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def prompt_length(self) -> int:
        """Tokens before the last supervised run: the prompt that is served for the last answer."""
        end = len(self.labels)
        while end and self.labels[end - 1] != IGNORED:
            end -= 1
        return end


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, with a pad token that differs from every stop token.

    Raises:
        Refusal: if it has no chat template or no stop token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refusal(f"{folder}: no usable tokenizer ({str(error).splitlines()[0]})") from None
    if not tokenizer.chat_template:
        raise Refusal(f"{folder}: the tokenizer has no chat template; take an instruct model, or add one to the folder")
    stops = stop_ids(tokenizer, folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        tokenizer.pad_token = _spare_token(tokenizer, stops)
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """The ids that end an answer: the tokenizer's eos and those of the folder's generation_config.json.

    Raises:
        Refusal: if there is none.
    """
    ids = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
        ids.update(configured if isinstance(configured, list) else [configured])
    ids.discard(None)
    if not ids:
        raise Refusal(f"{folder}: neither tokenizer nor generation_config.json names a stop token (eos)")
    return sorted(ids)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompt: bool = False) -> str:
    """The conversation as text; with `prompt`, up to where the model's answer begins.

    Raises:
        Unusable: if the template refuses the conversation (a role it does not know, for instance).
    """
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # jinja2 raises whatever a template's author thought of
        raise Unusable(f"chat template: {error}") from error


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text that holds its special tokens already."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The ids that are served: the conversation before its last answer, and the opening of that answer."""
    return encode_text(tokenizer, render(tokenizer, messages, prompt=True))


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, stops: Sequence[int]) -> Encoded:
    """Token ids with a label on each answer of the assistant, from its first token to its stop token.

    Each answer's place in the text is where rendering with and without it differ, so any template works, marked for
    training or not. What the template puts behind the stop token (a line break) is not learned.

    Raises:
        Unusable: if the last message is not the assistant's, if the template rewrites earlier turns, if the prompt's
            ids are not the start of the whole's (a token that spans both), or if no stop token ends the answer.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    text = render(tokenizer, messages)
    # verbose: it would warn of rows that are longer than the model's context, which are counted anyway
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    labels = [IGNORED] * len(ids)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in answers:
        prompt = render(tokenizer, messages[:i], prompt=True)
        start, end = len(prompt), len(render(tokenizer, messages[: i + 1]))
        if not text.startswith(prompt):
            if i == answers[-1]:
                raise Unusable("chat template: the rendered conversation does not start with its prompt")
            continue  # the template shortens earlier turns (drops their reasoning, say): learn the last one only
        inside = [at for at, (begin, stop) in enumerate(offsets) if start <= begin < end and stop > begin]
        stopped = [at for at in inside if ids[at] in stops]
        if not stopped:
            raise Unusable("chat template: no stop token (eos) ends the answer, so the model would never learn to stop")
        for at in range(inside[0], stopped[-1] + 1):
            labels[at] = ids[at]
    end = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
    encoded = Encoded(ids[:end], labels[:end])  # nothing is learned from what follows
    if ids[: encoded.prompt_length] != encode_prompt(tokenizer, messages[:-1]):
        raise Unusable("tokenizer: a token spans the end of the prompt and the start of the answer")
    return encoded


def cut(row: Encoded, max_length: int) -> Encoded:
    """The row's first `max_length` tokens, without what is left behind the last supervised one."""
    labels = row.labels[:max_length]
    while labels and labels[-1] == IGNORED:
        labels.pop()
    return Encoded(row.input_ids[: len(labels)], labels)


def _spare_token(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> str:
    """A special token of the vocabulary that no conversation holds, best one named for it."""
    specials = [token for token, id_ in tokenizer.get_vocab().items() if id_ in set(tokenizer.all_special_ids)]
    specials += [str(token) for token in tokenizer.added_tokens_decoder.values()]
    free = [
        token for token in specials if tokenizer.convert_tokens_to_ids(token) not in {*stops, tokenizer.bos_token_id}
    ]
    for mark in ("pad", "reserved", "unused", "unk", "endoftext", ""):
        for token in sorted(set(free)):
            if mark in token.lower():
                return token
    raise Refusal("the tokenizer has no special token to spare for padding; add one named <pad> to it")
