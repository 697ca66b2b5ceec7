"""How much faster several GPUs evaluate than one, and whether their answers are equal.

    python -m benchmarks.evaluate_gpus --processes 1 2 --folder /scratch/evaluate

Writes a model of the 8B shape with random weights and runs `evaluate` on built-in rows, once for each number of
processes, one a GPU. Prints for each run: seconds from start to end, answer tokens a second, peak memory, the number of
rows answered as in the first run, and the largest difference of a row's loss from the first run's (nats a token). With
random weights tokens are almost equally probable, so rounding alone changes many answers.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.parts import folder_model, measure
from benchmarks.parts.measure import REPO
from benchmarks.parts.shapes import REHEARSAL, SHAPES
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.rows.prepared import split_file
from qlora.runtime.outputs import write_json

from ruamel.yaml import YAML


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="working folder; a model in it is used again")
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
        command = [sys.executable, "-m", "stages.evaluate", "--artifact", "base", "--processes", processes]
        status, usage = measure.run(command, work, work / "log")
        if status:
            sys.exit((work / "log").read_text()[-3000:])
        metrics = json.loads((work / "results/answers/base.json").read_text())
        rows = [json.loads(line) for line in (work / "results/answers/base.jsonl").read_text().splitlines()]
        first = first or rows
        pairs = list(zip(first, rows, strict=True))
        same = sum(before["answer"] == now["answer"] for before, now in pairs)
        apart = max(abs(before["nll"] - now["nll"]) / before["supervised"] for before, now in pairs)
        speed, peak = metrics["tokens_per_second"], metrics["peak_memory_mb"] / 1e3
        print(f"{processes:<10} {usage.seconds:8.1f} {speed:8.0f} {peak:8.2f} {same:8} {apart:9.5f}", flush=True)


def make_folder(work: Path, options: argparse.Namespace) -> None:
    """Write the model, its record, the test rows and params.yaml."""
    config, _ = SHAPES["llama3-8b"]
    config.update({"num_hidden_layers": options.layers} | (REHEARSAL if options.rehearse else {}))
    work.mkdir(parents=True, exist_ok=True)
    folder_model.write(work / "base", config)
    files = {path.name: {"size": path.stat().st_size} for path in (work / "base").iterdir()}
    record = {"id": str(work / "base"), "revision": None, "files": files}
    write_json(work / ARTIFACTS["base"].folder / BASE_RECORD, record)
    with (REPO / "data/raw/text2sql.jsonl").open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(options.rows), strict=False)]
    prepared = work / split_file("test")
    prepared.parent.mkdir(parents=True)
    with prepared.open("w") as file:
        for number, row in enumerate(rows):
            user = {"role": "user", "content": f"{row['context']}\n\n{row['question']}"}
            messages = [user, {"role": "assistant", "content": row["answer"]}]
            file.write(json.dumps({"id": number, "messages": messages}) + "\n")
    params = YAML().load(REPO / "recipes/mistral-7b-guanaco.yaml")
    params["model"].update(id=str(work / "base"), revision=None)
    params["evaluate"].update(max_new_tokens=25, batch_size=128)
    YAML().dump(params, work / "params.yaml")


if __name__ == "__main__":
    main()
