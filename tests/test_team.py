"""What a team does with the pipeline: sweeps, a report for each pull request, one run at a time in a checkout."""

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_pipeline import dvc, environment, git, make_repository, set_param

from stages import outcomes, sweep
from stages.console import Refusal
from stages.outcomes import Outcomes
from stages.outputs import write_json

ROOT = Path(__file__).parents[1]
ROWS = 40


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def edit_yaml(path: Path, edit) -> None:
    yaml = YAML()
    content = yaml.load(path)
    edit(content)
    yaml.dump(content, path)


def keep_stages(folder: Path, *names: str) -> None:
    """Leave only these stages in dvc.yaml."""

    def edit(content):
        for name in content["stages"].keys() - set(names):
            del content["stages"][name]
        for section in ("plots", "artifacts"):
            content.pop(section, None)

    edit_yaml(folder / "dvc.yaml", edit)


# Sweeps


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The default recipe and dvc.yaml, in the current folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (["lora.r=8,many"], "r=many: lora.r: input should be a valid integer (it is 'many')"),
        (["lora.rank=8,16"], "rank=8: lora.rank: unknown key; did you mean r?"),
        (["lora.r"], "Error parsing override 'lora.r'; write it as lora.r=8,16,64"),
        (["gguf.types=[Q8_0],[Q4_0]"], "gguf.types decides which stages there are"),
    ],
)
def test_a_grid_is_checked_before_anything_runs(recipe, grid, sentence):
    with pytest.raises(Refusal) as refusal:
        sweep.combinations(grid)
    assert sentence in str(refusal.value)


def test_a_grid_is_the_product_of_its_values(recipe):
    assert sweep.combinations(["lora.r=8,16", "lora.target_modules=[q_proj,v_proj],all-linear"]) == {
        "r=8_target_modules=q_proj-v_proj": {"lora.r": "8", "lora.target_modules": "[q_proj,v_proj]"},
        "r=8_target_modules=all-linear": {"lora.r": "8", "lora.target_modules": "all-linear"},
        "r=16_target_modules=q_proj-v_proj": {"lora.r": "16", "lora.target_modules": "[q_proj,v_proj]"},
        "r=16_target_modules=all-linear": {"lora.r": "16", "lora.target_modules": "all-linear"},
    }


def test_experiments_that_share_a_stage_run_it_once():
    """Two ranks and three merges: two trainings side by side, then the other merges find them in the cache."""
    reach = {"base": [], "train": ["r"], "merge": ["dtype", "r"]}
    experiments = {f"{r} {dtype}": {"r": r, "dtype": dtype} for r in ("8", "16") for dtype in ("a", "b", "c")}
    first = sweep.next_wave(experiments, reach, {}, {})
    assert list(first) == ["8 a", "16 a"]
    done = dict.fromkeys(first, "commit")
    assert list(sweep.next_wave(experiments, reach, done, {})) == ["8 b", "8 c", "16 b", "16 c"]
    # Where the first one failed, its training is not there yet: one of the others does it.
    assert list(sweep.next_wave(experiments, reach, {"8 a": "commit"}, {"16 a": "no"})) == ["8 b", "8 c", "16 b"]


# Reports and one run at a time


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_model):
    """A repository whose pipeline ends with fetch-base, with metrics as a run writes them; on its branch main."""
    folder = tmp_path_factory.mktemp("small")
    make_repository(folder, tiny_model)
    git(folder, "branch", "-M", "main")
    keep_stages(folder, "fetch-base")
    edit_yaml(folder / "params.yaml", lambda params: params["evaluate"].update(gates={"Q8_0": {"loss": 0.5}}))
    dvc(folder, "repro")
    write_metrics(folder, right=10, loss=0.4)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "run")
    return folder


def write_metrics(folder: Path, right: int, loss: float) -> None:
    """Metrics of artifacts that get the first `right` rows right."""
    columns = {
        "right": [int(row < right) for row in range(ROWS)],
        "nll": [loss] * ROWS,
        "top1": [1] * ROWS,
        "stopped": [1] * ROWS,
    }
    names = ("base", "merged", "Q8_0")
    one = {"execution_accuracy": right / ROWS, "loss": loss, "size_mb": 5.2, "tokens_per_second": 50.0}
    for name in names:
        write_json(folder / f"metrics/{name}.json", one)
    write_json(folder / "metrics/summary.json", {"kl_mean": {"Q8_0": 0.01}})
    groups, ones = list(range(ROWS)), [1] * ROWS
    rows = Outcomes("rows", [str(row) for row in groups], groups, ones, dict.fromkeys(names, columns))
    outcomes.write(rows, folder / outcomes.PATH)
    (folder / "plots").mkdir(exist_ok=True)
    curve = "".join(f"{step},{loss + 1 / step},\n" for step in range(1, 200))
    (folder / "plots/loss.csv").write_text(f"step,loss,eval_loss\n{curve}")


