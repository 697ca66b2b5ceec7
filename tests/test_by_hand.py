"""Stages run by hand: what an earlier stage has not made, or what was damaged since, names that stage."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

from qlora.reporting.gates import check
from qlora.runtime.console import Refusal
from stages import convert_gguf, evaluate, judge, merge, prepare_dataset, quantize_gguf, quantize_load_train, report

import pytest
from conftest import make_workspace


def refusal_of(stage, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage.__name__, *arguments])
        with pytest.raises(Refusal) as refusal:
            stage.main()
    return str(refusal.value)


@pytest.mark.parametrize(
    ("stage", "arguments", "needed", "makes"),
    [
        (prepare_dataset, [], "models/base", "fetch-base"),
        (quantize_load_train, [], "models/base", "fetch-base"),
        (merge, [], "models/adapter", "quantize-load-train"),
        (convert_gguf, [], "models/merged", "merge"),
        (quantize_gguf, ["--type", "Q8_0"], "models/bf16", "convert-gguf"),
        (evaluate, ["--artifact", "base"], "models/base", "fetch-base"),
        (evaluate, ["--artifact", "Q8_0"], "models/Q8_0", "quantize-gguf@Q8_0"),
        (judge, ["--artifact", "base"], "results/answers/base.json", "evaluate@base"),
        (report, [], "results/scores/base.json", "judge@base"),
    ],
)
def test_a_stage_without_its_input_names_the_stage_that_makes_it(workspace, stage, arguments, needed, makes):
    with contextlib.chdir(workspace.path):
        sentence = refusal_of(stage, *arguments)
    assert sentence.startswith(needed)
    assert f"`dvc repro {makes}`" in sentence


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_model):
    """A workspace with everything that `report` reads; three artifacts have the base model's scores."""
    workspace = make_workspace(tmp_path_factory.mktemp("scored"), tiny_model)
    workspace.set({"evaluate.artifacts": ["base", "adapter", "merged"]})
    for command in (
        ["fetch_base"],
        ["prepare_dataset"],
        ["evaluate", "--artifact", "base"],
        ["judge", "--artifact", "base"],
    ):
        done = workspace.run(*command)
        assert done.returncode == 0, done.stderr
    results = workspace.path / "results"
    for path in list(results.glob("*/base.*")):
        shutil.copy(path, path.with_stem("adapter"))
        shutil.copy(path, path.with_stem("merged"))
    (results / "train").mkdir()
    (results / "train/metrics.json").write_text(
        json.dumps({"validation_loss": 1.0, "run": "0123456789abcdef", "kept_step": 2})
    )
    (results / "train/log.csv").write_text("step,loss,eval_loss\n1,2.0,\n2,1.5,1.0\n")
    return workspace


@contextlib.contextmanager
def damaged(path: Path, content: bytes | None):
    """`path` holds something else in the block; it is missing for None."""
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("path", "stage", "arguments", "makes"),
    [
        ("models/base/base.json", prepare_dataset, [], "fetch-base"),
        ("models/base/base.json", report, [], "fetch-base"),
        ("data/prepared/train.jsonl", quantize_load_train, [], "prepare-dataset"),
        ("data/prepared/test.jsonl", evaluate, ["--artifact", "base"], "prepare-dataset"),
        ("data/prepared/test.jsonl", judge, ["--artifact", "base"], "prepare-dataset"),
        ("data/prepared/test.jsonl", report, [], "prepare-dataset"),
        ("data/prepared/report.json", report, [], "prepare-dataset"),
        ("results/train/metrics.json", report, [], "quantize-load-train"),
        ("results/train/log.csv", report, [], "quantize-load-train"),
        ("results/answers/merged.json", judge, ["--artifact", "merged"], "evaluate@merged"),
        ("results/answers/merged.jsonl", judge, ["--artifact", "merged"], "evaluate@merged"),
        ("results/scores/merged.json", report, [], "judge@merged"),
        ("results/predictions/merged.jsonl", report, [], "judge@merged"),
        ("results/answers/merged.npz", report, [], "evaluate@merged"),
    ],
)
def test_what_is_missing_or_damaged_names_the_stage_that_makes_it(scored, path, stage, arguments, makes):
    with contextlib.chdir(scored.path):
        for content in (None, b"", b"\n", b"PK\x03\x04 {broken \xff", b"{}\n", b'{"id": 7, "files": 3}\n', b"null\n"):
            if stage is report and content and content.startswith((b"{", b"\n")):
                continue  # another content, which only this project could have written
            with damaged(Path(path), content):
                sentence = refusal_of(stage, *arguments)
            assert path in sentence
            assert re.search(rf"`dvc repro (--force --single-item )?{makes}`", sentence)
            if content is not None and "answers other rows" not in sentence:
                assert f"`dvc checkout --force {path}`" in sentence
            assert len(sentence) < 400


def test_a_report_with_everything_is_written(scored):
    with contextlib.chdir(scored.path):
        report.main()
        assert "merged" in Path("results/report.md").read_text()


def test_a_gate_is_shown_as_it_is_compared():
    checked = check({"base": {"kl_mean": 0.03, "stop_rate": 0.95}}, {"base": {"kl_mean": 0.03004, "stop_rate": 0.9499}})
    assert [(gate.shown, gate.holds) for gate in checked] == [("0.03004", False), ("0.9499", False)]
    assert check({"base": {"kl_mean": 0.03}}, {"base": {}})[0].shown == "-"


@pytest.mark.parametrize("name", ["stages.report"])
def test_help_of_what_takes_no_arguments_runs_nothing(workspace, name):
    done = workspace.python("-m", name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert not (workspace.path / "models").exists()
    assert workspace.python("-m", name, "surprise").returncode == 2
