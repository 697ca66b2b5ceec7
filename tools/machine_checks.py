"""Checks of this machine that `make doctor` begins with: Python, packages, llama.cpp, the GPU, and 4-bit products.

Only the last two import packages, so that a half-made environment is reported instead of ending in a traceback.
"""

import logging
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qlora.runtime.console import Refusal

SUPPORTED = [(3, minor) for minor in range(11, 15)]
OK, WARNING, PROBLEM = "ok", "warning", "problem"
NF4_ERROR = 0.15  # relative error of a product with normally distributed weights; 4 bits alone cost 0.09


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: the level, what was checked, the figure, and what to do about it."""

    level: str
    what: str
    figure: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<11} {self.figure}" + (f"; {self.advice}" if self.advice else "")


def check_python() -> Finding:
    figure = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in SUPPORTED:
        return Finding(OK, "Python", figure)
    return Finding(PROBLEM, "Python", figure, "the locked packages need 3.11 to 3.14: make setup PYTHON=python3.13")


def check_packages(requirements: Path = Path("requirements.txt")) -> Finding:
    """Compare the installed packages with the pins."""
    if not requirements.is_file():
        return Finding(PROBLEM, "packages", f"there is no {requirements} here", "run this in the repository")
    wrong, count = [], 0
    lines = requirements.read_text()
    for included in re.findall(r"^-r (\S+)", lines, re.MULTILINE):
        lines += requirements.with_name(included).read_text()
    for line in lines.splitlines():
        pin = re.match(r"(\w[\w.-]*)(?:\[.*\])?(?:==([\w.!+]+))?", line)
        if not pin:
            continue
        count += 1
        try:
            installed = version(pin[1]).partition("+")[0]  # without a build's own label, such as +cu130
        except PackageNotFoundError:
            wrong.append(f"{pin[1]} is missing")
            continue
        if pin[2] and installed != pin[2]:
            wrong.append(f"{pin[1]} is {installed}, pinned is {pin[2]}")
    if wrong:
        return Finding(PROBLEM, "packages", ", ".join(wrong), "run `make setup`")
    return Finding(OK, "packages", f"all {count} as pinned")


def check_llama_cpp() -> Iterator[Finding]:
    """llama.cpp's tools; if they are not built yet, the compiler that builds them."""
    from qlora.llama_cpp import tools

    try:
        found = tools.find()
    except Refusal as refusal:
        if os.environ.get("LLAMA_CPP_DIR"):
            yield Finding(PROBLEM, "llama.cpp", str(refusal))
            return
        yield Finding(WARNING, "llama.cpp", "not built yet", "`make llama.cpp` (part of `make repro`) builds it once")
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler:
            yield Finding(OK, "compiler", compiler)
        else:
            advice = "install one (Debian: apt install g++), or set LLAMA_CPP_DIR to a llama.cpp of your own"
            yield Finding(PROBLEM, "compiler", "no C++ compiler on PATH", advice)
        return
    try:
        shown = subprocess.run([found.quantize, "--help"], capture_output=True, text=True, timeout=60)
        runs = "usage:" in shown.stdout + shown.stderr
    except (OSError, subprocess.TimeoutExpired):
        runs = False
    folder = found.quantize.parent
    if not runs:
        advice = "it was built for another machine: remove that folder and run `make llama.cpp`"
        yield Finding(PROBLEM, "llama.cpp", f"{found.quantize} does not run", advice)
    elif found.converter is None:
        yield Finding(WARNING, "llama.cpp", f"{folder} has no {tools.CONVERTER}", "`make llama.cpp` fetches it")
    else:
        yield Finding(OK, "llama.cpp", str(folder))


def check_user() -> Iterator[Finding]:
    """Whether the user has a name, for which DVC asks."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        figure = f"uid {os.getuid()} has no entry in /etc/passwd, and `dvc` needs a name"
        yield Finding(WARNING, "user", figure, "make sets one; before `dvc` by hand: export USER=me")


def check_clone() -> Iterator[Finding]:
    """Whether DVC can run experiments in copies of this clone."""
    from tools import clone

    try:
        for obstacle in clone.obstacles():
            yield Finding(WARNING, "experiments", obstacle)
    except Refusal as refusal:
        yield Finding(WARNING, "experiments", str(refusal), "experiments need Git and DVC")


def check_gpu(compute_dtype: str | None) -> Finding:
    """Name, driver, memory and capabilities of the GPU that training would use.

    Args:
        compute_dtype: quantization.compute_dtype, if params.yaml can be read.
    """
    from qlora.runtime.machine import driver_version

    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        if driver:
            advice = f"this torch is built for CUDA {torch.version.cuda or '-'}; update the driver"
            return Finding(PROBLEM, "GPU", f"driver {driver} is there, but torch cannot use it", advice)
        return Finding(OK, "GPU", "none: training runs on the CPU")
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    figure = (
        f"{torch.cuda.get_device_name()}, driver {driver or 'unknown'}, {free / 1e9:.1f} GB of {total / 1e9:.1f} GB "
        f"free, compute capability {major}.{minor}, {'bf16' if bf16 else 'no bf16'}"
    )
    if not bf16 and compute_dtype == "bfloat16":
        advice = "bf16 is emulated, slowly: a GPU of compute capability 8.0 or newer computes it"
        return Finding(WARNING, "GPU", figure, advice)
    return Finding(OK, "GPU", figure)


def check_nf4() -> Finding:
    """Multiply by a matrix in NF4 on the device that training uses, and compare with the full-precision product."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would advise a package that nothing here needs
    try:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import quantize_4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(16, 512, generator=generator).to(device, torch.bfloat16)
        weight = torch.randn(256, 512, generator=generator).to(device, torch.bfloat16)
        packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        product = matmul_4bit(inputs, packed.t(), quant_state=state).float()
    except Exception as error:  # whatever a broken CUDA set-up raises is the finding
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(PROBLEM, "NF4", f"bitsandbytes failed: {reason}", "its own report: python -m bitsandbytes")
    exact = inputs.float() @ weight.float().T
    error = float((product - exact).norm() / exact.norm())
    figure = f"a product on {device} is {error:.1%} off the exact one"
    if not error <= NF4_ERROR:  # also when it is not a number
        return Finding(PROBLEM, "NF4", f"{figure}, 9 % is right", "its own report: python -m bitsandbytes")
    return Finding(OK, "NF4", figure)
