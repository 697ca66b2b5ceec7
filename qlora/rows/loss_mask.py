"""The loss mask: which tokens of a conversation have loss.

Those are the assistant's answers, each from its first token to its stop token. Prompts have no loss, nor has what the
template puts behind a stop token.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from qlora.rows.chat import MARKS, REASONING_KEYS, Chat, Messages, Unusable

from tokenizers import Encoding

IGNORED = -100  # the label of a position without loss (torch.nn.CrossEntropyLoss)
OPENED = re.compile(r"<think>\s*$")  # at the end of a prompt
CLOSED = re.compile(  # the same, of models that are told not to reason: Qwen's and DeepSeek's, Gemma 4's, Command R7B's
    r"(?:<think>\s*</think>\s*|<\|channel>thought\s*<channel\|>|<\|START_THINKING\|><\|END_THINKING\|>)$"
)
CLOSING = re.compile(r"\s*(?:<think>\s*)?</think>\s*")
OPENING = re.compile(r"<think>\s*")
EMPTY = re.compile(r"\s*<think>\s*</think>\s*")
REASONING = re.compile(r"(?:<think>)?(.*)</think>", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """A conversation as training sees it: token ids and labels, of equal length; a label is the token's id or IGNORED.

    The last position is supervised: it is the stop token of the last answer, unless the row was truncated.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def supervised(self) -> int:
        """Number of tokens with loss."""
        return len(self.labels) - self.labels.count(IGNORED)

    @property
    def prompt_length(self) -> int:
        """Tokens before the last supervised run: the prompt of the last answer. Of a document, its first half."""
        end = len(self.labels)
        while end and self.labels[end - 1] != IGNORED:
            end -= 1
        return end if end > 1 else (len(self.labels) + 1) // 2


def is_learned(message: dict) -> bool:
    """Whether the row wants this message to be learned."""
    return message["role"] == "assistant" and message.get("train", True)


def runs(encoded: Encoded) -> int:
    """Number of answers with loss."""
    before = [IGNORED, *encoded.labels]
    return sum(label != IGNORED and last == IGNORED for last, label in zip(before, encoded.labels, strict=False))


