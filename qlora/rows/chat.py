"""A model's tokenizer and chat template: one way from messages to token ids, in training, scoring and serving.

The template renders a conversation as text, special tokens included, and the tokenizer splits that text without adding
any. So there is exactly one BOS where the model has one.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from qlora.rows.template import CHATML, END, of_several
from qlora.runtime.console import Refusal

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

# Each has role and content; an answer may have reasoning_content, tool_calls and, if it is not to be learned,
# "train": False; the first message may have the conversation's tools. A document is an answer alone (documents.py).
Messages = Sequence[dict]
REASONING_KEYS = ("reasoning_content", "thinking")
OURS = {"tools", "train"}  # keys of a message that are not the template's
MARKS = ("placeholder0", "placeholder1")  # texts that are in no template


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
        tools = messages[0].get("tools") if messages else None
        bare = [{key: value for key, value in message.items() if key not in OURS} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(bare, tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything
            raise Unusable(f"chat template: {error}") from error

    def ids(self, text: str) -> list[int]:
        """The token ids of text that already holds its special tokens."""
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def ids_once(self) -> Callable[[str], tuple[int, ...]]:
        """`ids` of texts that many rows have in common."""
        return lru_cache(64)(lambda text: tuple(self.ids(text)))

    @cached_property
    def splitting(self) -> frozenset[int]:
        """The ids of special tokens that are found before anything else is done to a text."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(id_ for id_, token in added.items() if token.special and not token.normalized)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The token ids of a prompt: the conversation, followed by the opening of the model's next answer."""
        return self.ids(self.render(messages, prompt=True))

    @cached_property
    def reasoning_key(self) -> str | None:
        """The key of a message under which the template reads reasoning; None if it reads none."""
        question, answer = ({"role": role, "content": "-"} for role in ("user", "assistant"))
        for key in REASONING_KEYS:
            if MARKS[0] in self.render([question, answer | {key: MARKS[0]}]):
                return key
        return None

    @cached_property
    def strips_behind_special(self) -> bool:
        """Whether special tokens take the white space behind them (Phi's)."""
        return sum(token.rstrip for token in self.tokenizer.added_tokens_decoder.values()) > 1

    def normalized(self, messages: Messages) -> Messages:
        """The conversation in the tokenizer's own Unicode normal form (NFC for Qwen), which llama.cpp leaves out."""
        keys = ("content", "reasoning_content")
        return [message | {key: self._normal(message[key]) for key in keys if key in message} for message in messages]

    def _normal(self, text: str) -> str:
        for form in self._normal_forms:
            text = unicodedata.normalize(form, text)
        return text

    @cached_property
    def _normal_forms(self) -> list[str]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return []
        state = json.loads(backend.normalizer.__getstate__())  # what tokenizer.json says of it
        kinds = [part["type"] for part in state.get("normalizers", [state])]
        return [kind for kind in kinds if kind in ("NFC", "NFD", "NFKC", "NFKD")]


def load_chat(folder: Path, template: str | None = None) -> Chat:
    """The tokenizer in `folder` as its files say, and its chat template or this other one.

    Raises:
        Refusal: if it has no chat template, no stop token, or no token to spare for padding.
    """
    # Not always AutoTokenizer: some of its classes build a tokenizer of their own beside what tokenizer.json says.
    as_written = (folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(folder, PreTrainedTokenizerFast if as_written else AutoTokenizer)
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = of_several(tokenizer.chat_template)
    if template == CHATML and END not in tokenizer.get_vocab():  # no base model can learn to stop at a text
        template = template.replace(f"'{END}'", "eos_token")
    tokenizer.chat_template = template or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise Refusal(
            f"{folder}: the tokenizer has no chat template; take an instruct model, or set model.chat_template to "
            "chatml or to a file of your own"
        )
    if not tokenizer.is_fast:
        raise Refusal(f"{folder}: transformers has no fast tokenizer for its files; choose a model with tokenizer.json")
    tokenizer.backend_tokenizer.no_truncation()  # tokenizer.json may keep either from somebody's training
    tokenizer.backend_tokenizer.no_padding()
    stops = _stop_ids(tokenizer, folder)
    pad = tokenizer.pad_token_id
    return Chat(tokenizer, stops, _spare_id(tokenizer, stops) if pad is None or pad in stops else pad)


def load_tokenizer(folder: Path, loader: type) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder` by `loader`, a class of transformers. Raises Refusal if there is no usable one."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of other classes and of expressions that are right here
    try:
        return loader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise Refusal(f"{folder}: no usable tokenizer ({str(error).splitlines()[0]})") from None
    finally:
        logging.set_verbosity(level)


def _stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """The ids that end an answer: the tokenizer's eos, those of generation_config.json (else config.json), and the
    special token that the template puts behind an answer."""
    ids = {tokenizer.eos_token_id, _turn_end(tokenizer)}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            configured = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            ids.update(configured if isinstance(configured, list) else [configured])
            break
    ids.discard(None)
    if not ids:
        raise Refusal(f"{folder}: neither tokenizer nor generation_config.json names a stop token (eos)")
    return sorted(ids)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token right behind an answer, if the template puts one there."""
    talk = [{"role": role, "content": mark} for role, mark in zip(("user", "assistant"), MARKS, strict=True)]
    try:
        behind = tokenizer.apply_chat_template(talk, tokenize=False).rpartition(MARKS[1])[2]
    except Exception:  # a template may raise anything; what it refuses is said where rows are rendered
        return None
    first = next(iter(tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]), None)
    return first if first in tokenizer.added_tokens_decoder and first != tokenizer.bos_token_id else None


def _spare_id(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> int:
    """The id of a special token to pad with: one that no conversation holds, preferably one named for it."""
    added = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    specials = added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    free = {
        token: id_
        for token, id_ in sorted(specials.items())
        if id_ not in {*stops, tokenizer.bos_token_id} and token not in tokenizer.chat_template
    }
    for mark in ("pad", "reserved", "unused", "unk", "endoftext", ""):
        for token, id_ in free.items():
            if mark in token.lower():
                return id_
    raise Refusal("the tokenizer has no special token to spare for padding; add one named <pad> to it")