@pytest.fixture
def branch(small):
    """`small` on a branch of its own; back on main afterwards."""
    git(small, "checkout", "-qb", "branch")
    yield small
    git(small, "checkout", "-qf", "main")
    git(small, "branch", "-qD", "branch")


def report(folder: Path) -> tuple[subprocess.CompletedProcess, str]:
    done = python(folder, "stages.pr_report", "--base", "main", "--output", "report.md")
    page = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    return done, page


def test_a_report_shows_what_a_branch_changes(branch):
    write_metrics(branch, right=30, loss=0.3)
    done, page = report(branch)
    assert done.returncode == 0, done.stderr
    assert "dvc.lock: current" in page
    assert "gates: all 1 hold" in page
    better = next(line for line in page.splitlines() if line.startswith("| Q8_0     | execution accuracy"))
    assert "25.0% |  75.0% | +50.0 (" in better
    assert "better" in better
    assert "```mermaid" in page
    assert page.count("    line [") == 2


def test_a_report_fails_on_a_stale_lock_and_a_broken_gate_and_names_them(branch):
    write_metrics(branch, right=10, loss=0.6)
    script = branch / "stages/fetch_base.py"
    script.write_text(script.read_text() + "\n# a remark\n")
    done, page = report(branch)
    assert done.returncode == 1
    assert done.stderr == (
        "error: dvc.lock is stale (fetch-base): run `make repro` and commit what it changes; "
        "broken gates: Q8_0.loss\n"
    )
    assert "**stale**, would run fetch-base" in page
    assert "**broken**: Q8_0.loss" in page


class Comments(BaseHTTPRequestHandler):
    """The part of GitHub's API that keeps a pull request's comments."""

    def do_GET(self):
        self.answer(self.server.comments)

    def do_POST(self):
        self.server.comments.append({"id": len(self.server.comments) + 1, "body": self.body()})
        self.answer(self.server.comments[-1])

    def do_PATCH(self):
        comment = self.server.comments[int(self.path.rpartition("/")[2]) - 1]
        comment["body"] = self.body()
        self.answer(comment)

    def body(self) -> str:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]

    def answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def github():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Comments)
    server.comments = [{"id": 1, "body": "a person's"}]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="the workflow's runner has jq and curl")
def test_the_workflow_updates_one_comment(branch, github):
    """The shell steps of report.yml, as they stand there; the install step aside."""
    git(branch, "update-ref", "refs/remotes/origin/main", "main")
    workflow = YAML(typ="safe").load(ROOT / ".github/workflows/report.yml")
    scripts = {step["name"]: step["run"] for step in workflow["jobs"]["report"]["steps"] if "run" in step}
    variables = {
        "GITHUB_BASE_REF": "main",
        "GITHUB_STEP_SUMMARY": str(branch / "summary.md"),
        "GITHUB_API_URL": f"http://127.0.0.1:{github.server_port}",
        "GITHUB_REPOSITORY": "team/models",
        "GH_TOKEN": "token",
        "NUMBER": "7",
    }
    for loss in (0.3, 0.35):
        write_metrics(branch, right=30, loss=loss)
        for name in ("report", "summary", "comment"):
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts[name]]
            done = subprocess.run(command, cwd=branch, env=environment() | variables, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    page = (branch / "report.md").read_text()
    assert [comment["body"] for comment in github.comments] == ["a person's", page]
    assert (branch / "summary.md").read_text().endswith(page)
    for name in ("report.md", "summary.md", "body.json"):
        (branch / name).unlink()


def test_a_second_run_in_a_checkout_says_that_the_first_is_running(small):
    command = [sys.executable, "-m", "stages.repro", "--force"]
    first = subprocess.Popen(command, cwd=small, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline().startswith("Running stage 'fetch-base'")
    second = python(small, "stages.repro")
    assert second.returncode == 1
    assert second.stderr == (
        f"error: `make repro` (process {first.pid}) is running in this checkout; wait until it has ended, or work in "
        "another clone\n"
    )
    assert "fetch-base" in first.communicate()[0]
    assert first.returncode == 0
