"""The plan before a run: from nothing but params.yaml, and exact once the rows are prepared."""

import json
import re

from conftest import refused


def lines_of(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^  (\S+(?: GB)?) +(.*)$", done.stdout, re.MULTILINE))


def test_the_plan_needs_nothing_that_was_run_and_is_exact_once_rows_are_prepared(workspace):
    workspace.set({"train.batch_size": 4, "train.max_steps": None})
    before = lines_of(workspace.run("plan"))
    assert before["rows"].startswith("16 for training, ")
    assert "an estimate from data/raw/text2sql.jsonl" in before["rows"]
    assert before["trainable"].startswith("4,096 (")
    assert {"layout", "time", "memory", "24 GB", "merge", "quantize-gguf@Q8_0", "whole"} <= before.keys()
    assert not (workspace.path / "models").exists()

    prepared = workspace.path / "data/prepared"
    prepared.mkdir()
    (prepared / "train.jsonl").write_text("".join(json.dumps({"tokens": 100 + at}) + "\n" for at in range(8)))
    after = lines_of(workspace.run("plan"))
    assert after["rows"] == "8 for training, 828 tokens, the longest 107 (as prepared)"
    assert "for 828 tokens" in after["time"]


def test_a_missing_file_of_rows_is_a_sentence(workspace):
    (workspace.path / "data/raw/text2sql.jsonl").unlink()
    assert "data/raw/text2sql.jsonl is missing" in refused(workspace.run("plan"))


def test_a_plan_for_several_gpus_is_of_each_of_them(workspace):
    workspace.set({"train.devices": 2, "train.parallel": "fsdp"})
    done = workspace.run("plan")
    assert done.returncode == 0, done.stderr
    assert "does not fit  train.parallel: fsdp shards the model over GPUs, and there is none" in done.stdout
    assert "training on 2 GPUs (fsdp), on each\n  8 GB" in done.stdout
