"""Every stage at full size: seconds, peak RAM, peak GPU memory and disk of each, for a recipe's model shape.

    python -m benchmarks.full_size --recipe llama3-8b-sql --folder /scratch/full-size

Writes a model of the recipe's shape with random weights and the embedded model's tokenizer, and runs the stages in the
pipeline's order on the built-in rows. DVC is left out, and a folder is removed as soon as no later stage reads it, so
8 billion parameters need 60 GB of disk. No measurement depends on the weights' values; scores mean nothing here. One
line is printed when a stage ends; a stage that fails ends the benchmark with the end of its output.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.parts import folder_model, measure
from benchmarks.parts.measure import REPO
from benchmarks.parts.shapes import REHEARSAL, SHAPES

from ruamel.yaml import YAML

SHAPE_OF = {"llama3-8b-sql": "llama3-8b", "mistral-7b-guanaco": "mistral-7b"}
COPY = "cp of the model"  # merge is compared with it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=SHAPE_OF, default="llama3-8b-sql")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; a model in it is used again")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--test-rows", type=int, default=16)
    parser.add_argument("--imatrix-rows", type=int, default=8)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--only", nargs="+", help="names of the stages to run; the others count as done")
    parser.add_argument("--rehearse", action="store_true", help="a model of a few million parameters instead")
    options = parser.parse_args()
    work = options.folder.resolve()
    if not (work / "base").is_dir():
        print(f"{make_folder(work, options) / 1e9:.2f} billion parameters", flush=True)
    print(f"{'stage':<22} {'seconds':>8} {'RAM GB':>8} {'mapped':>8} {'GPU GB':>8} {'disk GB':>8}", flush=True)
    for name, arguments, unused in stages(options.types):
        if options.only and name not in options.only:
            continue
        command = ["cp", "-r", "base", "copy"] if name == COPY else [sys.executable, "-m", *arguments]
        status, usage = measure.run(command, work, work / "log")
        sizes = (usage.ram, usage.mapped, usage.gpu, usage.disk)
        print(f"{name:<22} {usage.seconds:8.1f} " + " ".join(f"{size / 1e9:8.2f}" for size in sizes), flush=True)
        if status:
            sys.exit((work / "log").read_text()[-3000:])
        for path in unused:
            shutil.rmtree(work / path)


def make_folder(work: Path, options: argparse.Namespace) -> int:
    """Write the model, the rows and params.yaml; return the number of parameters."""
    (work / "data/raw").mkdir(parents=True)
    config, _ = SHAPES[SHAPE_OF[options.recipe]]
    if options.rehearse:
        config.update(REHEARSAL)
    parameters = folder_model.write(work / "base", config)
    params = YAML().load(REPO / f"recipes/{options.recipe}.yaml")
    with (REPO / "data/raw/text2sql.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    if params["data"]["task"] == "chat":
        turns = ("<s>[INST] {context}\n\n{question} [/INST] {answer} </s>".format(**row) for row in rows)
        rows = [{"text": turn} for turn in turns]
    (work / "data/raw/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params["model"].update(id=str(work / "base"), revision=None)
    params["data"].update(source="data/raw/rows.jsonl", revision=None, train_rows=None, test_fraction=0.1)
    params["data"].update(validation_rows=32, test_rows=options.test_rows)
    params["train"].update(max_steps=options.steps, eval_steps=options.steps // 2, checkpoint_steps=options.steps // 2)
    params["gguf"].update(types=list(options.types), imatrix_rows=options.imatrix_rows)
    params["evaluate"].update(artifacts=["base", "adapter", "merged", *options.types], gates={}, max_new_tokens=32)
    YAML().dump(params, work / "params.yaml")
    return parameters


def stages(types: list[str]) -> list[tuple[str, list[str], list[str]]]:
    """Of each stage: name, module with arguments, and the folders that no later stage reads."""

    def evaluate(artifact: str) -> tuple[str, list[str], list[str]]:
        return f"evaluate@{artifact}", ["stages.evaluate", "--artifact", artifact], []

    def judge(artifact: str) -> tuple[str, list[str], list[str]]:
        return f"judge@{artifact}", ["stages.judge", "--artifact", artifact], []

    return [
        (COPY, [], ["copy"]),
        ("fetch-base", ["stages.fetch_base"], []),
        ("prepare-dataset", ["stages.prepare_dataset"], []),
        ("quantize-load-train", ["stages.quantize_load_train"], []),
        evaluate("base"),
        evaluate("adapter"),
        ("merge", ["stages.merge"], []),
        evaluate("merged"),
        ("convert-gguf", ["stages.convert_gguf"], ["models/merged"]),
        *((f"quantize-gguf@{type_}", ["stages.quantize_gguf", "--type", type_], []) for type_ in types),
        *map(evaluate, types),
        *map(judge, ("base", "adapter", "merged", *types)),
    ]


if __name__ == "__main__":
    main()
