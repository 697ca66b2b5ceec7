"""A tokenizer of bytes for the chat templates of real models: it has their special tokens, and no vocabulary."""

from qlora.rows.chat import Chat, Messages
from qlora.rows.fitted import fitted
from qlora.rows.loss_mask import IGNORED, encode

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def chat(template: str, *stops: str) -> Chat:
    """The template with `stops`, the special tokens that end its answers."""
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<pad>", "<bos>", *stops], initial_alphabet=alphabet)
    bytes_.train_from_iterator(["a"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, bos_token="<bos>", eos_token=stops[0], pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return Chat(tokenizer, [tokenizer.convert_tokens_to_ids(stop) for stop in stops], 0)


def learned(chat: Chat, messages: Messages) -> list[str]:
    """The text of each run of tokens with loss."""
    labels, runs, run = encode(chat, fitted(chat, messages)).labels, [], []
    for label in [*labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            runs.append(chat.tokenizer.decode(run))
            run = []
    return runs
