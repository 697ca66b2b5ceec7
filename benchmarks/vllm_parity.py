"""Whether the merged model, or one of vllm.types, gives the same answers in vLLM as in transformers.

python -m tools.serve_vllm [--artifact NAME] &
python -m benchmarks.vllm_parity --url http://127.0.0.1:8000 [--artifact NAME] [--rows 50]

Needs a completed pipeline run. The greedy answers to the test rows are compared with those that `evaluate` wrote; where
they differ, it prints the lead of vLLM's token over its second choice.
"""

import argparse
from itertools import islice
from pathlib import Path

from benchmarks.serve_load import ask, gap_from_text
from qlora.recipe.load import load_params
from qlora.rows import jsonl, prepared
from qlora.runtime.console import run_stage, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--artifact", default="merged")
    options = parser.parse_args()
    limit = load_params().evaluate.max_new_tokens
    rows = prepared.first("test", options.rows)
    written = jsonl.read(Path(f"results/predictions/{options.artifact}.jsonl"))
    predictions = [prediction for _, prediction in islice(written, len(rows))]
    same, gaps = 0, []
    for row, prediction in zip(rows, predictions, strict=True):
        # Without the system message, which the server's template adds.
        question = row | {"messages": [message for message in row["messages"] if message["role"] != "system"]}
        reply = ask(options.url, question, limit, model=options.artifact)
        if reply["text"] == prediction["answer"] and reply["stopped"] == prediction["stopped"]:
            same += 1
        else:
            gaps.append(gap_from_text(reply, prediction["answer"]))
            print(f"{row['id']}\n  vLLM          {reply['text']}\n  transformers  {prediction['answer']}", flush=True)
    near = ", ".join(f"{gap:.3f}" for gap in sorted(gaps)) or "-"
    summary("vLLM", {"same answers": f"{same} of {len(rows)}", "log-probability between the tokens that differ": near})


if __name__ == "__main__":
    run_stage(main)
