"""lock: write `locks/` from the requirements files: every package that comes with them, with the hashes of its files.

The hashes are those of PyPI's files, for Linux and macOS and for each Python that is supported. Versions in the present
locks stay as long as the requirements allow them; `--upgrade` takes the newest. Needs uv.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from qlora.runtime.console import Refusal, run_stage

OLDEST_PYTHON = "3.11"
FOLDER = Path("locks")
MAIN = Path("requirements.txt")
LIGHT = Path("requirements-light.txt")
# Further packages for the same environment, so they are resolved with the main ones and lock what they add.
ADDED = [Path(f"requirements-{name}.txt") for name in ("demo", "llm-compressor", "sql-engines")]
# With PyPI's build of torch come the CUDA libraries; builds of other indexes have none, or others (see environment.sh).
TORCH = re.compile(r"(torch|triton|cuda-.+|nvidia-(?!ml-py).+)==")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__.split("\n\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the requirements allow")
    parser.add_argument("--check", action="store_true", help="only compare the locks with the requirements' pins")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if not shutil.which("uv"):
        raise Refusal("`make lock` needs uv on PATH: `pip install uv`")

    with tempfile.TemporaryDirectory() as temporary:
        everything = Path(temporary) / "everything.txt"
        present = [] if arguments.upgrade else sorted(map(str, FOLDER.glob("*.lock")))
        everything.write_text("".join(Path(path).read_text() for path in present))  # uv keeps the versions it finds
        resolve([MAIN, *ADDED], everything)
        blocks = resolve([MAIN], constraint=everything)
        torch = {block for block in blocks if TORCH.match(block)}
        FOLDER.mkdir(exist_ok=True)
        write(MAIN, [block for block in blocks if block not in torch])
        write(Path("requirements-torch.txt"), [block for block in blocks if block in torch])
        write(LIGHT, resolve([LIGHT], constraint=everything))
        for added in ADDED:
            write(added, [block for block in resolve([added], constraint=everything) if block not in blocks])


def check() -> None:
    """Compare the requirements' pins with the locks. Runs before any package is installed.

    Raises:
        Refusal: with the pins that are not locked.
    """
    locked = {pin for path in FOLDER.glob("*.lock") for pin in pins(path)}
    for requirements in (MAIN, LIGHT, *ADDED):
        if missing := [pin for pin in pins(requirements) if pin not in locked]:
            raise Refusal(f"{requirements} pins {', '.join(missing)}, which {FOLDER}/ does not have: run `make lock`")


def pins(path: Path) -> list[str]:
    """The pins of a requirements file or a lock, as NAME==VERSION with the name as indexes spell it."""
    found = re.findall(r"^([\w.-]+)(?:\[.*?\])?==([\w.!+]+)", path.read_text(), re.MULTILINE)
    return [f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, version in found]


def resolve(requirements: list[Path], output: Path | None = None, constraint: Path | None = None) -> list[str]:
    """What uv resolves the requirements to: one block of lines per package, its pin and the hashes.

    Args:
        requirements: The files that people edit.
        output: A lock whose versions are kept if possible; it is written, too.
        constraint: Versions that the result must have.
    """
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-sources", f"--python-version={OLDEST_PYTHON}", *map(str, requirements)]
    command += [f"--output-file={output}"] if output else []
    command += [f"--constraint={constraint}"] if constraint else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"uv cannot resolve {' and '.join(map(str, requirements))}: {done.stderr.strip()}")
    return re.split(r"\n(?=\S)", done.stdout.strip())


def lock_of(requirements: Path) -> Path:
    """requirements.txt -> locks/main.lock, requirements-demo.txt -> locks/demo.lock."""
    return FOLDER / f"{requirements.stem.partition('-')[2] or 'main'}.lock"


def write(requirements: Path, blocks: list[str]) -> None:
    lock_of(requirements).write_text("# Written by `make lock`.\n" + "\n".join(blocks) + "\n")


if __name__ == "__main__":
    run_stage(main)
