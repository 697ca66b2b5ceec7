"""evaluate --artifact NAME: score one artifact on the held-out rows.

Every artifact gets the same prompts as the same token ids, decodes greedily and is scored by the same code.
transformers answers for base, adapter, merged and vLLM types, sharing the rows among all visible GPUs; llama-server
answers for GGUFs, as when they are served.

Writes results/scores/NAME.json (its metrics), results/predictions/NAME.jsonl (each row's answer and scores) and
NAME.npz (the most probable tokens at each position of the gold answers).
"""

import argparse
import json
from datetime import timedelta
from pathlib import Path

from qlora.processes import group, launch
from qlora.recipe.artifacts import ARTIFACTS, Artifact
from qlora.recipe.load import load_params
from qlora.rows import prepared
from qlora.rows.chat import load_chat
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import write_json, write_text
from qlora.scoring import llama_run, top_tokens, transformers_run
from qlora.scoring.results import judge_sql, language_metrics, records
from qlora.source import base_model
from qlora.weights.files import weights_bytes

import torch

SCORES = Path("results/scores")
PREDICTIONS = Path("results/predictions")
TIMEOUT = timedelta(days=1)  # barrier timeout for processes that finish early; crashes end all of them at once


def main() -> None:
    # Settings
    artifact, processes = parse_arguments()
    params = load_params()
    if not artifact.is_made:
        raise Refusal(f"{artifact.folder} is not there; run `dvc repro {artifact.stage}`, which makes it")
    base = base_model.locate(artifact.folder)
    chat = load_chat(base)
    rows = prepared.read("test")
    by_transformers = artifact.answered_by == "transformers"
    if by_transformers and not launch.is_started():
        processes = min(processes or transformers_run.processes_for(artifact, base), len(rows))
        if processes > 1:
            launch.start("stages.evaluate", processes, "--artifact", artifact.name)
            return
    encoded = list(prepared.encode_rows(rows, chat, params.train.max_length))

    # Answers and scores
    if by_transformers:
        group.state(TIMEOUT)  # each process takes its own GPU
        try:
            results = transformers_run.run(transformers_run.load(artifact, base), encoded, chat, params)
        except torch.OutOfMemoryError:
            longest = max(len(row.input_ids) for row in encoded)
            raise Refusal(
                f"the GPU's memory does not hold {artifact.name} and one row at a time, of which the longest has "
                f"{longest} tokens: end other programs on the GPU, or use the CPU, which is slower: "
                f"`CUDA_VISIBLE_DEVICES= dvc repro evaluate@{artifact.name}`"
            ) from None
        if not group.is_first():
            return
    else:
        results = llama_run.run(artifact.gguf, encoded, params)

    # Metrics
    texts = [chat.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in results.answers]
    lines = records(rows, texts, results)
    metrics = language_metrics(results, size_on_disk(artifact, base))
    if params.data.task == "text-to-sql":
        metrics = judge_sql(rows, texts, lines, params) | metrics

    # Outputs
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(PREDICTIONS / f"{artifact.name}.jsonl", text)
    top_tokens.save(PREDICTIONS / f"{artifact.name}.npz", [score.top for score in results.scores])
    write_json(SCORES / f"{artifact.name}.json", metrics)
    summary(f"evaluate@{artifact.name}", metrics)


def parse_arguments() -> tuple[Artifact, int | None]:
    parser = argparse.ArgumentParser(description="Score one artifact on the held-out rows.")
    parser.add_argument("--artifact", required=True, choices=ARTIFACTS, metavar="NAME", help="as in evaluate.artifacts")
    parser.add_argument("--processes", type=int, help="that share the rows, unless of a GGUF; default: one a GPU")
    arguments = parser.parse_args()
    return ARTIFACTS[arguments.artifact], arguments.processes


def size_on_disk(artifact: Artifact, base: Path) -> int:
    """Bytes of the artifact's own weights; the adapter's do not include the base model's."""
    if artifact.answered_by == "llama.cpp":
        return artifact.gguf.stat().st_size
    return weights_bytes(base if artifact.name == "base" else artifact.folder)


if __name__ == "__main__":
    launch.work(main) if launch.is_started() else run_stage(main)
