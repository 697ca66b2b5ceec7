"""make gc: what nothing needs goes, what a commit needs and a run that can be resumed stay."""

import os
import subprocess
import sys
import time

import pytest
from repository import ROOT, dvc, environment, git


@pytest.fixture
def folder(tmp_path):
    """A DVC repository with a file of a commit, one that no commit knows, and checkpoints of two runs."""
    for name in ("qlora", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    git(tmp_path, "init", "-q")
    dvc(tmp_path, "init", "-q")
    for text in ("of no commit", "of a commit"):
        (tmp_path / "data.txt").write_text(text)
        dvc(tmp_path, "add", "-q", "data.txt")
    git(tmp_path, "add", "data.txt.dvc", ".gitignore", ".dvc")
    git(tmp_path, "commit", "-qm", "a file")
    for run, days in (("abandoned", 3), ("fresh", 0)):
        checkpoint = tmp_path / ".checkpoints" / run / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text("weights")
        written = time.time() - days * 24 * 60 * 60
        for path in (checkpoint / "weights", checkpoint, checkpoint.parent):
            os.utime(path, (written, written))
    return tmp_path


def collect(folder, answer: str) -> str:
    command = [sys.executable, "-m", "tools.gc"]
    done = subprocess.run(command, cwd=folder, env=environment(), input=answer, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cached(folder) -> set[str]:
    return {path.read_text() for path in (folder / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_nothing_goes_without_a_yes(folder):
    printed = collect(folder, "n\n")
    assert "1 files" in printed
    assert "1 abandoned runs" in printed
    assert cached(folder) == {"of no commit", "of a commit"}
    assert (folder / ".checkpoints/abandoned").is_dir()


def test_what_nothing_needs_goes(folder):
    collect(folder, "y\n")
    assert cached(folder) == {"of a commit"}
    assert [path.name for path in (folder / ".checkpoints").iterdir()] == ["fresh"]
