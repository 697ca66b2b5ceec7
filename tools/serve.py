"""serve: one artifact behind llama.cpp's own server, OpenAI-compatible, with its web UI.

python -m tools.serve [--artifact NAME] [--host ADDRESS] [--port NUMBER] [options of llama-server's own]

Whatever asks gets what `evaluate` scored: the same file, the model's own chat template, the recipe's system prompt
where a conversation opens with none. Elsewhere than on loopback it asks for the key in LLAMA_API_KEY.
"""

import argparse

from qlora.llama_cpp.server import loopback
from qlora.recipe.artifacts import PROJECTOR
from qlora.recipe.load import load_params
from qlora.runtime.console import Refusal, run_stage, summary
from tools import serving, web_ui


def main() -> None:
    try:
        serve()
    except KeyboardInterrupt:  # Ctrl-C or SIGTERM: how a server is meant to end
        print("stopped")


def serve() -> None:
    options, more = parse_arguments()
    params = load_params()
    key = serving.check_key(options.host, "LLAMA_API_KEY")  # where llama-server reads it, too
    artifact = options.artifact or serving.default_artifact(params)
    gguf = serving.find_gguf(artifact, params)
    room = serving.room(gguf, params, options.context, options.slots)

    # llama-server asks a key for each file of a UI that it does not hold in itself, and a browser has none to give.
    ui = web_ui.folder() if web_ui.folder().is_dir() and not key else None
    pages = ["--path", ui] if ui else ["--no-ui"]
    vision = ["--mmproj", projector] if (projector := gguf.with_name(PROJECTOR)).is_file() else []
    with serving.serve(artifact, gguf, params, room, options.host, options.port, [*pages, *vision, *more]) as server:
        summary(
            f"serving {artifact}: {gguf}",
            {
                "OpenAI API": f"{server.url}/v1",
                "web UI": server.url if ui else "none: " + ("not behind a key" if key else "`make ui` builds it"),
                "health, metrics": f"{server.url}/health, {server.url}/metrics",
                "at once": f"{room.slots} requests of {room.context:,} tokens ({room.kv_bytes / 1e9:.1f} GB)",
                "system prompt": params.data.system_prompt or "none",
                "key": "LLAMA_API_KEY" if key else "none",
            },
        )
        print("Ctrl-C stops it", flush=True)
        status = server.process.wait()
        raise Refusal(f"llama-server ended with status {status}; it says why above")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description="Serve one artifact, OpenAI-compatible. Further options go to llama-server."
    )
    parser.add_argument("--artifact", help="base, merged, bf16 or a GGUF type; the GGUF to ship by default")
    parser.add_argument("--host", default=loopback(), help="the address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=positive, help="tokens of each request; fitted to the memory")
    parser.add_argument("--slots", type=positive, help="requests answered at once; fitted to the memory")
    return parser.parse_known_args()


if __name__ == "__main__":
    run_stage(main)
