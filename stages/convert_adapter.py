"""convert-adapter: the adapter as a GGUF that llama-server applies to the base model's (--lora).

Reads models/adapter and training rows; writes models/adapter-gguf: model.gguf. The base model's GGUF is converted once
into a per-user cache, and serves any number of adapters at a time. It has the original weights, and the adapter was
trained on the same in 4 bits: `evaluate` says what that costs.
"""

import json
import shutil
import tempfile
from pathlib import Path

from qlora.gguf import base_gguf, file, parity
from qlora.llama_cpp import tools
from qlora.llama_cpp.scorer import Server
from qlora.recipe.artifacts import ADAPTER_GGUF, ARTIFACTS, BASE_RECORD
from qlora.rows.prepared import evenly
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model
from qlora.weights.made import check_made

from safetensors import safe_open

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them
ROWS = 64  # training rows that must be tokenized as in training


def main() -> None:
    adapter, output = ARTIFACTS["adapter"], ARTIFACTS[ADAPTER_GGUF]
    check_made(adapter)
    tools.find()
    base = base_model.locate(adapter.folder)
    chat = base_model.load_chat(adapter.folder)
    rows = [row["messages"] for row in evenly("train", ROWS)]
    base_file = base_gguf.converted(adapter.folder)

    with new_folder(output.folder) as folder:
        gguf = folder / output.gguf.name
        pairs = convert(adapter.folder, base, gguf)
        with Server(base_file, context=256, slots=1, lora=gguf) as server:
            compared = parity.check(server, chat, rows)
        shutil.copy(adapter.folder / BASE_RECORD, folder)

    summary(
        "convert-adapter",
        {
            "file": f"{output.gguf}, {output.gguf.stat().st_size / 1e6:.1f} MB",
            "adapts": f"{pairs} tensors of {base_file}",
            "same ids as in training": compared,
        },
    )


def convert(adapter: Path, base: Path, gguf: Path) -> int:
    """Convert the adapter in the folder `adapter` and check that nothing was left out; the number of adapted tensors.

    Raises:
        Refusal: if it has what llama.cpp does not apply.
    """
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    if config.get("target_parameters"):
        raise Refusal(
            "gguf.adapters: llama.cpp applies no adapter of experts; set it to [], and serve the merged model"
        )
    with safe_open(adapter / WEIGHTS, "pt") as tensors:
        names = list(tensors.keys())
        type_ = "bf16" if {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"} else "f32"
    # llama.cpp scales by alpha / r; with rsLoRA PEFT scales by alpha / sqrt(r).
    alpha = config["lora_alpha"] * (config["r"] ** 0.5 if config["use_rslora"] else 1)
    with tempfile.TemporaryDirectory() as work:
        write_json(Path(work) / CONFIG, config | {"lora_alpha": alpha})
        (Path(work) / WEIGHTS).symlink_to((adapter / WEIGHTS).resolve())
        tools.convert_adapter(Path(work), base, gguf, type_)
    return file.check_adapter(gguf, len(names), alpha)


if __name__ == "__main__":
    run_stage(main)
