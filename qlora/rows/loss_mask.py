"""The loss mask: which tokens of a conversation have loss.

Those are the assistant's answers, each from its first token to its stop token. Prompts have no loss, nor has what the
template puts behind a stop token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qlora.rows.chat import Chat, Messages, Unusable

IGNORED = -100  # the label of a position without loss (torch.nn.CrossEntropyLoss)


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
        return sum(label != IGNORED for label in self.labels)

    @property
    def prompt_length(self) -> int:
        """Tokens before the last supervised run: the prompt of the last answer."""
        end = len(self.labels)
        while end and self.labels[end - 1] != IGNORED:
            end -= 1
        return end


def encode(chat: Chat, messages: Messages) -> Encoded:
    """Token ids and loss mask of a conversation.

    An answer's span in the text is where the renderings with and without it differ, so any template works, whether or
    not it marks answers for training.

    Raises:
        Unusable: if the last message is not the assistant's, if the template rewrites earlier turns, if the prompt's
            ids are not the start of the conversation's (a token that spans both), or if no stop token ends the answer.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    text = chat.render(messages)
    encoding = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    labels = [IGNORED] * len(ids)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in answers:
        prompt = chat.render(messages[:i], prompt=True)
        start, end = len(prompt), len(chat.render(messages[: i + 1]))
        if not text.startswith(prompt):
            if i == answers[-1]:
                raise Unusable("chat template: the rendered conversation does not start with its prompt")
            continue  # some templates shorten earlier turns (drop their reasoning): learn the last answer only
        inside = [at for at, (begin, stop) in enumerate(offsets) if start <= begin < end and stop > begin]
        stopped = [at for at in inside if ids[at] in chat.stops]
        if not stopped:
            raise Unusable("chat template: no stop token (eos) ends the answer, so the model would never learn to stop")
        for at in range(inside[0], stopped[-1] + 1):
            labels[at] = ids[at]
    end = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
    encoded = Encoded(ids[:end], labels[:end])  # nothing is learned from what follows
    if ids[: encoded.prompt_length] != chat.prompt_ids(messages[:-1]):
        raise Unusable("tokenizer: a token spans the end of the prompt and the start of the answer")
    return encoded


def truncate(row: Encoded, max_length: int) -> Encoded:
    """The row's first `max_length` tokens, cut behind the last supervised one."""
    labels = row.labels[:max_length]
    while labels and labels[-1] == IGNORED:
        labels.pop()
    return Encoded(row.input_ids[: len(labels)], labels)
