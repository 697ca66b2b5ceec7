"""Build llama.cpp's web UI, once, into a per-user cache: `make ui`.

It is built from the server's own pinned sources with the packages that its lock file pins; prebuilt UIs on the
registries are of other commits. The build takes Node.js, minutes and 1 GB, and the pipeline does not need the UI.
llama-server serves the folder, so server and UI can be built in any order.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from qlora.llama_cpp import tools as llama_cpp
from qlora.runtime.console import Refusal, run_stage
from tools import llama_cpp_build

NODE = 20  # the oldest major version that the UI's build tools take


def main() -> None:
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with llama_cpp_build.locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            check_node()
            with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as work:
                build(Path(work)).rename(target)
    print(f"web UI: {target}")


def folder() -> Path:
    """Where the UI's files are, or will be once they are built."""
    return llama_cpp.cache_folder().with_name(f"llama.cpp-{llama_cpp.VERSION}-ui")


def check_node() -> None:
    """Raise Refusal unless node and npm are on PATH, and new enough."""
    if not (shutil.which("node") and shutil.which("npm")):
        raise Refusal(f"the web UI is built with Node.js {NODE} or newer and npm, which are not on PATH: install them")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < NODE:
        raise Refusal(f"the web UI needs Node.js {NODE} or newer; this one is {version}")


def build(work: Path) -> Path:
    """Build the UI in `work` and return the folder that holds its pages."""
    print("web UI: downloading llama.cpp's sources (77 MB)", flush=True)
    llama_cpp_build.unpack(llama_cpp_build.download(work), work, only="tools/ui/")
    source = work / "tools/ui"
    # No package's own scripts run: none of those that the build needs has one that matters.
    npm = ["npm", "--prefix", source, "--no-audit", "--no-fund"]
    llama_cpp.run([*npm, "ci", "--ignore-scripts"], "packages of the web UI")
    llama_cpp.run([*npm, "run", "build"], "build the web UI")
    return source / "dist"


if __name__ == "__main__":
    run_stage(main)
