"""convert-gguf: the merged model as a bfloat16 GGUF that renders and tokenizes as in training.

Reads models/merged and training rows; writes models/bf16: model.gguf, imatrix.gguf (the importance matrix, measured on
training rows; unless gguf.imatrix is off), sensitivity.json (what each type of each tensor costs; if gguf.sensitivity
is on), a Modelfile for Ollama, if one can express the template, mmproj.gguf (the untouched vision tower, if the model
has one). quantize-gguf starts from these.
"""

import itertools
import shutil
from pathlib import Path

from qlora.gguf import file, fit, modelfile, parity
from qlora.llama_cpp import tools
from qlora.llama_cpp.scorer import Server
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, PROJECTOR
from qlora.recipe.load import load_params
from qlora.recipe.schema import EMBEDDED_SOURCE, Params
from qlora.rows.chat import Chat, Messages, load_chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import encode_rows, evenly, rows_of
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import check_disk, new_folder, write_json, write_text
from qlora.source import base_model
from qlora.source.tokenizer import name_of
from qlora.weights import tower
from qlora.weights.files import weights_bytes
from qlora.weights.made import check_made

import torch
from transformers import AutoConfig, PretrainedConfig

CALLING_ROWS = 8
METADATA = "metadata.json"
CHUNK_TOKENS = 512  # of the importance matrix, llama-imatrix's default


def main() -> None:
    params = load_params()
    settings, merged, bf16 = params.gguf, ARTIFACTS["merged"].folder, ARTIFACTS["bf16"]
    check_made(ARTIFACTS["merged"])
    tools.find()
    chat = load_chat(merged)
    config = AutoConfig.from_pretrained(merged)
    rows = [row["messages"] for row in evenly("train", settings.imatrix_rows)]
    calling = rows_with_tools()
    check_disk("the GGUF", weights_bytes(merged), merged)

    with new_folder(bf16.folder) as folder:
        gguf = folder / bf16.gguf.name
        write_json(folder / METADATA, metadata(merged, params))
        tools.convert(merged, gguf, name_of(base_model.recorded(merged), merged, chat), folder / METADATA)
        (folder / METADATA).unlink()
        contents = file.check_converted(gguf, config, chat.tokenizer)
        with Server(gguf, context=256, slots=1) as server:
            compared = parity.check(server, chat, [*rows, *calling])
        if settings.imatrix:
            measure_importance(gguf, chat, rows, folder / "imatrix.gguf")
        if settings.sensitivity:
            encoded = list(encode_rows([{"messages": row} for row in rows], chat, params.train.max_length))
            measure_sensitivity(merged, contents, encoded, folder)
        vision = convert_vision(merged, folder / PROJECTOR)
        shutil.copy(merged / BASE_RECORD, folder)
        ollama = write_modelfile(folder / modelfile.NAME, chat, contents, config, params)

    if calling and ollama == "Modelfile":
        ollama = "Modelfile, for requests without tools: Ollama writes those in its own way, so use llama-server"

    summary(
        "convert-gguf",
        {
            "file": f"{bf16.gguf}, {contents.size / 1e9:.2f} GB, {contents.architecture}",
            "tensors": f"{len(contents.shapes)}: {file.describe_types(contents)}",
            "same ids as in training": compared,
            "importance matrix": f"{len(rows)} training rows" if settings.imatrix else "off",
            "sensitivity": f"{len(rows)} training rows" if settings.sensitivity else "off",
            "Ollama": ollama,
            "vision": vision,
        },
    )


def rows_with_tools() -> list[Messages]:
    """The first training rows with tools or calls, which the rows for the matrix may lack."""
    rows = (row["messages"] for row in rows_of("train"))
    calling = (messages for messages in rows if any({"tools", "tool_calls"} & message.keys() for message in messages))
    return list(itertools.islice(calling, CALLING_ROWS))


def metadata(merged: Path, params: Params) -> dict:
    """What LM Studio and other programs show of the file: licence, base model, what made it."""
    model, licence = base_model.recorded(merged), base_model.licence(merged)
    name = EMBEDDED_SOURCE if model.is_embedded else model.id
    organization, _, short = name.rpartition("/")
    source = {"name": short, "organization": organization, "repo_url": f"https://huggingface.co/{name}"}
    return {
        "general.finetune": params.data.task,
        "general.quantized_by": f"llama.cpp of llama-cpp-python {tools.VERSION}",
        "general.tags": ["qlora", params.data.task],
        **({"general.license": licence} if licence else {}),
        **({} if model.is_local else {"general.base_models": [source]}),
    }


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


def convert_vision(merged: Path, projector: Path) -> str:
    """Write the vision tower of a multimodal model as llama.cpp takes it; say whether there is one."""
    if not tower.is_tower(merged):
        return "none: the model has no other tower than its text's"
    try:
        tools.convert_projector(merged, projector)
    except Refusal as refusal:  # llama.cpp serves the text without it
        projector.unlink(missing_ok=True)
        return f"not converted, the GGUF is for text only: {str(refusal).splitlines()[-1]}"
    return projector.name


def measure_importance(gguf: Path, chat: Chat, rows: list[Messages], matrix: Path) -> None:
    """Write the importance matrix of the rendered training rows (never of rows that are scored later)."""
    text = "".join(chat.render(messages) for messages in rows)
    tokens = len(chat.ids(text))
    rendered = matrix.with_suffix(".txt")
    rendered.write_text(text, encoding="utf-8")
    # llama-imatrix needs two chunks of text. Where two rows meet it may count a token less.
    tools.imatrix(gguf, rendered, matrix, context=min(CHUNK_TOKENS, (tokens - len(rows)) // 2))
    rendered.unlink()


def measure_sensitivity(merged: Path, contents: file.Contents, rows: list[Encoded], folder: Path) -> None:
    """Write what each type of each tensor of `folder`/model.gguf costs in bytes and in KL divergence."""
    from qlora.gguf import sensitivity  # with the model's loading, which only this needs
    from qlora.weights import loading

    model = loading.load_plain(merged, torch.bfloat16)
    found = sensitivity.by_tensor(sensitivity.measure(model, rows), contents)
    del model
    matrix = folder / "imatrix.gguf"
    table = fit.tabulate(
        folder / ARTIFACTS["bf16"].gguf.name,
        matrix if matrix.is_file() else None,
        lambda plain, quantized: sensitivity.divergence(plain, quantized, found),
    )
    fit.write_table(folder / fit.TABLE, table)


if __name__ == "__main__":
    run_stage(main, __doc__)
