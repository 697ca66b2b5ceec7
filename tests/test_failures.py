"""Machines that fail: full disks, full memory, damaged checkpoints. Each gives one sentence and loses no output."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from qlora.llama_cpp import tools
from qlora.recipe.schema import EMBEDDED

import pytest
import torch
from conftest import refused
from fake_hub import COMMIT, fake_hub
from repository import ROOT
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
    tools.convert(Path("tiny"), Path("models/bf16/model.gguf"), "tiny")
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


# Folders that this user cannot write


def read_only(workspace, folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a stage with `folder` mounted read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    script = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}' && exec {sys.executable} -m "
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script + " ".join(command)],
        cwd=workspace.path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


@small_disk
@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("models", ["stages.fetch_base"]),
        ("data", ["stages.prepare_dataset"]),
        (".checkpoints", ["stages.quantize_load_train"]),
        ("models", ["stages.quantize_load_train"]),
        ("results", ["stages.quantize_load_train"]),
        ("results", ["stages.evaluate", "--artifact", "base"]),
    ],
)
def test_a_folder_of_the_project_that_cannot_be_written_is_named(prepared, folder, command):
    done = read_only(prepared, prepared.path / folder, *command)
    sentence = refused(done)
    assert sentence.startswith(f"{prepared.path / folder}")
    assert "cannot be opened or written (Read-only file system)" in sentence
    assert "\n" not in sentence
    assert "plan for" not in done.stdout  # it is found before the work, not after it
    assert "answering" not in done.stderr


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("unmounted")], ids=["file", "link"])
def test_a_file_in_place_of_a_folder_is_named(prepared, make):
    make(Path("results"))
    sentence = refused(prepared.run("quantize_load_train"))
    assert sentence.startswith(f"{prepared.path / 'results'} is to be a folder")
    Path("results").unlink()
    assert prepared.run("quantize_load_train").returncode == 0


@small_disk
def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(workspace, tmp_path):
    workspace.set({"model.id": EMBEDDED})
    cache = tmp_path / "home/.cache"
    sentence = refused(read_only(workspace, cache, "stages.fetch_base", HOME=str(tmp_path / "home"), XDG_CACHE_HOME=""))
    assert sentence.startswith(f"{cache}/qlora-pipeline")
    assert "set XDG_CACHE_HOME to a folder that this user can write" in sentence
    workspace.set({"model.id": "org/tiny", "model.revision": COMMIT})
    with fake_hub(workspace.path / "tiny", "org/tiny") as (address, _):
        hub = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": ""}
        sentence = refused(read_only(workspace, tmp_path / "hf", "stages.fetch_base", **hub))
    assert sentence.startswith(f"{tmp_path / 'hf'}")
    assert "set HF_HOME to a folder that this user can write" in sentence


def test_a_missing_folder_for_temporary_files_is_named(workspace):
    code = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/none']; tempfile.mkdtemp()"
    run = f"from qlora.runtime.console import run_stage; run_stage(lambda: exec({code!r}))"
    assert "set TMPDIR" in refused(workspace.python("-c", run))


@small_disk
def test_a_full_folder_for_temporary_files_is_named(workspace, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    (workspace.path / "fill.py").write_text(
        "import tempfile\nfrom qlora.runtime.console import run_stage\n"
        "run_stage(lambda: tempfile.TemporaryFile().write(b'x' * 10**7))\n"
    )
    fill = f"mount -t tmpfs -o size=1M tmpfs {small} && head -c 900K /dev/zero > {small}/other"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{fill} && exec {sys.executable} fill.py"],
        cwd=workspace.path,
        env=os.environ | {"TMPDIR": str(small)},
        capture_output=True,
        text=True,
    )
    sentence = refused(done)
    assert sentence.startswith(f"the disk is full ({small}")
    assert "TMPDIR" in sentence


# Users without a name


NAMELESS = [
    "unshare",
    "--map-user=12345",
    "--map-group=12345",
    "env",
    "-u",
    "USER",
    "-u",
    "LOGNAME",
    "-u",
    "LNAME",
    "-u",
    "USERNAME",
]
nameless = pytest.mark.skipif(
    subprocess.run([*NAMELESS, "true"], capture_output=True).returncode != 0, reason="needs unshare --map-user"
)


@nameless
def test_a_user_without_a_name_can_run_stages_and_targets(workspace):
    done = subprocess.run(
        [*NAMELESS, sys.executable, "-m", "stages.fetch_base"], cwd=workspace.path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "Makefile", workspace.path)
    (workspace.path / "more.mk").write_text(
        "include Makefile\nwho:\n\t@python -c 'import getpass; print(getpass.getuser())'\n"
    )
    shown = subprocess.run(
        [*NAMELESS, "make", "--no-print-directory", "-f", "more.mk", "who"],
        cwd=workspace.path,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() in ("12345", "user"), shown.stderr


@nameless
def test_a_user_without_a_home_folder_is_told_what_to_set(workspace):
    workspace.set({"model.id": EMBEDDED})
    command = [*NAMELESS, "env", "-u", "HOME", "-u", "XDG_CACHE_HOME", sys.executable, "-m", "stages.fetch_base"]
    done = subprocess.run(command, cwd=workspace.path, capture_output=True, text=True)
    assert "set HOME" in refused(done)


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
