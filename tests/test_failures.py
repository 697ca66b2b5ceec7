"""Machines that fail: full disks, full memory, damaged checkpoints. Each gives one sentence and loses no output."""

import shutil
import subprocess
import sys
from pathlib import Path

from qlora.llama_cpp import tools

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file

TRY = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
MOUNTS = subprocess.run(TRY, capture_output=True).returncode == 0
small_disk = pytest.mark.skipif(not MOUNTS, reason="this machine does not let a user mount a small disk")


def on_small_disk(workspace, folder: str, spare: int, *command: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run a stage with `folder` on a disk of its own with `spare` bytes free; also return the files it leaves there."""
    size = sum(path.stat().st_size + 4096 for path in (workspace.path / folder).rglob("*")) + spare
    script = (
        f"cp -r {folder} ../kept && mount -t tmpfs -o size={size} tmpfs {folder} && cp -r ../kept/. {folder} && "
        f"{sys.executable} -m {' '.join(command)}; status=$?; find {folder} -type f > left; exit $status"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=workspace.path, capture_output=True, text=True)
    shutil.rmtree(workspace.path.parent / "kept", ignore_errors=True)
    return done, set((workspace.path / "left").read_text().split())


@small_disk
def test_a_disk_that_fills_while_rows_are_written(prepared):
    before = {str(path) for path in Path("data").rglob("*") if path.is_file()}
    done, left = on_small_disk(prepared, "data", 20_000, "stages.prepare_dataset")
    assert refused(done).startswith("the disk is full (while writing data/.prepared.partial)")
    assert left == before


@small_disk
def test_a_disk_that_fills_while_a_checkpoint_is_written(prepared):
    Path(".checkpoints").mkdir()
    done, left = on_small_disk(prepared, ".checkpoints", 6_000_000, "stages.quantize_load_train")
    assert refused(done).startswith("the disk is full (while writing .checkpoints/")
    assert len([path for path in left if path.endswith("checkpoint-1/complete")]) == 1
    assert not [path for path in left if path.endswith("checkpoint-2/complete")]


@small_disk
def test_a_disk_that_fills_while_a_gguf_is_converted(prepared):
    shutil.copytree("tiny", "models/merged")
    shutil.copy("models/base/base.json", "models/merged")
    before = {str(path) for path in Path("models").rglob("*") if path.is_file()}
    weights = Path("tiny/model.safetensors").stat().st_size
    for spare, sentence in (
        (weights // 2, "the GGUF needs 0.0 GB under models/merged"),
        (weights + 100_000, "the disk is full (while writing models/.bf16.partial)"),  # the vocabulary is not estimated
    ):
        done, left = on_small_disk(prepared, "models", spare, "stages.convert_gguf")
        assert refused(done).startswith(sentence)
        assert left == before


@small_disk
def test_a_disk_that_fills_while_a_gguf_is_quantized(prepared):
    Path("models/bf16").mkdir()
    tools.convert(Path("tiny"), Path("models/bf16/model.gguf"))
    shutil.copy("models/base/base.json", "models/bf16")
    done, left = on_small_disk(prepared, "models", 2_000_000, "stages.quantize_gguf", "--type", "Q8_0")
    assert refused(done).startswith("the disk is full (while writing models/.Q8_0.partial)")
    assert left == {"models/base/base.json", "models/bf16/base.json", "models/bf16/model.gguf"}


@small_disk
def test_a_disk_that_is_too_small_for_a_file_of_weights(prepared):
    """safetensors allocates the whole file first and removes it when it fails, so the disk does not look full then."""
    Path("fill.py").write_text(
        "from qlora.runtime.console import run_stage; from qlora.runtime.outputs import new_folder\n"
        "import torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "def main():\n"
        "    with new_folder(Path('models/full')) as folder:\n"
        "        save_file({'x': torch.zeros(10**6)}, folder / 'x.safetensors')\n"
        "run_stage(main)\n"
    )
    done, left = on_small_disk(prepared, "models", 2_000_000, "fill")
    assert refused(done).startswith("the disk is full (while writing models/.full.partial)")
    assert left == {"models/base/base.json"}


RUN = "from qlora.runtime.console import run_stage; import torch; run_stage(lambda: {})"


@pytest.mark.parametrize(
    ("body", "whose"),
    [
        ("torch.empty(1 << 50)", "this machine's"),
        ("bytearray(1 << 60)", "this machine's"),
        pytest.param(
            "torch.empty(1 << 50, device='cuda')",
            "the GPU's",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_memory_that_does_not_suffice(workspace, body, whose):
    assert refused(workspace.python("-c", RUN.format(body))).startswith(f"{whose} memory is full")


@pytest.mark.parametrize("name", [pytest.param("optimizer.pt", marks=pytest.mark.slow), "complete"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(prepared, name):
    assert prepared.run("quantize_load_train").returncode == 0
    expected = load_file("models/adapter/adapter_model.safetensors")
    # The same run, ended by a loss of power: checkpoints 2 and 3 are there, and 3 was not written to its end.
    stop = (
        "import os; from qlora.training import run; from stages import quantize_load_train as stage\n"
        "run.check_trained = lambda *_: os._exit(9)\n"
        "stage.main()"
    )
    assert prepared.python("-c", stop).returncode == 9
    (last,) = Path().glob(".checkpoints/*/checkpoint-3")
    path = last / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = prepared.run("quantize_load_train")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint-3 is damaged ({name})" in done.stdout
    assert "from checkpoint-2" in done.stdout
    resumed = load_file("models/adapter/adapter_model.safetensors")
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
