"""repro: check params.yaml as a whole, then `dvc repro`, one at a time in a checkout. Arguments go to DVC."""

import os
import sys

from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage
from tools import one_run


def main() -> None:
    load_params()  # before DVC reads the file in its own way
    lock = one_run.hold("make repro")  # noqa: F841 - DVC inherits it
    os.execvp("dvc", ["dvc", "repro", *sys.argv[1:]])


if __name__ == "__main__":
    run_stage(main)
