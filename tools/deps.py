"""deps: the code that each stage imports, as dvc.yaml has to list it.

    python -m tools.deps            # write it into dvc.yaml
    python -m tools.deps --check    # end with status 1 if dvc.yaml lists anything else

A stage lists its script; a room (qlora/NAME) if it reaches every module of it, else the single modules. Imports inside
of functions count. qlora/__init__.py is left out, because no result depends on it.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.outputs import write_text

from ruamel.yaml import YAML

PIPELINE = Path("dvc.yaml")
LIBRARY = Path("qlora")
CODE = re.compile(r"^      - (?:stages|qlora)/.*\n", re.MULTILINE)  # a line of a stage's deps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    text = PIPELINE.read_text()
    wanted = with_deps(text)
    if check and wanted != text:
        raise Refusal(f"{PIPELINE}: the code in deps: is not what the stages import; run `python -m tools.deps`")
    if not check:
        write_text(PIPELINE, wanted)


def with_deps(text: str) -> str:
    """The text of a dvc.yaml with each stage's code dependencies in place of those that it lists."""
    for name, stage in YAML(typ="safe").load(text)["stages"].items():
        script = Path("stages") / (re.search(r"-m stages\.(\w+)", stage["cmd"])[1] + ".py")
        begin = text.index(f"\n  {name}:\n") + 1
        end = begin + re.search(r"\n\n|\Z", text[begin:]).start() + 1
        head, deps, rest = text[begin:end].partition("    deps:\n")
        if not deps:
            raise Refusal(f"{PIPELINE}: the stage {name} has no `deps:` line; add one, and its data below it")
        lines = "".join(f"      - {path}\n" for path in cover(script))
        text = text[:begin] + head + deps + lines + CODE.sub("", rest) + text[end:]
    return text


def cover(script: Path) -> list[str]:
    """The script, and the rooms and modules that it reaches, in alphabetical order behind it."""
    reached = closure(script)
    paths = set()
    for room in sorted({path.parent for path in reached} - {script.parent}):
        modules = set(room.glob("*.py"))
        paths |= {str(room)} if modules <= reached else set(map(str, modules & reached))
    return [str(script), *sorted(paths)]


def closure(script: Path) -> set[Path]:
    """`script` and all of the library's modules that it imports, directly or not."""
    seen, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path)
    return seen


def imported(path: Path) -> Iterator[Path]:
    """The library's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            module = Path(*name.split(".")).with_suffix(".py")
            if module.parts[0] == str(LIBRARY) and module.is_file():
                yield module


if __name__ == "__main__":
    run_stage(main)
