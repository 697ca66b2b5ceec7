"""Checkpoints of a training run: their folder, whether they are complete, and the state of random generators.

A run that keeps its best step also has that step's adapter here, in the run's folder and in each checkpoint: a resumed
run goes on with the best step up to its checkpoint, not with that of a future which it may not repeat to the last bit.

They are in .checkpoints and not among the stage's outputs, because DVC removes outputs before a stage runs. A killed
run resumes from its last checkpoint and ends with the same adapter.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.schema import ADAPTERS, Params
from qlora.rows.prepared import split_file
from qlora.runtime.outputs import room_in, write_json

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import get_last_checkpoint

# In the user's repository (DVC_ROOT), even if DVC runs this stage in a temporary copy of it.
FOLDER = Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints"
COMPLETE = "complete"  # the last file written into a checkpoint: the digests of all others
BEST = "best.safetensors"  # the adapter with the lowest validation loss so far
# Parameters of train that do not decide a run's result: its layout, and who hears of it.
WITHOUT_EFFECT = {"devices", "parallel", "memory", "micro_batch_tokens", "compile", "report_to"}


def folder_of(params: Params) -> Path:
    """.checkpoints/<hash>, of everything that decides the result: parameters, rows and the base model.

    The hash excludes devices and layout, so a run can resume on more GPUs or with less memory.
    """
    digest = hashlib.sha256()
    for section in (params.quantization, params.lora, params.train):
        digest.update(section.model_dump_json(exclude=WITHOUT_EFFECT).encode())
    files = [split_file("train"), split_file("validation"), ARTIFACTS["base"].folder / BASE_RECORD]
    if (params.lora.start_from or "").startswith(ADAPTERS):  # the hub's are pinned
        files += sorted(Path(params.lora.start_from).glob("*.safetensors"))
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return FOLDER / digest.hexdigest()[:16]


def last_usable(folder: Path) -> Path | None:
    """The last checkpoint that is complete and undamaged; later ones are removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        checkpoint = Path(last)
        if is_complete(checkpoint):
            damaged = _damaged_files(checkpoint)
            if not damaged:
                return checkpoint
            print(f"{checkpoint.name} is damaged ({', '.join(damaged)}): resuming from the one before it", flush=True)
        shutil.rmtree(checkpoint)
    return None


def complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete."""
    write_json(checkpoint / COMPLETE, _digests(checkpoint))


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).exists()


def _damaged_files(checkpoint: Path) -> list[str]:
    try:
        written = json.loads((checkpoint / COMPLETE).read_text())
    except ValueError:
        return [COMPLETE]
    found = _digests(checkpoint)
    return [name for name, digest in written.items() if found.get(name) != digest]


def _digests(checkpoint: Path) -> dict[str, str]:
    """File name -> digest of its content."""
    found = {}
    for path in sorted(path for path in checkpoint.iterdir() if path.name != COMPLETE):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return found


def save_best(folder: Path, adapter: dict[str, torch.Tensor]) -> None:
    """Write the best adapter so far, in one step."""
    partial = folder / f"{BEST}.partial"
    with room_in(folder):
        save_file({name: weight.contiguous() for name, weight in adapter.items()}, partial)
    partial.replace(folder / BEST)


def load_best(folder: Path) -> dict[str, torch.Tensor]:
    """The best adapter of the run, on the CPU."""
    return load_file(folder / BEST)


def copy_best(source: Path | None, target: Path) -> None:
    """Copy the best adapter of a run into its checkpoint, or back; without one, `target` has none either."""
    (target / BEST).unlink(missing_ok=True)
    if source and (source / BEST).exists():
        shutil.copy(source / BEST, target)


def random_states() -> list[torch.Tensor]:
    """The states of torch's random generators: the CPU's and this process's GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def restore_random(states: list[torch.Tensor]) -> None:
    for set_state, state in zip((torch.set_rng_state, torch.cuda.set_rng_state), states, strict=False):
        set_state(state)
