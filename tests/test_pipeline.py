"""The real dvc.yaml on a tiny random model: what reruns when, and what a killed run leaves behind."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
AFTER_TRAINING = {"quantize-load-train", "merge", "convert-gguf", "quantize-gguf@Q8_0"}
AFTER_TRAINING |= {"evaluate@merged", "evaluate@Q8_0", "report"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_model):
    """A Git and DVC repository with the real dvc.yaml and stages, run once on a tiny model."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_repository(folder, tiny_model)
    ran = repro(folder)
    assert ran == {"fetch-base", "prepare-dataset", "evaluate@base"} | AFTER_TRAINING
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "run")
    return folder


def make_repository(folder: Path, model: Path) -> None:
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(model, folder / "tiny")
    (folder / "data/raw").mkdir(parents=True)
    lines = (ROOT / "data/raw/text2sql.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/raw/text2sql.jsonl").write_text("".join(lines[:600]))
    params = YAML().load(ROOT / "recipes/smollm2-sql.yaml")
    params["model"]["id"] = "./tiny"
    params["data"].update(train_rows=24, validation_rows=4, test_rows=4)
    params["train"].update(batch_size=4, micro_batch_tokens=256, eval_steps=3, checkpoint_steps=2)
    params["gguf"].update(types=["Q8_0"], imatrix=False)
    params["evaluate"].update(artifacts=["base", "merged", "Q8_0"], max_new_tokens=8, databases=2, gates={})
    YAML().dump(params, folder / "params.yaml")
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    (folder / ".gitignore").open("a").write("/tiny/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")


def environment() -> dict[str, str]:
    identity = {
        f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | identity | {"PATH": path, "OMP_NUM_THREADS": "1"}


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment(), check=True, capture_output=True, text=True
    ).stdout


def run_dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def dvc(folder: Path, *arguments: str) -> str:
    done = run_dvc(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran_stages(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.+)':", output))


def repro(folder: Path) -> set[str]:
    """The stages that `dvc repro` executed (not those that it restored from the run-cache)."""
    return ran_stages(dvc(folder, "repro"))


def set_param(folder: Path, path: str, value: object) -> None:
    params = YAML().load(folder / "params.yaml")
    section, name = path.split(".")
    params[section][name] = value
    YAML().dump(params, folder / "params.yaml")


def would_run(folder: Path) -> set[str]:
    """The stages that a change reaches: those that DVC sees changed, and all that depend on their outputs."""
    repo = Repo(folder)
    changed = {name.rpartition(":")[2] for name in repo.status()}  # "dvc.yaml:merge", or "merge" where dvc.yaml is
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
    started = time.monotonic()
    assert repro(pipeline) == set()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("param", "value", "expected"),
    [
        ("lora.r", 8, AFTER_TRAINING),
        ("quantization.type", "fp4", AFTER_TRAINING),
        ("merge.dtype", "float16", AFTER_TRAINING - {"quantize-load-train"}),
        ("data.seed", 1, {"prepare-dataset", "evaluate@base"} | AFTER_TRAINING),
        ("evaluate.max_new_tokens", 9, {"evaluate@base", "evaluate@merged", "evaluate@Q8_0", "report"}),
        ("evaluate.gates", {"merged": {"loss": 99.0}}, {"report"}),
        ("gguf.types", ["Q8_0", "Q4_0"], {"quantize-gguf@Q4_0"}),
        ("vllm.types", ["W4A16-AWQ"], {"quantize-vllm@W4A16-AWQ"}),
        ("vllm.group_size", 32, set()),  # of no type
    ],
)
def test_a_parameter_reaches_only_what_depends_on_it(pipeline, param, value, expected):
    set_param(pipeline, param, value)
    assert would_run(pipeline) == expected
    restore(pipeline)


@pytest.mark.parametrize("file", ["README.md", "params.yaml"])
def test_text_for_people_reruns_nothing(pipeline, file):
    with (pipeline / file).open("a") as text:
        text.write("\n# a remark\n")
    assert would_run(pipeline) == set()
    restore(pipeline)


def test_a_description_in_dvc_yaml_reruns_nothing(pipeline):
    path = pipeline / "dvc.yaml"
    path.write_text(path.read_text().replace("desc: Quantize the GGUF", "desc: Another description"))
    assert would_run(pipeline) == set()
    restore(pipeline)


def test_a_comment_in_a_stage_reruns_that_stage_and_stops_where_outputs_are_the_same(pipeline):
    with (pipeline / "stages/quantize_load_train.py").open("a") as script:
        script.write("\n# a remark\n")
    assert repro(pipeline) == {"quantize-load-train", "report"}  # report shows the training's speed, too
    restore_run(pipeline)


def restore_run(folder: Path) -> None:
    """Back to the committed state; DVC restores the outputs from its cache and runs nothing."""
    git(folder, "checkout", "-q", "--", ".")
    assert repro(folder) == set()


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


