"""The real dvc.yaml on a tiny random model: what reruns when, and what a killed run leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from qlora.recipe.metrics import METRICS

import networkx
import pytest
from dvc.repo import Repo
from repository import ROOT, dvc, environment, git, make_repository, python, ran_stages, repro, run_dvc, set_param
from ruamel.yaml import YAML
from safetensors.torch import load_file

AFTER_TRAINING = {"quantize-load-train", "merge", "convert-gguf", "quantize-gguf@Q8_0"}
AFTER_TRAINING |= {"evaluate@merged", "evaluate@Q8_0", "judge@merged", "judge@Q8_0", "report"}
JUDGING = {"judge@base", "judge@merged", "judge@Q8_0", "report"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_model):
    """A Git and DVC repository with the real dvc.yaml and code, run once on a tiny model."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_repository(folder, tiny_model)
    ran = repro(folder)
    assert ran == {"fetch-base", "prepare-dataset", "evaluate@base", "judge@base"} | AFTER_TRAINING
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "run")
    return folder


def would_run(folder: Path) -> set[str]:
    """The stages that a change reaches: those that DVC calls changed, and all that depend on their outputs."""
    repo = Repo(folder)
    changed = {name.rpartition(":")[2] for name in repo.status()}  # "dvc.yaml:merge" or just "merge"
    reached = set(changed)
    for stage in repo.index.stages:
        # DVC's edges point from a stage to what it needs.
        if changed & {upstream.name for upstream in networkx.descendants(repo.index.graph, stage)}:
            reached.add(stage.name)
    repo.close()
    return reached


def restore(folder: Path) -> None:
    git(folder, "checkout", "-q", "--", ".")
    assert would_run(folder) == set()


def test_nothing_reruns_when_nothing_changed(pipeline):
    assert repro(pipeline) == set()


@pytest.mark.parametrize(
    ("param", "value", "expected"),
    [
        ("lora.r", 8, AFTER_TRAINING),
        ("quantization.type", "fp4", AFTER_TRAINING),
        ("merge.dtype", "float16", AFTER_TRAINING - {"quantize-load-train"}),
        ("data.seed", 1, {"prepare-dataset", "evaluate@base", "judge@base"} | AFTER_TRAINING),
        ("evaluate.max_new_tokens", 9, {"evaluate@base", "evaluate@merged", "evaluate@Q8_0"} | JUDGING),
        ("evaluate.metrics", ["exact_match"], JUDGING),
        ("evaluate.scorer", "scorers/mine.py", JUDGING),
        ("evaluate.gates", {"merged": {"loss": 99.0}}, {"report"}),
        ("gguf.types", ["Q8_0", "Q4_0"], {"quantize-gguf@Q4_0"}),
        ("gguf.types", ["Q8_0", "fit-4.5bpw"], {"quantize-gguf@fit-4.5bpw"}),
        ("gguf.sensitivity", True, {"convert-gguf", "quantize-gguf@Q8_0", "evaluate@Q8_0", "judge@Q8_0", "report"}),
        ("gguf.adapters", ["adapter-gguf"], {"convert-adapter@adapter-gguf"}),
        ("vllm.types", ["W4A16-AWQ"], {"quantize-vllm@W4A16-AWQ"}),
        ("vllm.group_size", 32, set()),  # of no type
    ],
)
def test_a_parameter_reaches_only_what_depends_on_it(pipeline, param, value, expected):
    set_param(pipeline, param, value)
    assert would_run(pipeline) == expected
    restore(pipeline)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("README.md", set()),
        ("params.yaml", set()),
        ("tools/plan.py", set()),
        ("qlora/__init__.py", set()),
        ("qlora/reporting/model_card.py", {"report"}),
        ("qlora/judging/execution.py", JUDGING),
        ("scorers/README.md", JUDGING),
        ("qlora/gguf/modelfile.py", {"convert-gguf", "quantize-gguf@Q8_0", "evaluate@Q8_0", "judge@Q8_0", "report"}),
        ("qlora/merging/shards.py", AFTER_TRAINING - {"quantize-load-train"}),
        ("qlora/training/memory.py", AFTER_TRAINING),
    ],
)
def test_a_comment_reaches_only_the_stages_that_use_its_file(pipeline, file, expected):
    with (pipeline / file).open("a") as text:
        text.write("\n# a remark\n")
    assert would_run(pipeline) == expected
    restore(pipeline)


@pytest.mark.parametrize("name", [".chat.py.swp", "chat.py~", "__pycache__/chat.cpython-311.pyc"])
def test_what_an_editor_leaves_in_a_room_reruns_nothing(pipeline, name):
    path = pipeline / "qlora/rows" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert would_run(pipeline) == set()
    path.unlink()


