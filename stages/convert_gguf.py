"""convert-gguf: the merged model as a bfloat16 GGUF, checked to read, render and tokenize as in training.

Reads models/merged and data/prepared/train.jsonl; writes models/bf16 (model.gguf; unless gguf.imatrix is off,
imatrix.gguf, measured on training rows; and an Ollama Modelfile, if one can be written). Quantizing starts from these.
"""

import json
import shutil
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from qlora.gguf import file as gguf_file
from qlora.gguf import modelfile, parity
from qlora.llama_cpp import tools as llama_cpp
from qlora.llama_cpp.server import Server
from qlora.recipe.params import Params, load_params
from qlora.rows import chat, jsonl
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder, write_text
from qlora.source import base_model

MERGED = Path("models/merged")
TRAIN = Path("data/prepared/train.jsonl")
OUTPUT = Path("models/bf16")
CONTEXT = 512  # tokens a chunk for the importance matrix, llama-imatrix's default


def main() -> None:
    params = load_params()
    settings = params.gguf
    llama_cpp.find()
    tokenizer = AutoTokenizer.from_pretrained(MERGED)
    config = AutoConfig.from_pretrained(MERGED)
    rows = [json.loads(line)["messages"] for line in jsonl.evenly(TRAIN, settings.imatrix_rows)]
    needed, free = base_model.weights_bytes(MERGED), shutil.disk_usage(MERGED).free
    if free < needed:
        raise Refusal(f"the GGUF needs {needed / 1e9:.1f} GB beside {MERGED}, and {free / 1e9:.1f} GB are free")

    with new_folder(OUTPUT) as folder:
        gguf = folder / "model.gguf"
        llama_cpp.convert(MERGED, gguf)
        contents = gguf_file.check_converted(gguf, config, tokenizer)
        with Server(gguf, context=256, slots=1) as server:
            texts, conversations = parity.check(server, tokenizer, rows)
        if settings.imatrix:
            measure_importance(gguf, tokenizer, rows, folder / "imatrix.gguf")
        shutil.copy(MERGED / base_model.RECORD, folder)
        ollama = write_modelfile(gguf, tokenizer, config, params)

    summary(
        "convert-gguf",
        {
            "file": f"{OUTPUT / 'model.gguf'}, {contents.size / 1e9:.2f} GB, {contents.architecture}",
            "tensors": f"{len(contents.shapes)}: {gguf_file.describe_types(contents)}",
            "same ids as in training": f"{texts} texts, {conversations} conversations",
            "importance matrix": f"{len(rows)} training rows" if settings.imatrix else "off",
            "Ollama": ollama,
        },
    )


def write_modelfile(gguf: Path, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, params: Params) -> str:
    """Write the Modelfile beside `gguf`, or no file where Ollama cannot render the template; says which."""
    try:
        text = modelfile.write(
            tokenizer,
            chat.stop_ids(tokenizer, MERGED),
            gguf_file.read(gguf).adds_bos,
            params.data.system_prompt,
            config.get_text_config().max_position_embeddings,
            greedy=params.data.task == "text-to-sql",
        )
    except modelfile.NotOfThisForm as reason:
        return f"no Modelfile: {reason}"
    write_text(gguf.with_name(modelfile.NAME), text)
    return "Modelfile"


def measure_importance(
    gguf: Path, tokenizer: PreTrainedTokenizerBase, rows: list[list[dict[str, str]]], matrix: Path
) -> None:
    """Write the importance matrix of the rendered training rows (never of rows that are scored later)."""
    text = "".join(chat.render(tokenizer, messages) for messages in rows)
    tokens = len(chat.encode_text(tokenizer, text))
    rendered = matrix.with_suffix(".txt")
    rendered.write_text(text, encoding="utf-8")
    # The tool wants two contexts of text; where two rows meet it may count a token less.
    llama_cpp.imatrix(gguf, rendered, matrix, context=min(CONTEXT, (tokens - len(rows)) // 2))
    rendered.unlink()


if __name__ == "__main__":
    run_stage(main)
