# ruff: noqa: RUF001 (letters that look alike are the point of the samples)
"""The parity check: llama.cpp renders and tokenizes text as transformers does, so serving sees what training saw.

Conversations as the template renders them and ordinary text must be read alike. Rare text that is read otherwise is
noted, and then the rows are checked for such text, too.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora.gguf import tiny_model
from qlora.llama_cpp import tools
from qlora.llama_cpp.scorer import Server
from qlora.recipe.schema import Model
from qlora.rows.chat import Chat, Messages, Unusable, load_chat, load_tokenizer
from qlora.rows.loss_mask import learned
from qlora.runtime.console import Refusal
from qlora.source import tokenizer

from tqdm import tqdm
from transformers import AutoTokenizer

# What tokenizers get wrong: digits, spaces, accents, emoji, code, apostrophes.
# fmt: off
ORDINARY = [
    "0", "42", "1234567890", "3.14159", "1e-05", "2024-02-29", "192.168.0.1", "$1,234.56", "50%", "0x1F", "007",
    "Hello, world!", "don't we've I'LL", "naïve café", "Größe", "ﬁ ligature", "İstanbul", "ß ẞ", "１２３",
    "😀", "👩‍👩‍👧‍👦 👍🏽", "🇩🇪🇯🇵", "→ ≠ ∑ √ ∞", "“quotes” „und“ «so»",
    "two  spaces", "   three", "trailing   ", "\ttab\t\ttabs", "line\nline\n\nline", "\r\nCRLF\r\n", " \n \n\n ",
    "SELECT COUNT(*) FROM t WHERE a >= 10;", 'CREATE TABLE "a b" (id INTEGER, x REAL)', "T1.name = 'O''Brien'",
    "def f(x):\n    return x**2  # ok", "<a href='#'>x</a>", '{"k": [1, 2.5, null]}', "a->b; c::d()", "a/to\\b.txt",
    "snake_case camelCase", "https://example.com/?q=1&r=a%20b#top", "user@example.com", "---\n***\n___", "...!!!",
    "[INST] x [/INST]", "### Human: x### Assistant: y", "<|x|>", "aaaaaaaaaaaaaaaa",
]
# Other scripts, other normal forms of Unicode, characters that are invisible or stand for spaces in vocabularies.
OTHER = [
    "日本語のテキスト", "中文，标点。", "한국어 문장", "Привет, мир", "Γειά σου", "مرحبا بالعالم", "שלום", "नमस्ते",
    "தமிழ்", "বাংলা", "สวัสดี", "ខ្មែរ", "አማርኛ", "Հայերեն", "ქართული", "Tiếng Việt", "e\u0301 é", "\u212b \u1100\u1161",
    "a\u200bb\u00a0c\u2009d", "\ufeffBOM", "</s", "▁ Ġ Ċ", "\x01\x7f",
]
# fmt: on


@dataclass(frozen=True)
class Compared:
    """What was compared.

    Attributes:
        texts, conversations: How many were.
        differing: The other texts (not ordinary ones) that are read otherwise.
        others: How many other texts there were.
    """

    texts: int
    conversations: int
    differing: list[str]
    others: int

    def __str__(self) -> str:
        same = f"{self.texts} texts, {self.conversations} conversations"
        if not self.differing:
            return same
        return f"{same}; not the same: {len(self.differing)} of {self.others} rare ones, such as {self.differing[0]!r}"


def check_before_training(chat: Chat, folder: Path, model: Model) -> Compared:
    """Check the parity of `chat`, the settled tokenizer and template in `folder`, in seconds and without weights.

    llama.cpp's converter writes them into a GGUF of a tiny model with zero weights, which llama-server serves.

    Raises:
        Refusal: if llama.cpp does not know the tokenizer, or reads a conversation or ordinary text otherwise.
    """
    with tiny_server(chat, folder, model) as server:
        try:
            return check(server, chat, [])
        except Refusal as refusal:
            raise Refusal(f"no GGUF can serve the tokenizer of {model.id} as training uses it: {refusal}") from None


def check_rows(chat: Chat, folder: Path, model: Model, rows: Sequence[Messages]) -> None:
    """Raise Refusal, with their share, if llama.cpp reads some of these conversations otherwise; needs no weights."""
    with tiny_server(chat, folder, model) as server:
        _check_rows(server, chat, rows)


@contextmanager
def tiny_server(chat: Chat, folder: Path, model: Model) -> Iterator[Server]:
    """A llama-server with this tokenizer and template as `merge` ships them, and no real weights."""
    with tempfile.TemporaryDirectory() as work:
        shipped, vocabulary, gguf = Path(work) / "shipped", Path(work) / "vocabulary.gguf", Path(work) / "model.gguf"
        shipped.mkdir()
        tokenizer.save(chat, folder, shipped)
        check_shipped(chat, shipped)
        tools.convert_vocabulary(shipped, vocabulary, tokenizer.name_of(model, folder, chat))
        tiny_model.write(vocabulary, gguf)
        with Server(gguf, context=64, slots=1) as server:
            yield server


def check_shipped(chat: Chat, shipped: Path) -> None:
    """Raise Refusal if transformers (and vLLM with it) reads the tokenizer in `shipped` otherwise than training."""
    reloaded, auto = load_chat(shipped), load_tokenizer(shipped, AutoTokenizer)
    if reloaded.tokenizer.chat_template != chat.tokenizer.chat_template or reloaded.stops != chat.stops:
        raise Refusal(f"{shipped}: template or stop tokens are not those that were written")
    for text in ORDINARY:
        rendered = chat.render([{"role": "user", "content": text}], prompt=True)
        if auto(rendered, add_special_tokens=False)["input_ids"] != chat.ids(rendered):
            raise Refusal(
                f"transformers' {type(auto).__name__} reads {text!r} otherwise than tokenizer.json says, and it reads "
                "all models of this architecture, so transformers and vLLM would serve other ids than were trained: "
                "choose another base model"
            )


def check(server: Server, chat: Chat, rows: Sequence[Messages]) -> Compared:
    """Check that the served GGUF tokenizes text and renders conversations exactly as training did.

    Compares the token ids of texts, of prompts as a chat request makes them (with the GGUF's template, then its
    tokenizer and the BOS that it adds; a second BOS is a difference), and of conversations as they are trained.

    Raises:
        Refusal: with the first conversation or ordinary text that differs and both lists of ids; with the share of
            `rows` that differ; or if the server would not stop where an answer ends.
    """
    ordinary = [text for sample in ORDINARY for text in (sample, f" {sample}", f"{sample}\n", f"a{sample}1")]
    specials = [str(token) for token in list(chat.tokenizer.added_tokens_decoder.values())[:32]]
    others = [text for sample in OTHER for text in (sample, f"a{sample}1")]
    others += [text for token in specials for text in (token, f"a{token}b", f"1 {token}\n2")]
    if chat.strips_behind_special:  # rows never begin with white space, and of a request's it is the only difference
        others += [text for text in ordinary if text[0].isspace()]
        ordinary = [text for text in ordinary if not text[0].isspace()]
    talks = conversations(chat)
    with tqdm(total=len(ordinary) + len(talks), desc="same ids as in training", unit="text") as bar:
        for talk in talks:
            for what, trained, served in both_readings(server, chat, talk):
                compare(what, trained, served)
            bar.update()
        for text in ordinary:
            what, trained, served = text_readings(server, chat, text)
            compare(what, trained, served)
            bar.update()
    try:
        *asked, _ = talks[0]
        end = chat.ids(learned(chat, talks[0], chat.render(asked, prompt=True)))[-1]
    except Unusable as error:
        raise Refusal(f"no conversation can be learned: {error}") from None
    if not server.stops_at(end):
        name = chat.tokenizer.convert_ids_to_tokens(end)
        raise Refusal(f"the answers end with {name}, at which llama-server would not stop; choose another base model")
    differing = [text for text in others if len({str(ids) for ids in text_readings(server, chat, text)[1:]}) > 1]
    _check_rows(server, chat, rows)
    return Compared(len(ordinary) + len(others), len(talks) + len(rows), differing, len(others))


def _check_rows(server: Server, chat: Chat, rows: Sequence[Messages]) -> None:
    differing = []
    for messages in tqdm(rows, desc="same ids of rows", unit=" rows"):
        for what, trained, served in both_readings(server, chat, messages):
            if trained != served:
                differing.append(what)
                break
    if differing:
        raise Refusal(
            f"llama.cpp reads {len(differing)} of {len(rows)} rows ({len(differing) / len(rows):.1%}) otherwise than "
            f"training does, such as {differing[0][:200]}: leave them out, or choose another base model"
        )


def conversations(chat: Chat) -> list[Messages]:
    """Conversations of one to three turns; if the template knows a system message, every second one opens with it."""
    system = [{"role": "system", "content": "Answer in one sentence."}]
    try:
        chat.render([*system, {"role": "user", "content": "Why?"}], prompt=True)
    except Unusable:
        system = []
    talks = []
    for at in range(len(ORDINARY)):
        turns = [ORDINARY[(at + turn) % len(ORDINARY)].strip() or "-" for turn in range(2 * (at % 3 + 1))]
        talk = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(turns)]
        talks.append([*system, *talk] if at % 2 else talk)
    return talks


def text_readings(server: Server, chat: Chat, text: str) -> tuple[str, list[int], list[int]]:
    """A name of `text`, its ids in training and its ids as served.

    Inside a conversation: tokenizers may split the start of a text in another way.
    """
    rendered = chat.render([{"role": "user", "content": text}], prompt=True)
    return f"the text {rendered!r}", chat.ids(rendered), server.tokenize(rendered)


def both_readings(server: Server, chat: Chat, messages: Messages) -> Iterator[tuple[str, list[int], list[int]]]:
    """The same of a conversation's prompt, as a chat request makes it, and of the conversation as it is trained.

    A document has no prompt.
    """
    if len(messages) == 1:
        text = chat.render(messages)
        yield f"the document {text!r}", chat.ids(text), server.tokenize(text)
        return
    rendered = chat.render(messages[:-1], prompt=True)
    served = server.apply_template(messages[:-1])
    # The server removes the template's BOS if its tokenizer adds one.
    yield f"the conversation {rendered!r}", chat.ids(rendered), server.tokenize(served, add_special=True)
    try:
        text = rendered + learned(chat, messages, rendered)
    except Unusable:  # prepare-dataset drops such rows
        return
    yield f"the conversation {text!r}", chat.ids(text), server.tokenize(text)


def compare(what: str, trained: list[int], served: list[int]) -> None:
    """Raise Refusal if the two lists of ids differ."""
    if trained != served:
        raise Refusal(
            f"the GGUF does not read {what} as training did\n  training: {trained}\n  served:   {served}\n"
            "so the model would be served other tokens than it learned: its tokenizer or chat template is not one that "
            "llama.cpp supports exactly; choose another base model, or set LLAMA_CPP_DIR to a newer llama.cpp"
        )