def test_a_description_in_dvc_yaml_reruns_nothing(pipeline):
    path = pipeline / "dvc.yaml"
    path.write_text(path.read_text().replace("desc: Quantize the GGUF", "desc: Another description"))
    assert would_run(pipeline) == set()
    restore(pipeline)


def test_a_comment_in_a_stage_reruns_that_stage_and_stops_where_outputs_are_the_same(pipeline):
    with (pipeline / "stages/quantize_load_train.py").open("a") as script:
        script.write("\n# a remark\n")
    assert repro(pipeline) == {"quantize-load-train", "report"}  # report shows the speed of training
    restore_run(pipeline)


def restore_run(folder: Path) -> None:
    """Back to the committed state; DVC restores the outputs from its cache and runs nothing."""
    git(folder, "checkout", "-q", "--", ".")
    assert repro(folder) == set()


def remove_results(folder: Path, artifact: str) -> None:
    """DVC leaves what no stage makes any more."""
    for path in (folder / "results").glob(f"*/{artifact}.*"):
        path.unlink()


def test_an_experiment_reruns_training_and_what_follows_and_the_way_back_runs_nothing(pipeline):
    before = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    output = dvc(pipeline, "exp", "run", "-S", "lora.r=4", "-S", "train.learning_rate=1e-05")
    assert ran_stages(output) == AFTER_TRAINING
    after = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    name = next(name for name in after if "lora_A" in name)
    assert after[name].shape[0] == 4
    assert before[name].shape[0] == 16

    rate = YAML(typ="safe").load(ROOT / "recipes/smollm2-sql.yaml")["train"]["learning_rate"]
    output = dvc(pipeline, "exp", "run", "-S", "lora.r=16", "-S", f"train.learning_rate={rate}")
    assert ran_stages(output) == set()
    restored = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    assert all(bool((before[name] == restored[name]).all()) for name in before)
    restore_run(pipeline)


def test_an_adapter_is_added_and_trained_further(pipeline):
    before, first = (pipeline / "results/train/log.csv").read_text(), pipeline / "data/adapters/first"
    shutil.copytree(pipeline / "models/adapter", first)
    dvc(pipeline, "add", "-q", "data/adapters/first")
    set_param(pipeline, "lora.start_from", "data/adapters/first")
    assert "data/adapters" in dvc(pipeline, "status", "quantize-load-train")
    assert ran_stages(dvc(pipeline, "repro", "--single-item", "quantize-load-train")) == {"quantize-load-train"}
    last, anew = (
        [float(line.split(",")[1]) for line in log.splitlines()[1:]]
        for log in (before, (pipeline / "results/train/log.csv").read_text())
    )
    assert anew[0] < last[0]  # of the same rows
    git(pipeline, "reset", "-q", "--hard")
    shutil.rmtree(first)
    assert repro(pipeline) == set()


def test_other_databases_judge_again_and_generate_nothing(pipeline):
    set_param(pipeline, "evaluate.databases", 3)
    # prepare-dataset runs the gold queries on them; its rows stay the same.
    assert repro(pipeline) - {"report"} == {"prepare-dataset"} | JUDGING - {"report"}
    restore_run(pipeline)


def test_a_scorer_and_its_changes_judge_again_and_generate_nothing(pipeline):
    scorer = pipeline / "scorers/mine.py"
    scorer.write_text("def score(row, answer):\n    return len(answer) / 100\n")
    set_param(pipeline, "evaluate.scorer", "scorers/mine.py")
    assert repro(pipeline) == JUDGING
    scorer.write_text("def score(row, answer):\n    return len(answer) / 200, 'by its length'\n")
    assert repro(pipeline) == JUDGING
    assert json.loads((pipeline / "metrics/summary.json").read_text())["metric"] == "scorer"
    scorer.unlink()
    restore_run(pipeline)


def test_a_change_of_the_sql_rooms_judges_again_and_generates_nothing(pipeline):
    with (pipeline / "qlora/sql/comparison.py").open("a") as text:
        text.write("\n# a remark\n")
    assert repro(pipeline) - {"report"} == {"prepare-dataset"} | JUDGING - {"report"}
    restore_run(pipeline)


def test_one_more_gguf_type_runs_its_own_stages_only(pipeline):
    set_param(pipeline, "gguf.types", ["Q8_0", "Q4_0"])
    set_param(pipeline, "evaluate.artifacts", ["base", "merged", "Q8_0", "Q4_0"])
    assert repro(pipeline) == {"quantize-gguf@Q4_0", "evaluate@Q4_0", "judge@Q4_0", "report"}
    remove_results(pipeline, "Q4_0")
    restore_run(pipeline)


