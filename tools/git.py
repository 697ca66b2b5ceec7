"""What the tools ask Git. Paths are relative to the current folder, which may lie deep inside a repository."""

import subprocess
from pathlib import Path

from qlora.runtime.console import Refusal


def git(*arguments: str) -> str:
    """What `git` prints. Raises Refusal with its last line if it fails."""
    done = _run(*arguments)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Refusal(f"`git {' '.join(arguments)}` failed: {said}")
    return done.stdout


def paths(*arguments: str) -> list[str]:
    """The paths that `git` prints with -z, which leaves names that are not ASCII as they are."""
    return [path for path in git(*arguments, "-z").split("\0") if path]


def file_at(commit: str, path: str | Path) -> str | None:
    """The text of a file at a commit; None if it is not there."""
    done = _run("show", f"{commit}:./{path}")  # without ./ the path would start at the repository's root
    return None if done.returncode else done.stdout


def commit_of(revision: str) -> str | None:
    """The commit that a branch, tag or abbreviation names; None if Git knows none."""
    done = _run("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return None if done.returncode else done.stdout.strip()


def is_shallow() -> bool:
    """Whether the clone lacks older commits (`git clone --depth`)."""
    return git("rev-parse", "--is-shallow-repository").strip() == "true"


def setting(name: str) -> str:
    """The value of Git's setting `name`; empty if it has none."""
    return _run("config", "--get", name).stdout.strip()


def _run(*arguments: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8")
    except FileNotFoundError:
        raise Refusal("git is not on PATH: install it (Debian: apt install git)") from None