def encode(chat: Chat, messages: Messages) -> Encoded:
    """Token ids and loss mask of a conversation.

    The text is the prompt of the last answer, as it is served, and the answer. Earlier answers are learned where the
    prompt holds them just as they would be learned as last ones, behind the prompt that they had then; some templates
    render earlier turns otherwise (drop their reasoning, end them with another token). An answer with "train": False
    is not learned. A document, an answer without a prompt, is learned from its second token on: nothing predicts the
    first.

    Raises:
        Unusable: if the last message is not the assistant's, if the template does not put the answer behind its
            prompt, if no stop token ends the answer, or if the prompt's ids are not the start of the conversation's (a
            token that spans both).
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    if len(messages) == 1:
        return _document(chat, messages)
    prompt = chat.render(messages[:-1], prompt=True)
    text = prompt + learned(chat, messages, prompt)
    spans = [(len(prompt), len(text))]
    for i, message in enumerate(messages[:-1]):
        if is_learned(message):
            before = chat.render(messages[:i], prompt=True)
            if text.startswith(before):
                answer = _or_none(chat, messages[: i + 1], before)
                if answer and text.startswith(answer, len(before)):
                    spans.append((len(before), len(before) + len(answer)))

    encoding = chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    ids, offsets = encoding.ids, encoding.offsets
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        for at in range(bisect_left(offsets, (start,)), bisect_left(offsets, (end,))):
            if offsets[at][1] > offsets[at][0]:
                labels[at] = ids[at]
    encoded = Encoded(ids, labels)
    if not _begins_with(chat, encoding, prompt, encoded.prompt_length):
        raise Unusable("tokenizer: a token spans the end of the prompt and the start of the answer")
    return encoded


def _begins_with(chat: Chat, encoding: Encoding, prompt: str, length: int) -> bool:
    """Whether the first `length` ids of `encoding` are the prompt's.

    A special token splits a text: what stands before it is tokenized alone. So only what follows the prompt's last
    special token is tokenized once more, and that is the same text in each row.
    """
    ids, offsets = encoding.ids, encoding.offsets
    for at in range(length - 1, -1, -1):
        begin, end = offsets[at]
        if ids[at] in chat.splitting and end <= len(prompt):
            return tuple(ids[at:length]) == chat.ids_once(prompt[begin:])
    return ids[:length] == chat.ids(prompt)


def _document(chat: Chat, messages: Messages) -> Encoded:
    _check_no_stop(chat, messages[0]["content"])
    ids = chat.ids(chat.render(messages))
    return Encoded(ids, [IGNORED, *ids[1:]])


def _check_no_stop(chat: Chat, said: str) -> None:
    if spoken := [stop for stop in chat.tokenizer.convert_ids_to_tokens(chat.stops) if stop in said]:
        raise Unusable(f"the answer holds the stop token {spoken[0]} as text")


def learned(chat: Chat, messages: Messages, prompt: str) -> str:
    """The text that is learned as the last message behind `prompt`, its stop token included.

    An empty block of reasoning that the template adds is left out, unless the prompt opens it: then it is closed.

    Raises:
        Unusable: as `encode`.
    """
    whole, answer = chat.render(messages), messages[-1]["content"]
    tail = whole.removeprefix(prompt) if whole.startswith(prompt) else _behind_prompt(chat, messages)
    if EMPTY.match(tail) and not EMPTY.match(answer):
        tail = EMPTY.sub("", tail, count=1)
    stops = chat.tokenizer.convert_ids_to_tokens(chat.stops)
    said = f"{answer}\n{messages[-1].get('reasoning_content', '')}\n{messages[-1].get('tool_calls', '')}"
    _check_no_stop(chat, said)
    if not any(stop in tail for stop in stops):
        tail = _if_continued(chat, messages, prompt, tail)
    ends = [tail.index(stop) + len(stop) for stop in stops if stop in tail]
    if not ends:
        raise Unusable("chat template: no stop token (eos) ends the answer, so the model would never learn to stop")
    text = tail[: min(ends)]
    _check_whole(messages[-1], text, prompt)
    return text


def _check_whole(message: dict, text: str, prompt: str) -> None:
    """Raise Unusable if `text`, what is learned as the message, lacks any of it."""
    own, _, said = message["content"].rpartition("</think>")
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), own.rpartition("<think>")[2]).strip()
    if reasoning and CLOSED.search(prompt):
        raise Unusable("chat template: its prompts end the reasoning; model.chat_template_kwargs may open it")
    if reasoning not in text.partition("</think>")[0]:
        raise Unusable("chat template: leaves out the reasoning")
    if said.strip() not in text and json.dumps(said.strip(), ensure_ascii=False)[1:-1] not in text:
        raise Unusable("chat template: leaves out the text of an answer")
    if any(call["function"]["name"] not in text for call in message.get("tool_calls", ())):
        raise Unusable("chat template: leaves out the tool calls")


def _behind_prompt(chat: Chat, messages: Messages) -> str:
    """What follows the prompt where the template renders the prompt otherwise once the answer is there.

    Some put the system prompt into the last message, some drop the reasoning that the prompt opens. What stands between
    the last question and the answer is compared, with a placeholder as the question.
    """
    *before, question, answer = messages
    talk = [*before, question | {"content": MARKS[0]}]
    _, asked, opening = chat.render(talk, prompt=True).rpartition(MARKS[0])
    _, answered, behind = chat.render([*talk, answer]).rpartition(MARKS[0])
    if asked and answered and behind.startswith(opening):
        return behind.removeprefix(opening)
    block = OPENED.search(opening) or CLOSED.search(opening)
    if not (asked and answered and block and behind.startswith(opening[: block.start()])):
        raise Unusable("chat template: the rendered conversation does not start with its prompt")
    behind = behind[block.start() :]
    if CLOSED.search(opening):
        return CLOSING.sub("", behind, count=1) if CLOSING.match(behind) else behind
    if opening := OPENING.match(behind):
        return behind[opening.end() :]
    if CLOSING.match(behind):
        return behind
    behind = behind.lstrip("\n")
    reasoning = REASONING.match(answer["content"])
    return f"{reasoning[1].strip()}\n</think>\n\n{behind}" if reasoning else f"</think>\n\n{behind}"


def _if_continued(chat: Chat, messages: Messages, prompt: str, tail: str) -> str:
    """`tail` and what the template puts between the answer and a further question: some end an answer only there."""
    try:
        whole = chat.render([*messages, {"role": "user", "content": MARKS[0]}])
    except Unusable:
        return tail
    continued = whole.removeprefix(prompt).partition(MARKS[0])[0]
    return continued if whole.startswith(prompt) and continued.startswith(tail.rstrip()) else tail


def _or_none(chat: Chat, messages: Messages, prompt: str) -> str | None:
    try:
        return learned(chat, messages, prompt)
    except Unusable:
        return None


def last_answer_only(messages: Messages) -> Messages:
    """The messages, of which only the last answer is learned."""
    earlier = [message | {"train": False} if message["role"] == "assistant" else message for message in messages[:-1]]
    return [*earlier, messages[-1]]


def truncate(row: Encoded, max_length: int) -> Encoded:
    """The row's first `max_length` tokens, cut behind the last supervised one."""
    labels = row.labels[:max_length]
    while labels and labels[-1] == IGNORED:
        labels.pop()
    return Encoded(row.input_ids[: len(labels)], labels)