@pytest.mark.skipif(find_spec("llmcompressor") is None, reason="llm-compressor is not installed (make llm-compressor)")
def test_a_vllm_type_depends_on_the_merged_model_and_its_own_parameters_only(pipeline):
    set_param(pipeline, "vllm.types", ["W4A16-GPTQ"])
    set_param(pipeline, "evaluate.artifacts", ["base", "merged", "Q8_0", "W4A16-GPTQ"])
    own = {"quantize-vllm@W4A16-GPTQ", "evaluate@W4A16-GPTQ", "judge@W4A16-GPTQ", "report"}
    assert repro(pipeline) == own
    assert re.search(r"\| merged → W4A16-GPTQ +\|", (pipeline / "results/report.md").read_text())
    assert "vllm serve served/W4A16-GPTQ" in (pipeline / "results/model_card.md").read_text()
    git(pipeline, "add", ".")
    git(pipeline, "commit", "-qm", "with a type for vLLM")
    for param, value, expected in (
        ("vllm.group_size", 32, own),
        ("merge.dtype", "float16", own | AFTER_TRAINING - {"quantize-load-train"}),
        ("gguf.imatrix", True, {"convert-gguf", "quantize-gguf@Q8_0", "evaluate@Q8_0", "judge@Q8_0", "report"}),
    ):
        set_param(pipeline, param, value)
        assert would_run(pipeline) == expected
        restore(pipeline)
    git(pipeline, "reset", "-q", "--hard", "HEAD~1")
    remove_results(pipeline, "W4A16-GPTQ")
    restore_run(pipeline)


def test_a_broken_gate_fails_the_report_after_all_is_written(pipeline):
    """The tiny model never learned to stop, like a model whose stop token was never supervised."""
    set_param(pipeline, "evaluate.gates", {"Q8_0": {"stop_rate": 0.5, "same_top_token": 0.5}})
    written = [pipeline / name for name in ("results/report.md", "metrics/summary.json", "plots/rows.csv")]
    begin = time.time()
    done = run_dvc(pipeline, "repro")
    assert done.returncode != 0
    assert ran_stages(done.stdout) == {"report"}
    assert re.search(r"error: 1 of 2 .*Q8_0\.stop_rate .*>= 0\.5", done.stderr)
    assert all(path.stat().st_mtime > begin for path in written)
    assert re.search(r"\| Q8_0.stop_rate +\| BROKEN", written[0].read_text())
    summary = json.loads(written[1].read_text())
    assert summary["gates_broken"] == 1
    assert [gate["holds"] for gate in summary["gates"]] == [False, True]
    restore_run(pipeline)


def test_git_has_a_few_numbers_and_none_that_depends_on_the_machine(pipeline):
    (shown,) = json.loads(dvc(pipeline, "metrics", "show", "--json")).values()
    assert shown["data"].keys() == {"metrics/summary.json"}
    assert 5 < len(numbers(shown["data"]["metrics/summary.json"]["data"])) <= 20
    tracked = [pipeline / name for name in git(pipeline, "ls-files", "metrics", "plots").split()]
    assert {path.name for path in tracked} == {
        *("summary.json", "loss.csv", "artifacts.csv", "outcomes.csv", "rows.csv"),
    }
    for path in tracked:
        assert [name for name in METRICS if METRICS[name].machine_dependent and name in path.read_text()] == []


def numbers(value: object) -> list[float]:
    """The numbers that DVC shows: those in dictionaries, at any depth."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_two_commits_are_compared_from_git_alone(pipeline):
    done = python(pipeline, "tools.compare", "HEAD")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| Q8_0 +\| loss +\| .*\+0\.0000.*no difference seen", done.stdout)


def test_killed_in_training_the_next_run_ends_with_the_same_weights(pipeline):
    expected = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    # With checkpoints at other steps, so that DVC has not seen this run; the result must not depend on it.
    set_param(pipeline, "train.checkpoint_steps", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "quantize-load-train"],
        cwd=pipeline,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(pipeline.glob(".checkpoints/*/checkpoint-2/complete")):
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (pipeline / "models/adapter").exists()

    output = dvc(pipeline, "repro", "quantize-load-train")
    assert re.search(r"from checkpoint-[2-5]", output), output
    resumed = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    assert resumed.keys() == expected.keys()
    assert all(bool((resumed[name] == expected[name]).all()) for name in expected)
    assert not list(pipeline.glob(".checkpoints/*"))
    restore_run(pipeline)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_has_the_parameters_that_dvc_tracks(recipe):
    params = YAML(typ="safe").load(recipe)
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        for path in stage.get("params", []):
            value = params
            for key in path.split("."):
                assert key in value, f"{name}: {path}"
                value = value[key]
