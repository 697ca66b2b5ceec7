"""The real pipeline, killed at ten random moments, makes the same artifacts as an undisturbed run.

Takes minutes, so only `make test-slow` runs it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from repository import dvc, environment, make_repository
from ruamel.yaml import YAML

KILLS = 10
LIFE = (0.02, 0.2)  # seconds until a run is killed, as shares of an undisturbed run's: up to two stages


def artifacts(folder: Path) -> dict[str, str]:
    """DVC's hash of each output that holds no timings."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"].values()
    outs = {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}
    return {path: digest for path, digest in outs.items() if path.startswith(("data", "models"))}


@pytest.mark.slow
def test_ten_kills_change_no_artifact(tmp_path, tiny_model):
    (tmp_path / "calm").mkdir()
    make_repository(tmp_path / "calm", tiny_model)
    begin = time.monotonic()
    dvc(tmp_path / "calm", "repro")
    calm_seconds = time.monotonic() - begin
    expected = artifacts(tmp_path / "calm")
    assert {"models/adapter", "models/merged", "models/bf16", "models/Q8_0", "data/prepared"} <= expected.keys()

    folder = tmp_path / "killed"
    folder.mkdir()
    make_repository(folder, tiny_model)
    moments = random.Random(0)
    killed = []
    for _ in range(KILLS):
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"],
                cwd=folder,
                env=environment(),
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                assert process.wait(calm_seconds * moments.uniform(*LIFE)) == 0, (folder / "log").read_text()
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = [line for line in (folder / "log").read_text().splitlines() if line.startswith("Running stage")]
        killed.append(lines[-1] if lines else "before the first stage")
    print("\n".join(killed))  # with `pytest -s`: where it hit
    dvc(folder, "repro")
    assert artifacts(folder) == expected
    assert not list(folder.glob("*/.*.partial"))
