"""convert-gguf: the merged model as a bfloat16 GGUF that renders and tokenizes as in training.

Reads models/merged and training rows; writes models/bf16: model.gguf, imatrix.gguf (the importance matrix, measured on
training rows; unless gguf.imatrix is off) and a Modelfile for Ollama, if one can express the template. quantize-gguf
starts from these.
"""

import shutil
from pathlib import Path

from qlora.gguf import file, modelfile, parity
from qlora.llama_cpp import tools
from qlora.llama_cpp.scorer import Server
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.rows.chat import Chat, Messages, load_chat
from qlora.rows.prepared import evenly
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import check_disk, new_folder, write_text
from qlora.weights.files import weights_bytes

from transformers import AutoConfig, PretrainedConfig

CHUNK_TOKENS = 512  # of the importance matrix, llama-imatrix's default


def main() -> None:
    params = load_params()
    settings, merged, bf16 = params.gguf, ARTIFACTS["merged"].folder, ARTIFACTS["bf16"]
    tools.find()
    chat = load_chat(merged)
    config = AutoConfig.from_pretrained(merged)
    rows = [row["messages"] for row in evenly("train", settings.imatrix_rows)]
    check_disk("the GGUF", weights_bytes(merged), merged)

    with new_folder(bf16.folder) as folder:
        gguf = folder / bf16.gguf.name
        tools.convert(merged, gguf)
        contents = file.check_converted(gguf, config, chat.tokenizer)
        with Server(gguf, context=256, slots=1) as server:
            texts, conversations = parity.check(server, chat, rows)
        if settings.imatrix:
            measure_importance(gguf, chat, rows, folder / "imatrix.gguf")
        shutil.copy(merged / BASE_RECORD, folder)
        ollama = write_modelfile(folder / modelfile.NAME, chat, contents, config, params)

    summary(
        "convert-gguf",
        {
            "file": f"{bf16.gguf}, {contents.size / 1e9:.2f} GB, {contents.architecture}",
            "tensors": f"{len(contents.shapes)}: {file.describe_types(contents)}",
            "same ids as in training": f"{texts} texts, {conversations} conversations",
            "importance matrix": f"{len(rows)} training rows" if settings.imatrix else "off",
            "Ollama": ollama,
        },
    )


def write_modelfile(path: Path, chat: Chat, contents: file.Contents, config: PretrainedConfig, params: Params) -> str:
    """Write the Modelfile unless Ollama cannot express the template; say which."""
    try:
        text = modelfile.write(
            chat,
            contents.adds_bos,
            params.data.system_prompt,
            config.get_text_config().max_position_embeddings,
            greedy=params.data.task == "text-to-sql",
        )
    except modelfile.Inexpressible as reason:
        return f"no Modelfile: {reason}"
    write_text(path, text)
    return "Modelfile"


def measure_importance(gguf: Path, chat: Chat, rows: list[Messages], matrix: Path) -> None:
    """Write the importance matrix of the rendered training rows (never of rows that are scored later)."""
    text = "".join(chat.render(messages) for messages in rows)
    tokens = len(chat.ids(text))
    rendered = matrix.with_suffix(".txt")
    rendered.write_text(text, encoding="utf-8")
    # llama-imatrix needs two chunks of text. Where two rows meet it may count a token less.
    tools.imatrix(gguf, rendered, matrix, context=min(CHUNK_TOKENS, (tokens - len(rows)) // 2))
    rendered.unlink()


if __name__ == "__main__":
    run_stage(main)
