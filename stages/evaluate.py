"""evaluate --artifact NAME: let one artifact answer the held-out rows, and score the gold answers.

Every artifact gets the same prompts as the same token ids, decodes greedily and is scored by the same code.
transformers answers for base, adapter, merged and vLLM types, sharing the rows among all visible GPUs; llama-server
answers for GGUFs, as when they are served.

Writes results/answers/NAME.jsonl (each row's answer and scores), NAME.json (the metrics that need no verdict) and
NAME.npz (the most probable tokens at each position of the gold answers). `judge` judges the answers.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from qlora.gguf import base_gguf
from qlora.llama_cpp import tools
from qlora.processes import group, launch
from qlora.recipe.artifacts import ADAPTER_GGUF, Artifact, find
from qlora.recipe.load import load_params
from qlora.rows import jsonl, prepared
from qlora.rows.chat import Chat
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.environment import environment, in_words, versions
from qlora.runtime.outputs import check_writable, write_json
from qlora.scoring import llama_run, top_tokens, transformers_run
from qlora.scoring.results import Results, language_metrics, records
from qlora.source import base_model
from qlora.weights.files import weights_bytes
from qlora.weights.made import check_made

import torch

ANSWERS = Path("results/answers")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")  # whose versions are recorded beside the scores
TIMEOUT = timedelta(days=1)  # barrier timeout for processes that finish early; crashes end all of them at once


def main() -> None:
    # Settings
    artifact, processes = parse_arguments()
    params = load_params()
    check_made(artifact)
    check_writable(ANSWERS)
    base = base_model.locate(artifact.folder)
    chat = base_model.load_chat(artifact.folder)
    rows = prepared.read("test")
    by_transformers = artifact.answered_by == "transformers"
    if by_transformers and not launch.is_started():
        processes = min(processes or transformers_run.processes_for(artifact, base), len(rows))
        if processes > 1:
            launch.start("stages.evaluate", processes, "--artifact", artifact.name)
            return
    encoded = list(prepared.encode_rows(rows, chat, params.train.max_length))

    general = prepared.read_general() if params.evaluate.general else []
    other = list(prepared.encode_rows(general, chat, params.train.max_length))

    # Answers and scores
    if by_transformers:
        group.state(TIMEOUT)  # each process takes its own GPU
        try:
            model = transformers_run.load(artifact, base)
            results = transformers_run.run(model, encoded, chat, params)
            others = transformers_run.run(model, other, chat, params) if other else None
        except torch.OutOfMemoryError:
            longest = max(len(row.input_ids) for row in encoded + other)
            raise Refusal(
                f"the GPU's memory does not hold {artifact.name} and one row at a time, of which the longest has "
                f"{longest} tokens: end other programs on the GPU, or use the CPU, which is slower: "
                f"`CUDA_VISIBLE_DEVICES= dvc repro evaluate@{artifact.name}`"
            ) from None
        if not group.is_first():
            return
    else:
        alone = artifact.name != ADAPTER_GGUF
        gguf, lora = (artifact.gguf, None) if alone else (base_gguf.converted(artifact.folder), artifact.gguf)
        results = llama_run.run(gguf, encoded, params, lora)
        others = llama_run.run(gguf, other, params, lora) if other else None

    # Metrics
    lines = records(rows, texts(results, chat), results)
    metrics = language_metrics(results, size_on_disk(artifact, base))
    libraries = versions(PACKAGES) if by_transformers else {"llama.cpp": tools.version()}
    metrics["environment"] = environment(libraries)

    # Outputs
    jsonl.write(ANSWERS / f"{artifact.name}.jsonl", lines)
    top_tokens.save(ANSWERS / f"{artifact.name}.npz", [score.top for score in results.scores])
    write_json(ANSWERS / f"{artifact.name}.json", metrics | ({"general": texts(others, chat)} if others else {}))
    summary(f"evaluate@{artifact.name}", metrics | {"environment": in_words(metrics["environment"])})


def parse_arguments() -> tuple[Artifact, int | None]:
    parser = argparse.ArgumentParser(description="Let one artifact answer the held-out rows.")
    parser.add_argument("--artifact", required=True, metavar="NAME", help="as in evaluate.artifacts")
    parser.add_argument("--processes", type=int, help="that share the rows, unless of a GGUF; default: one a GPU")
    arguments = parser.parse_args()
    artifact = find(arguments.artifact)
    if artifact is None:
        parser.error(f"there is no artifact {arguments.artifact!r}")
    return artifact, arguments.processes


def texts(results: Results, chat: Chat) -> list[str]:
    """The answers as their reader sees them."""
    return [chat.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in results.answers]


def size_on_disk(artifact: Artifact, base: Path) -> int:
    """Bytes of the artifact's own weights; the adapter's do not include the base model's."""
    if artifact.answered_by == "llama.cpp":
        return artifact.gguf.stat().st_size
    return weights_bytes(base if artifact.name == "base" else artifact.folder)


if __name__ == "__main__":
    launch.work(main) if launch.is_started() else run_stage(main)
