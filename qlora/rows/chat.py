"""A model's tokenizer and chat template: one way from messages to token ids, in training, scoring and serving.

The template renders a conversation as text, special tokens included, and the tokenizer splits that text without adding
any. So there is exactly one BOS where the model has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora.runtime.console import Refusal

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]


class Unusable(ValueError):
    """The template or the tokenizer cannot express a conversation; the message says why."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template.

    Attributes:
        tokenizer: As the model's files define it.
        stops: The ids that end an answer.
        pad: The id for padding; never a stop token.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: list[int]
    pad: int

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, followed by the opening of the model's next answer.

        Raises:
            Unusable: if the template refuses the conversation (for instance a role that it does not know).
        """
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything
            raise Unusable(f"chat template: {error}") from error

    def ids(self, text: str) -> list[int]:
        """The token ids of text that already holds its special tokens."""
        # verbose=False: no warning of texts longer than the model's context, which are counted anyway.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The token ids of a prompt: the conversation, followed by the opening of the model's next answer."""
        return self.ids(self.render(messages, prompt=True))


def load_chat(folder: Path) -> Chat:
    """The tokenizer and chat template in `folder`.

    Raises:
        Refusal: if it has no chat template, no stop token, or no token to spare for padding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refusal(f"{folder}: no usable tokenizer ({str(error).splitlines()[0]})") from None
    if not tokenizer.chat_template:
        raise Refusal(f"{folder}: the tokenizer has no chat template; take an instruct model, or add one to the folder")
    stops = _stop_ids(tokenizer, folder)
    pad = tokenizer.pad_token_id
    return Chat(tokenizer, stops, _spare_id(tokenizer, stops) if pad is None or pad in stops else pad)


def _stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """The ids that end an answer: the tokenizer's eos and those in the folder's generation_config.json."""
    ids = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
        ids.update(configured if isinstance(configured, list) else [configured])
    ids.discard(None)
    if not ids:
        raise Refusal(f"{folder}: neither tokenizer nor generation_config.json names a stop token (eos)")
    return sorted(ids)


def _spare_id(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> int:
    """The id of a special token to pad with: one that no conversation holds, preferably one named for it."""
    specials = [token for token, id_ in tokenizer.get_vocab().items() if id_ in set(tokenizer.all_special_ids)]
    specials += [str(token) for token in tokenizer.added_tokens_decoder.values()]
    free = [
        token for token in specials if tokenizer.convert_tokens_to_ids(token) not in {*stops, tokenizer.bos_token_id}
    ]
    for mark in ("pad", "reserved", "unused", "unk", "endoftext", ""):
        for token in sorted(set(free)):
            if mark in token.lower():
                return tokenizer.convert_tokens_to_ids(token)
    raise Refusal("the tokenizer has no special token to spare for padding; add one named <pad> to it")
