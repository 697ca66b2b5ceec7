# ruff: noqa: RUF001 (letters that look alike are the point of the samples)
"""The parity check: llama.cpp renders and tokenizes text as transformers does, so serving sees what training saw."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from qlora.llama_cpp import tools
from qlora.llama_cpp.scorer import Server
from qlora.rows.chat import Chat, Messages, load_chat
from qlora.runtime.console import Refusal

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

# What tokenizers get wrong: digits, spaces, scripts, emoji, code, apostrophes, control characters.
# fmt: off
SAMPLES = [
    "0", "42", "1234567890", "3.14159", "1e-05", "2024-02-29", "192.168.0.1", "$1,234.56", "50%", "0x1F", "007",
    "Hello, world!", "don't we've I'LL", "naïve café", "Größe", "ﬁ ligature", "e\u0301 é", "İstanbul", "ß ẞ", "１２３",
    "日本語のテキスト", "中文，标点。", "한국어 문장", "Привет, мир", "Γειά σου", "مرحبا بالعالم", "שלום",
    "नमस्ते", "สวัสดี",
    "😀", "👩‍👩‍👧‍👦 👍🏽", "🇩🇪🇯🇵", "→ ≠ ∑ √ ∞", "“quotes” „und“ «so»", "a\u200bb\u00a0c\u2009d", "\ufeffBOM",
    "two  spaces", "   three", "trailing   ", "\ttab\t\ttabs", "line\nline\n\nline", "\r\nCRLF\r\n", " \n \n\n ",
    "SELECT COUNT(*) FROM t WHERE a >= 10;", 'CREATE TABLE "a b" (id INTEGER, x REAL)', "T1.name = 'O''Brien'",
    "def f(x):\n    return x**2  # ok", "<a href='#'>x</a>", '{"k": [1, 2.5, null]}', "a->b; c::d()", "a/to\\b.txt",
    "snake_case camelCase", "https://example.com/?q=1&r=a%20b#top", "user@example.com", "---\n***\n___", "...!!!",
    "[INST] x [/INST]", "### Human: x### Assistant: y", "</s", "<|x|>", "▁ Ġ Ċ", "\x01\x7f", "aaaaaaaaaaaaaaaa",
]
# fmt: on


def check_before_training(folder: Path) -> None:
    """Check the parity of the tokenizer and template in `folder`, in seconds and without weights.

    llama.cpp's converter writes them into a GGUF of a tiny model with zero weights, which llama-server serves.

    Raises:
        Refusal: if llama.cpp does not know the tokenizer, or tokenizes or renders anything differently.
    """
    chat = load_chat(folder)
    with tempfile.TemporaryDirectory() as work:
        vocabulary, model = Path(work) / "vocabulary.gguf", Path(work) / "model.gguf"
        tools.convert_vocabulary(folder, vocabulary)
        write_tiny_model(vocabulary, model)
        try:
            with Server(model, context=64, slots=1) as server:
                check(server, chat, [])
        except Refusal as refusal:
            raise Refusal(f"no GGUF can serve the tokenizer in {folder} as training uses it: {refusal}") from None


def check(server: Server, chat: Chat, rows: Iterable[Messages]) -> tuple[int, int]:
    """Check that the served GGUF tokenizes text and renders conversations exactly as training did.

    Compares the token ids of texts, and of whole conversations and their prompts as a chat request makes them: with the
    GGUF's template, then its tokenizer and the BOS that it adds. A second BOS is a difference.

    Returns:
        How many texts and conversations were compared.

    Raises:
        Refusal: with the first text that differs and both lists of ids.
    """
    texts = sample_texts(chat.tokenizer)
    samples = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in SAMPLES]
    conversations = [*rows, *samples]
    with tqdm(total=len(texts) + len(conversations), desc="same ids as in training", unit="text") as bar:
        for text in texts:
            # Inside a conversation: tokenizers may split the start of a text in another way.
            rendered = chat.render([{"role": "user", "content": text}], prompt=True)
            compare(f"the text {rendered!r}", chat.ids(rendered), server.tokenize(rendered))
            bar.update()
        for messages in conversations:
            for part, prompt in ((messages, False), (messages[:-1], True)):
                rendered = chat.render(part, prompt=prompt)
                served = server.apply_template(part, add_generation_prompt=prompt)
                # The server removes the template's BOS if its tokenizer adds one.
                ids = chat.ids(rendered)
                compare(f"the conversation {rendered!r}", ids, server.tokenize(served, add_special=True))
            bar.update()
    return len(texts), len(conversations)


def sample_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """At least 200 texts: `SAMPLES` alone and joined to letters, digits, spaces and the tokenizer's special tokens."""
    texts = [text for sample in SAMPLES for text in (sample, f" {sample}", f"{sample}\n", f"a{sample}1")]
    specials = [str(token) for token in list(tokenizer.added_tokens_decoder.values())[:32]]
    return texts + [text for token in specials for text in (token, f"a{token}b", f"1 {token}\n2")]


def compare(what: str, trained: list[int], served: list[int]) -> None:
    """Raise Refusal if the two lists of ids differ."""
    if trained != served:
        raise Refusal(
            f"the GGUF does not read {what} as training did\n  training: {trained}\n  served:   {served}\n"
            "so the model would be served other tokens than it learned: its tokenizer or chat template is not one that "
            "llama.cpp supports exactly; choose another base model, or set LLAMA_CPP_DIR to a newer llama.cpp"
        )


def write_tiny_model(vocabulary: Path, model: Path) -> None:
    """Write a GGUF that serves the tokenizer and template in `vocabulary`: one Llama layer of width 32, all zero."""
    reader = GGUFReader(vocabulary)
    writer = GGUFWriter(model, "llama")
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(
                field.name, field.contents(), kind, field.types[1] if kind == GGUFValueType.ARRAY else None
            )
    width = 32
    tokens = len(reader.get_field("tokenizer.ggml.tokens").data)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (tokens, width), "output_norm": (width,), "blk.0.attn_norm": (width,)}
    shapes |= {"blk.0.ffn_norm": (width,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}"] = (width, width)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
