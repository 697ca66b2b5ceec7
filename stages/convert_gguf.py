# ruff: noqa: RUF001 (letters that look alike are the point of the samples)
"""convert-gguf: the merged model as a bfloat16 GGUF, checked to read, render and tokenize as in training.

Reads models/merged and data/prepared/train.jsonl; writes models/bf16 (model.gguf and, unless gguf.imatrix is off,
imatrix.gguf, measured on training rows). Quantizing starts from these.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from stages import base_model, chat, gguf_file, llama_cpp
from stages.console import Refusal, run_stage, summary
from stages.outputs import new_folder
from stages.params import load_params

MERGED = Path("models/merged")
TRAIN = Path("data/prepared/train.jsonl")
OUTPUT = Path("models/bf16")
CONTEXT = 512  # tokens a chunk for the importance matrix, llama-imatrix's default

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


def main() -> None:
    settings = load_params().gguf
    llama_cpp.find()
    tokenizer = AutoTokenizer.from_pretrained(MERGED)
    config = AutoConfig.from_pretrained(MERGED)
    rows = [json.loads(line)["messages"] for line in evenly(TRAIN, settings.imatrix_rows)]
    needed, free = base_model.weights_bytes(MERGED), shutil.disk_usage(MERGED).free
    if free < needed:
        raise Refusal(f"the GGUF needs {needed / 1e9:.1f} GB beside {MERGED}, and {free / 1e9:.1f} GB are free")

    with new_folder(OUTPUT) as folder:
        gguf = folder / "model.gguf"
        llama_cpp.convert(MERGED, gguf)
        contents = gguf_file.check_converted(gguf, config, tokenizer)
        with llama_cpp.Server(gguf, context=256, slots=1) as server:
            texts, conversations = check_parity(server, tokenizer, rows)
        if settings.imatrix:
            measure_importance(gguf, tokenizer, rows, folder / "imatrix.gguf")
        shutil.copy(MERGED / base_model.RECORD, folder)

    summary(
        "convert-gguf",
        {
            "file": f"{OUTPUT / 'model.gguf'}, {contents.size / 1e9:.2f} GB, {contents.architecture}",
            "tensors": f"{len(contents.shapes)}: {gguf_file.describe_types(contents)}",
            "same ids as in training": f"{texts} texts, {conversations} conversations",
            "importance matrix": f"{len(rows)} training rows" if settings.imatrix else "off",
        },
    )


def evenly(path: Path, count: int) -> Iterator[str]:
    """At most `count` lines of the file, evenly spaced over it; the file is never held in memory."""
    with path.open(encoding="utf-8") as file:
        lines = sum(1 for _ in file)
        file.seek(0)
        picked = {i * lines // count for i in range(count)}
        yield from (line for i, line in enumerate(file) if i in picked)


def check_parity(
    server: llama_cpp.Server, tokenizer: PreTrainedTokenizerBase, rows: Iterable[list[dict[str, str]]]
) -> tuple[int, int]:
    """Check that the served GGUF splits text and renders conversations exactly as training did.

    Compared are ids: of texts, and of whole conversations and their prompts through the route that a chat request
    takes (the GGUF's template, then the tokenizer with the BOS it adds): a second BOS is a difference.

    Returns:
        How many texts and conversations were compared.

    Raises:
        Refusal: with the first text that differs and both lists of ids.
    """
    texts = sample_texts(tokenizer)
    samples = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in SAMPLES]
    conversations = [*rows, *samples]
    with tqdm(total=len(texts) + len(conversations), desc="same ids as in training", unit="text") as bar:
        for text in texts:
            compare(f"the text {text!r}", chat.encode_text(tokenizer, text), server.tokenize(text))
            bar.update()
        for messages in conversations:
            for part, prompt in ((messages, False), (messages[:-1], True)):
                rendered = chat.render(tokenizer, part, prompt=prompt)
                served = server.apply_template(part, add_generation_prompt=prompt)
                # The server leaves out a BOS of the template that its tokenizer adds.
                ids = chat.encode_text(tokenizer, rendered)
                compare(f"the conversation {rendered!r}", ids, server.tokenize(served, add_special=True))
            bar.update()
    return len(texts), len(conversations)


def sample_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """At least 200 texts: `SAMPLES` alone and joined to letters, digits, spaces and the tokenizer's special tokens."""
    texts = [text for sample in SAMPLES for text in (sample, f" {sample}", f"{sample}\n", f"a{sample}1")]
    specials = [str(token) for token in list(tokenizer.added_tokens_decoder.values())[:32]]
    return texts + [text for token in specials for text in (token, f"a{token}b", f"1 {token}\n2")]


def compare(what: str, trained: list[int], served: list[int]) -> None:
    """Raises `Refusal` if the two lists of ids differ."""
    if trained != served:
        raise Refusal(
            f"the GGUF does not read {what} as training did\n  training: {trained}\n  served:   {served}\n"
            f"so the served model would see other tokens than it learned: compare the tokenizer and chat template in "
            f"{MERGED} with those of the base model (llama.cpp may not support this tokenizer exactly)"
        )


def measure_importance(
    gguf: Path, tokenizer: PreTrainedTokenizerBase, rows: list[list[dict[str, str]]], matrix: Path
) -> None:
    """Write the importance matrix of the rendered training rows (never of rows that are scored later)."""
    text = "".join(chat.render(tokenizer, messages) for messages in rows)
    tokens = len(chat.encode_text(tokenizer, text))
    rendered = matrix.with_suffix(".txt")
    rendered.write_text(text, encoding="utf-8")
    llama_cpp.imatrix(gguf, rendered, matrix, context=min(CONTEXT, tokens // 2))
    rendered.unlink()


if __name__ == "__main__":
    run_stage(main)
