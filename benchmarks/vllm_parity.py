"""Whether the merged model, or one of vllm.types, answers through vLLM as through transformers.

python -m tools.serve_vllm [--artifact NAME] &
python -m benchmarks.vllm_parity --url http://127.0.0.1:8000 [--artifact NAME] [--rows 50]

In a folder where the pipeline has run: the greedy answers to the test rows are compared with those that
`evaluate` wrote, and where they differ, how close the two tokens were to vLLM.
"""

import argparse
from itertools import islice
from pathlib import Path

from benchmarks.serve_load import ask, gap_from_text
from qlora.recipe.params import load_params
from qlora.rows import jsonl
from qlora.runtime.console import run_stage, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--artifact", default="merged")
    options = parser.parse_args()
    limit = load_params().evaluate.max_new_tokens
    rows, predictions = (
        [line for _, line in islice(jsonl.read(Path(name)), options.rows)]
        for name in ("data/prepared/test.jsonl", f"results/predictions/{options.artifact}.jsonl")
    )
    same, gaps = 0, []
    for row, prediction in zip(rows, predictions, strict=True):
        # Without the system message: the server's template knows it.
        question = row | {"messages": [one for one in row["messages"] if one["role"] != "system"]}
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