def test_one_more_gguf_type_runs_its_own_stages_only(pipeline):
    set_param(pipeline, "gguf.types", ["Q8_0", "Q4_0"])
    set_param(pipeline, "evaluate.artifacts", ["base", "merged", "Q8_0", "Q4_0"])
    assert repro(pipeline) == {"quantize-gguf@Q4_0", "evaluate@Q4_0", "report"}
    for end in ("jsonl", "npz"):  # DVC leaves what no stage makes any more
        (pipeline / f"results/predictions/Q4_0.{end}").unlink()
    restore_run(pipeline)


@pytest.mark.skipif(find_spec("llmcompressor") is None, reason="llm-compressor is not installed (make llm-compressor)")
def test_a_vllm_type_hangs_on_the_merged_model_and_its_own_parameters_only(pipeline):
    set_param(pipeline, "vllm.types", ["W4A16-GPTQ"])
    set_param(pipeline, "evaluate.artifacts", ["base", "merged", "Q8_0", "W4A16-GPTQ"])
    own = {"quantize-vllm@W4A16-GPTQ", "evaluate@W4A16-GPTQ", "report"}
    assert repro(pipeline) == own
    assert "| merged → W4A16-GPTQ |" in (pipeline / "results/report.md").read_text()
    assert "vllm serve served/W4A16-GPTQ" in (pipeline / "results/model_card.md").read_text()
    git(pipeline, "add", ".")
    git(pipeline, "commit", "-qm", "with a type for vLLM")
    for param, value, expected in (
        ("vllm.group_size", 32, own),
        ("merge.dtype", "float16", own | AFTER_TRAINING - {"quantize-load-train"}),
        ("gguf.imatrix", True, {"convert-gguf", "quantize-gguf@Q8_0", "evaluate@Q8_0", "report"}),
    ):
        set_param(pipeline, param, value)
        assert would_run(pipeline) == expected
        restore(pipeline)
    git(pipeline, "reset", "-q", "--hard", "HEAD~1")
    for end in ("jsonl", "npz"):  # DVC leaves what no stage makes any more
        (pipeline / f"results/predictions/W4A16-GPTQ.{end}").unlink()
    restore_run(pipeline)


def test_a_broken_gate_fails_the_report_after_all_is_written(pipeline):
    """The tiny model never learned to stop, as one whose stop token was never supervised."""
    set_param(pipeline, "evaluate.gates", {"Q8_0": {"stop_rate": 0.5, "same_top_token": 0.5}})
    written = [pipeline / name for name in ("results/report.md", "metrics/summary.json", "metrics/rows.json")]
    begin = time.time()
    done = run_dvc(pipeline, "repro")
    assert done.returncode != 0
    assert ran_stages(done.stdout) == {"report"}
    assert re.search(r"error: 1 of 2 gates broken: Q8_0\.stop_rate is 0\.\S*, must be >= 0\.5", done.stderr)
    assert all(path.stat().st_mtime > begin for path in written)
    assert re.search(r"\| Q8_0.stop_rate +\| BROKEN \|", written[0].read_text())
    restore_run(pipeline)


def test_two_commits_are_compared_from_git_alone(pipeline):
    done = subprocess.run(
        [sys.executable, "-m", "tools.compare", "HEAD"],
        cwd=pipeline,
        env=environment() | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| Q8_0 +\| loss +\| .*\+0\.0000.*no difference seen", done.stdout)


def test_killed_in_training_the_next_run_ends_with_the_same_weights(pipeline):
    expected = load_file(pipeline / "models/adapter/adapter_model.safetensors")
    # Another clock of checkpoints, so that DVC has not seen this run; the result must not depend on it.
    set_param(pipeline, "train.checkpoint_steps", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "quantize-load-train"],
        cwd=pipeline,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(pipeline.glob(".checkpoints/*/checkpoint-2/complete")):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
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


def test_each_stage_lists_exactly_the_modules_it_imports():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for name, stage in stages.items():
        script = Path("stages") / (re.search(r"stages\.(\w+)", stage["cmd"])[1] + ".py")
        listed = {dep for dep in stage["deps"] if dep.endswith(".py")}
        assert listed == imported_modules(script), name


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_has_the_parameters_that_dvc_tracks(recipe):
    params = YAML(typ="safe").load(recipe)
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        for path in stage.get("params", []):
            value = params
            for key in path.split("."):
                assert key in value, f"{name}: {path}"
                value = value[key]


def imported_modules(script: Path, seen: set[str] | None = None) -> set[str]:
    """`script` and all of the project's modules that it imports, directly or not."""
    seen = set() if seen is None else seen
    seen.add(str(script))
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stages":
            package = Path(*node.module.split("."))
            modules = [package.with_suffix(".py"), *(package / f"{alias.name}.py" for alias in node.names)]
            for module in modules:
                if (ROOT / module).is_file() and str(module) not in seen:
                    imported_modules(module, seen)
    return seen
