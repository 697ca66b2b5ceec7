"""What may move a number besides the parameters: libraries, processor, threads, and variables of the shell.

It is recorded beside each score, so that two scores that differ are not taken for an effect of the parameters alone.
"""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

# Variables that change how torch and its libraries compute, and so the last digits of their results.
VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: version(name) for name in packages}


def environment(libraries: dict[str, str]) -> dict:
    """Versions, device, instruction set, threads and variables. It holds no host name and no path."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "packages": libraries,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def in_words(found: dict) -> str:
    """An environment in one line, for people and for comparisons."""
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    variables = "".join(f", {name}={value}" for name, value in found["variables"].items())
    return f"{packages}; {found['device']}, {found['instructions']}, {found['threads']} threads{variables}"
