"""gc: free what no branch, tag or experiment needs, and the checkpoints of abandoned runs; show how much, and ask.

What only the run-cache or a deleted branch knows goes. A run is abandoned if it wrote its last checkpoint more than a
day ago and is not that of the current params.yaml, which `dvc repro` would resume.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.runtime.console import Refusal, run_stage
from qlora.training import checkpoints
from tools import one_run

NEEDED = ["--workspace", "--all-branches", "--all-tags", "--all-experiments"]
DAY = 24 * 60 * 60  # seconds


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    lock = one_run.hold("make gc")  # noqa: F841 - until this process ends
    cached, runs = unneeded_files(), abandoned_runs()
    sizes = [sum(map(size_of, paths)) / 1e6 for paths in (cached, runs)]
    print(f"cache: {len(cached)} files that nothing needs, {sizes[0]:.0f} MB")
    print(f".checkpoints: {len(runs)} abandoned runs, {sizes[1]:.0f} MB")
    if not (cached or runs):
        return
    print("remove them? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return
    for run in runs:
        shutil.rmtree(run)
    if cached:
        dvc_gc("--force")
    print(f"freed about {sum(sizes):.0f} MB")


def unneeded_files() -> list[Path]:
    """Files in DVC's cache that `dvc gc` would remove."""
    return [Path(path) for path in re.findall(r"^Removing (.+)$", dvc_gc("--dry"), re.MULTILINE)]


def dvc_gc(option: str) -> str:
    done = subprocess.run(["dvc", "gc", *NEEDED, option], capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"`dvc gc` failed: {done.stderr.strip()}")
    return done.stdout


def abandoned_runs() -> list[Path]:
    """Checkpoint folders that no run is going to resume."""
    try:
        current = checkpoints.folder_of(load_params()) if Path("params.yaml").is_file() else None
    except FileNotFoundError:  # nothing is prepared yet
        current = None
    folders = [path for path in checkpoints.FOLDER.glob("*") if path.is_dir() and path != current]
    return [path for path in folders if time.time() - max(map(last_write, [path, *path.rglob("*")])) > DAY]


def last_write(path: Path) -> float:
    return path.stat().st_mtime


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


if __name__ == "__main__":
    run_stage(main)
