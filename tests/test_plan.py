"""The plan before a run: from nothing but params.yaml, and exact once the rows are prepared."""

import json
import re

from conftest import refused

from qlora.recipe.params import load_params
from tools import plan


def lines_of(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^  (\S+(?: GB)?) +(.*)$", done.stdout, re.MULTILINE))


def test_the_plan_needs_nothing_that_was_run(workspace):
    workspace.set({"train.batch_size": 4, "train.max_steps": None})
    lines = lines_of(workspace.run("plan"))
    known = re.match(r"16 for training, ([\d,]+) tokens, .*an estimate from data/raw/text2sql.jsonl;", lines["rows"])
    assert f"for {known[1]} tokens" in lines["time"]
    assert lines["trainable"].startswith("4,096 (")
    assert {"layout", "time", "memory", "24 GB", "merge", "quantize-gguf@Q8_0", "whole"} <= lines.keys()
    assert not (workspace.path / "models").exists()


def test_prepared_rows_make_it_exact_while_they_are_those_of_the_params(prepared):
    report = json.loads((prepared.path / "data/prepared/report.json").read_text())
    prepared.set({"train.learning_rate": 0.001})  # has no part in the rows
    lengths, source = plan.row_lengths(load_params())
    assert source == "as prepared"
    assert (len(lengths), sum(lengths)) == (16, report["tokens"]["train"]["total"])

    for change in ({"data.train_rows": 12}, {"train.max_length": 300}, {"model.id": "./other"}):
        prepared.set(change)
        lengths, source = plan.row_lengths(load_params())
        assert len(lengths) == change.get("data.train_rows", 16)
        assert "an estimate from data/raw/text2sql.jsonl; the rows in data/prepared are those of other params" in source
        prepared.set({"data.train_rows": 16, "train.max_length": 256, "model.id": "./tiny"})
    assert plan.row_lengths(load_params())[1] == "as prepared"


def test_a_missing_file_of_rows_is_a_sentence(workspace):
    (workspace.path / "data/raw/text2sql.jsonl").unlink()
    assert "data/raw/text2sql.jsonl is missing" in refused(workspace.run("plan"))


def test_a_plan_for_several_gpus_is_of_each_of_them(workspace):
    workspace.set({"train.devices": 2, "train.parallel": "fsdp"})
    done = workspace.run("plan")
    assert done.returncode == 0, done.stderr
    assert "does not fit  train.parallel: fsdp shards the model over GPUs, and there is none" in done.stdout
    assert "training on 2 GPUs (fsdp), on each\n  8 GB" in done.stdout
