"""Benchmarks that use the pipeline's functions run to their end, and `rows_needed` counts right.

Each runs in a process of its own, so no test imports a benchmark.
"""

import subprocess
import sys

from qlora.reporting import bootstrap

import numpy as np
import pytest
from repository import ROOT


@pytest.mark.parametrize(
    ("benchmark", "lines"),
    [
        ("cpu_speed", 4),
        pytest.param("loss_curves", 3, marks=pytest.mark.slow),  # it compiles
    ],
)
def test_a_benchmark_of_training_prints_its_table(prepared, benchmark, lines):
    prepared.set({"lora.dtype": "float32", "train.learning_rate": 0.01})  # so that another seed is not mere rounding
    (prepared.path / "benchmarks").symlink_to(ROOT / "benchmarks")
    done = prepared.python("-m", f"benchmarks.{benchmark}", "--steps", "3")
    assert done.returncode == 0, done.stderr
    _, _, table = done.stdout.strip().rpartition("\n\n")
    assert len(table.splitlines()) == lines


def test_rows_needed_show_the_difference_at_the_promised_rate():
    command = "from benchmarks.rows_needed import rows_needed; print(rows_needed(0.05, 0.15))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = int(done.stdout)
    random = np.random.default_rng(0)
    # Of 100 rows the better model alone gets 10 right, the other alone 5.
    drawn = random.choice([1, -1, 0], size=(200, rows), p=[0.10, 0.05, 0.85])
    seen = [bootstrap.ratio(row, np.ones(rows), np.arange(rows)).low > 0 for row in drawn]
    assert 0.72 <= np.mean(seen) <= 0.88
