"""serve_vllm: the merged model, one of vllm.types, or the adapter over the base model, behind vLLM, OpenAI-compatible.

python -m tools.serve_vllm [--artifact NAME] [--host ADDRESS] [--port NUMBER] [options of vLLM's own]

vLLM pins other packages than the pipeline, so it lives in an environment of its own (`make serve-vllm` makes
.venv-vllm). Template, system prompt, stop tokens and who may ask are as `tools.serve` has them. With the adapter, vLLM
serves two models: `adapter`, and `base` without it. `--lora-modules adapter=models/adapter NAME=FOLDER` adds another.
"""

import argparse
import os
import tempfile
from pathlib import Path

from qlora.gguf.modelfile import CONTEXT
from qlora.llama_cpp import server as llama_server
from qlora.recipe.artifacts import ARTIFACTS, VLLM_TYPES, Artifact
from qlora.recipe.load import load_params
from qlora.rows.chat import load_chat
from qlora.runtime import machine
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.inputs import read_json
from qlora.source import base_model
from qlora.weights.made import check_made
from tools import serving

from transformers import AutoConfig

ENVIRONMENT = Path(".venv-vllm")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


def main() -> None:
    try:
        serve()
    except KeyboardInterrupt:  # how a server is meant to end
        print("stopped")


def serve() -> None:
    parser = argparse.ArgumentParser(description="Serve a model with vLLM. Further options go to vLLM.")
    parser.add_argument("--artifact", default="merged", choices=["merged", "adapter", *VLLM_TYPES])
    parser.add_argument("--host", default=llama_server.loopback(), help="the address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    options, more = parser.parse_known_args()
    params = load_params()
    key = serving.check_key(options.host, "VLLM_API_KEY")
    llama_server.free_port(options.host, options.port)
    artifact = ARTIFACTS[options.artifact]
    is_adapter = artifact.name == "adapter"
    check_made(artifact)
    folder = base_model.locate(artifact.folder) if is_adapter else artifact.folder
    python = ENVIRONMENT / "bin/python"
    if not python.exists():
        raise Refusal(f"there is no {ENVIRONMENT}: run `make serve-vllm`, which makes it")

    length = AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
    chat = base_model.load_chat(artifact.folder) if is_adapter else load_chat(folder)
    template = chat.tokenizer.get_chat_template()  # from whichever file holds it
    with tempfile.TemporaryDirectory() as work:
        jinja = Path(work) / "chat_template.jinja"
        jinja.write_text(serving.with_system_prompt(template, params.data.system_prompt), encoding="utf-8")
        settings = {
            "--model": folder,
            "--host": options.host,
            "--port": options.port,
            "--served-model-name": "base" if is_adapter else artifact.name,
            "--chat-template": jinja,
            "--max-model-len": min(CONTEXT, length),
        }
        if params.data.task == "text-to-sql":  # greedy, as in `evaluate`, unless a request says otherwise
            settings["--override-generation-config"] = '{"temperature": 0}'
        if is_adapter:
            more = [*adapter_options(artifact), *more]
        # Not `vllm serve`: the package for CPUs has another name, which that command stumbles over.
        arguments = [part for pair in settings.items() for part in pair]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *arguments, *more]
        quiet = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # nothing leaves the machine
        process = machine.start([str(part) for part in command], quiet, start_new_session=True)
        url = llama_server.url(options.host, options.port)
        summary(
            f"serving {artifact.folder} with vLLM",
            {
                "OpenAI API": f"{url}/v1 (model: {options.artifact})",
                "health, metrics": f"{url}/health, {url}/metrics",
                "system prompt": params.data.system_prompt or "none",
                "key": "VLLM_API_KEY" if key else "none",
            },
        )
        print("It is ready when it says `Application startup complete`; Ctrl-C stops it", flush=True)
        try:
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        raise Refusal(f"vllm ended with status {status}; it says why above")


def adapter_options(artifact: Artifact) -> list[str]:
    """vLLM's options to serve an adapter under its name, beside the base model without it."""
    rank = read_json(artifact.folder / "adapter_config.json", artifact.stage)["r"]
    if rank > RANKS[-1]:
        raise Refusal(f"vLLM serves adapters of a rank up to {RANKS[-1]}, and lora.r is {rank}: serve merged")
    room = next(size for size in RANKS if size >= rank)
    return ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", f"{artifact.name}={artifact.folder}"]


if __name__ == "__main__":
    run_stage(main)
