"""The benchmarks that train with the pipeline's own functions still run; what they measure is theirs to say."""

import pytest
from conftest import REPO


@pytest.mark.parametrize(
    ("benchmark", "says"),
    [
        ("cpu_speed", "times as fast"),
        pytest.param("loss_curves", "of curves smoothed over", marks=pytest.mark.slow),  # it compiles
    ],
)
def test_a_benchmark_of_training_runs_to_its_end(prepared, benchmark, says):
    prepared.set({"lora.dtype": "float32", "train.learning_rate": 0.01})  # so that another seed is not mere rounding
    (prepared.path / "benchmarks").symlink_to(REPO / "benchmarks")
    done = prepared.python("-m", f"benchmarks.{benchmark}", "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
