"""The shape of the code: what a stage depends on, which folder may import which, and how large a file may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools import deps

import pytest
from repository import ROOT
from ruamel.yaml import YAML

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
SCRIPTS = {
    name: Path("stages") / (re.search(r"stages\.(\w+)", stage["cmd"])[1] + ".py") for name, stage in STAGES.items()
}
FOLDERS = ("stages", "qlora", "tools", "tests", "benchmarks", "data")
PYTHON_FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EXEMPT = Path("qlora/__init__.py")  # from every stage's deps: no result depends on it


def names_imported(path: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, inside of functions, too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parent.parts[: len(path.parent.parts) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (package, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_modules(script: Path) -> set[Path]:
    """`script` and the library's modules that it imports, directly or not."""
    reached, waiting = {script}, [script]
    while waiting:
        for name in names_imported(waiting.pop()):
            base = ROOT.joinpath(*name.split("."))
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                module = path.relative_to(ROOT)
                if path.is_file() and module.parts[0] == "qlora" and module not in reached:
                    reached.add(module)
                    waiting.append(module)
    return reached - {EXEMPT}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_lists_its_script_and_the_rooms_and_modules_that_it_reaches(name):
    """A room is listed if every module of it is reached; otherwise single modules are."""
    reached = imported_modules(SCRIPTS[name])
    expected = {str(SCRIPTS[name])}
    for room in {module.parent for module in reached} - {Path("stages")}:
        modules = {path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py")}
        expected |= {str(room)} if modules <= reached else set(map(str, modules & reached))
    listed = [dep for dep in STAGES[name]["deps"] if dep.startswith(("stages", "qlora"))]
    assert len(set(listed)) == len(listed)
    assert set(listed) == expected
    assert listed == deps.cover(SCRIPTS[name])


def test_every_module_of_the_library_is_in_a_room_and_in_use():
    modules = {path for path in PYTHON_FILES if path.parts[0] == "qlora"} - {EXEMPT}
    assert {len(path.parts) for path in modules} == {3}
    used = set().union(*(imported_modules(path) for path in PYTHON_FILES if path.parts[0] in ("stages", "tools")))
    assert modules == {path for path in used if path.parts[0] == "qlora"}


def test_the_stages_are_twelve_short_scripts():
    assert sorted(SCRIPTS.values()) == [path for path in PYTHON_FILES if path.parts[0] == "stages"]
    assert {path.name for path in (ROOT / "stages").iterdir()} - {"__pycache__"} == {
        path.name for path in SCRIPTS.values()
    }
    assert len(SCRIPTS) == 12
    assert {str(path): length for path in SCRIPTS.values() if (length := lines(path)) > 200} == {}


def test_no_file_is_long():
    assert {str(path): length for path in PYTHON_FILES if (length := lines(path)) > 400} == {}


def lines(path: Path) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("qlora", ("stages.", "tools.", "benchmarks.")),
        ("stages", ("stages.", "tools.", "benchmarks.")),
        ("tools", ("stages.", "benchmarks.")),
        ("tests", ("benchmarks.", "test_")),
    ],
)
def test_imports_go_one_way(folder, forbidden):
    """Stages and tools use the library, not each other; tests use no benchmark and no other test."""
    paths = [path for path in PYTHON_FILES if path.parts[0] == folder]
    found = {(str(path), name) for path in paths for name in names_imported(path) if f"{name}.".startswith(forbidden)}
    assert found == set()
