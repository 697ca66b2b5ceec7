"""repro: check params.yaml as a whole, pin what has no commit, then `dvc repro`, one at a time in a checkout.

If the base model is not here yet, it first checks what a run would need, so that a model that is too large for this
machine is refused before its weights are fetched. Arguments go to DVC.
"""

import os
import subprocess
import sys

from qlora.recipe.artifacts import ARTIFACTS
from qlora.recipe.load import load_params
from qlora.recipe.schema import Params
from qlora.runtime.console import Refusal, run_stage
from qlora.source import base_model
from tools import doctor, one_run, pin
from tools.machine_checks import OK, PROBLEM


def main() -> None:
    load_params()  # before DVC reads the file in its own way
    pin.main()
    params = load_params()
    if not is_fetched(params) and will_run("fetch-base"):
        check(params)
    lock = one_run.hold("make repro")  # noqa: F841 - DVC inherits it
    os.execvp("dvc", ["dvc", "repro", *sys.argv[1:]])


def is_fetched(params: Params) -> bool:
    """Whether the last run was of this base model."""
    try:
        return base_model.recorded(ARTIFACTS["base"].folder) == params.model
    except Refusal:  # there is no record, or a damaged one
        return False


def will_run(stage: str) -> bool:
    """Whether `dvc repro` would run `stage`; it only restores outputs that are in the cache, perhaps a colleague's."""
    said = subprocess.run(["dvc", "repro", "--dry", "--single-item", stage], capture_output=True, text=True).stdout
    return f"Running stage '{stage}'" in said and f"Stage '{stage}' is cached" not in said


def check(params: Params) -> None:
    """Print what the doctor finds. Raises Refusal if a run would fail."""
    found = [finding for finding in doctor.check_run(params) if finding.level != OK]
    for finding in found:
        print(finding, flush=True)
    if problems := [finding.what for finding in found if finding.level == PROBLEM]:
        raise Refusal(
            f"this run would fail on this machine ({', '.join(problems)}: above); nothing was fetched. `make doctor` "
            "shows all checks; `dvc repro` runs without them"
        )


if __name__ == "__main__":
    run_stage(main)
