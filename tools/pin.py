"""pin: write the present commit of a hub model or data set into params.yaml where it has none, as a lock file does."""

import re
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage
from qlora.source import hub

from ruamel.yaml import YAML

PARAMS = Path("params.yaml")


def main() -> None:
    """Pin what has no pin, and say what was written.

    Raises:
        Refusal: if the hub has no such repository or cannot be reached.
    """
    params = load_params(PARAMS)
    if not (params.model.is_embedded or params.model.is_local or params.model.revision):
        pin("model", params.model.id)
    if params.data.source and not (params.data.is_local or params.data.revision):  # fetch-base names those of `sources`
        pin("dataset", params.data.source)


def pin(kind: hub.Kind, name: str) -> None:
    """Set the revision of `name` in params.yaml to the commit that its main branch is at; other lines stay."""
    commit, section = hub.commit_of(kind, name, None), hub.SECTION[kind]
    lines = PARAMS.read_text(encoding="utf-8").splitlines(keepends=True)
    places = YAML().load(PARAMS)[section].lc.data  # key -> line and column of the key, and of its value
    if "revision" in places:
        line = places["revision"][0]
        lines[line] = re.sub(r"(revision['\"]?:)[ ]*(null|Null|NULL|~)?[ ]*(#.*)?$", rf"\1 {commit}", lines[line])
    else:
        line, column = places[hub.FIELD[kind].partition(".")[2]][:2]
        lines.insert(line, f"{' ' * column}revision: {commit}\n")
    PARAMS.write_text("".join(lines), encoding="utf-8")
    print(f"{section}.revision: {name} is pinned at {commit}, its newest commit; commit {PARAMS} with it", flush=True)


if __name__ == "__main__":
    run_stage(main)
