"""The plan before a run needs nothing but params.yaml, and is exact once the rows are prepared."""

import json
import re

from qlora.recipe.load import load_params
from tools import plan

from conftest import refused


def lines_of(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^  (\S+(?: GB)?) +(.*)$", done.stdout, re.MULTILINE))


def test_the_plan_needs_nothing_that_was_run(workspace):
    workspace.set({"train.batch_size": 4, "train.max_steps": None})
    lines = lines_of(workspace.tool("plan"))
    known = re.match(r"16 \D+([\d,]+) tokens, .*data/raw/text2sql\.jsonl", lines["rows"])
    assert f"{known[1]} tokens" in lines["time"]
    assert lines["trainable"].startswith("4,096 (")
    assert {"layout", "time", "memory", "24 GB", "merge", "quantize-gguf@Q8_0", "whole"} <= lines.keys()
    assert not (workspace.path / "models").exists()


def test_prepared_rows_make_it_exact_as_long_as_they_are_those_of_the_params(prepared):
    report = json.loads((prepared.path / "data/prepared/report.json").read_text())
    prepared.set({"train.learning_rate": 0.001})  # does not change the rows
    lengths, exact = plan.row_lengths(load_params())
    assert "data/raw" not in exact
    assert (len(lengths), sum(lengths)) == (16, report["tokens"]["train"]["total"])

    for change in ({"data.train_rows": 12}, {"train.max_length": 300}, {"model.id": "./other"}):
        prepared.set(change)
        lengths, source = plan.row_lengths(load_params())
        assert len(lengths) == change.get("data.train_rows", 16)
        assert "data/raw/text2sql.jsonl" in source
        assert "data/prepared" in source
        prepared.set({"data.train_rows": 16, "train.max_length": 256, "model.id": "./tiny"})
    assert plan.row_lengths(load_params())[1] == exact


def test_a_missing_file_of_rows_is_a_sentence(workspace):
    (workspace.path / "data/raw/text2sql.jsonl").unlink()
    assert refused(workspace.tool("plan")).startswith("data/raw/text2sql.jsonl ")


def test_a_plan_for_several_gpus_is_of_each_of_them(workspace):
    workspace.set({"train.devices": 2, "train.parallel": "fsdp"})
    done = workspace.tool("plan")
    assert done.returncode == 0, done.stderr
    assert "train.parallel: fsdp " in done.stdout  # as this machine has no GPU
    assert re.search(r"2 GPUs \(fsdp\).*\n  8 GB", done.stdout)
