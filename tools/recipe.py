"""recipe: start params.yaml from a recipe, pin what it names on the hub, and check this machine for it."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import nearest
from qlora.runtime.console import Refusal, run_stage
from tools import doctor, pin

RECIPES = Path("recipes")


def main() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if len(sys.argv) != 2:
        raise Refusal(f"name one recipe: make recipe NAME={names[0]} (or {', '.join(names[1:])})")
    name = sys.argv[1]
    if name not in names:
        raise Refusal(f"there is no recipe {name!r}; {nearest(name, names)}")
    recipe = RECIPES / f"{name}.yaml"
    load_params(recipe)
    if pin.PARAMS.is_file() and not is_kept(pin.PARAMS.read_bytes()):
        raise Refusal(f"{pin.PARAMS} has changes that are in no commit: commit it, or delete it, then run this again")
    pin.PARAMS.write_bytes(recipe.read_bytes())
    print(f"{pin.PARAMS}: {recipe}", flush=True)
    with contextlib.suppress(Refusal):  # the doctor says the same of the hub, among its other findings
        pin.main()
    doctor.main()


def is_kept(content: bytes) -> bool:
    """Whether params.yaml with this content, but for pins, can be had again: from the last commit, or from a recipe."""
    committed = subprocess.run(["git", "show", f"HEAD:./{pin.PARAMS}"], capture_output=True)
    kept = [committed.stdout, *(path.read_bytes() for path in RECIPES.glob("*.yaml"))]
    return without_pins(content) in map(without_pins, kept)


def without_pins(content: bytes) -> bytes:
    return re.sub(rb"(?m)^( *revision:).*$", rb"\1", content)


if __name__ == "__main__":
    run_stage(main)
