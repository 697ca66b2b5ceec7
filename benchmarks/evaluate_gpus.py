"""How much faster several GPUs evaluate than one, and whether they answer the same.

    python -m benchmarks.evaluate_gpus --processes 1 2 --folder /scratch/evaluate

Writes a model of the 8B shape with random weights, all or some of its layers, and lets `evaluate` score it on built-in
rows, with so many processes, one a GPU. Prints of each: seconds from start to end, answered tokens a second, peak
memory, how many rows are answered as in the first run, and the largest difference of a row's loss (nats a token).
Random weights make next to no difference between one token and the next: rounding alone changes many answers.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import random_model
from benchmarks.full_size import REPO, WIDTHS_OF_A_REHEARSAL
from benchmarks.shapes import SHAPES
from qlora.runtime.outputs import write_json
from qlora.source import base_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; what is there already is kept")
    parser.add_argument("--processes", nargs="+", default=["1", "2"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rehearse", action="store_true", help="a model of a few million parameters instead")
    options = parser.parse_args()
    work = options.folder.resolve()
    if not (work / "base").is_dir():
        make_folder(work, options)
    print(f"{'processes':<10} {'seconds':>8} {'tok/s':>8} {'peak GB':>8} {'same':>8} {'loss':>9}", flush=True)
    first = None
    for processes in options.processes:
        begin = time.monotonic()
        command = [sys.executable, "-m", "stages.evaluate", "--artifact", "base", "--processes", processes]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begin
        metrics = json.loads((work / "metrics/base.json").read_text())
        rows = [json.loads(line) for line in (work / "results/predictions/base.jsonl").read_text().splitlines()]
        first = first or rows
        pairs = list(zip(first, rows, strict=True))
        same = sum(one["answer"] == other["answer"] for one, other in pairs)
        apart = max(abs(one["nll"] - other["nll"]) / one["supervised"] for one, other in pairs)
        speed, peak = metrics["tokens_per_second"], metrics["peak_memory_mb"] / 1e3
        print(f"{processes:<10} {seconds:8.1f} {speed:8.0f} {peak:8.2f} {same:8} {apart:9.5f}", flush=True)


def make_folder(work: Path, options: argparse.Namespace) -> None:
    """Lay out the model, its record, the test rows and params.yaml."""
    config, _ = SHAPES["llama3-8b"]
    config.update({"num_hidden_layers": options.layers} | (WIDTHS_OF_A_REHEARSAL if options.rehearse else {}))
    work.mkdir(parents=True, exist_ok=True)
    random_model.write(work / "base", config)
    files = {path.name: {"size": path.stat().st_size} for path in (work / "base").iterdir()}
    write_json(work / "models/base" / base_model.RECORD, {"id": str(work / "base"), "revision": None, "files": files})
    with (REPO / "data/raw/text2sql.jsonl").open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(options.rows), strict=False)]
    (work / "data/prepared").mkdir(parents=True)
    with (work / "data/prepared/test.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            user = {"role": "user", "content": f"{row['context']}\n\n{row['question']}"}
            messages = [user, {"role": "assistant", "content": row["answer"]}]
            file.write(json.dumps({"id": number, "messages": messages}) + "\n")
    (work / "stages").symlink_to(REPO / "stages")
    params = YAML().load(REPO / "recipes/mistral-7b-guanaco.yaml")
    params["model"].update(id=str(work / "base"), revision=None)
    params["evaluate"].update(max_new_tokens=25, batch_size=128)
    YAML().dump(params, work / "params.yaml")


if __name__ == "__main__":
    main()
