"""doctor: check this machine for the current params.yaml, one line a check, and say what to do about each failure.

Reads params.yaml and the model's config and tokenizer; fetches no weights and writes nothing. Ends with status 1 if
there is a problem.
"""

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qlora.runtime.console import Refusal, run_stage
from qlora.runtime.machine import available_memory
from tools.machine_checks import (
    OK,
    PROBLEM,
    WARNING,
    Finding,
    check_clone,
    check_gpu,
    check_llama_cpp,
    check_nf4,
    check_packages,
    check_python,
    check_user,
)

if TYPE_CHECKING:  # what needs packages is imported once they are checked
    from qlora.recipe.schema import Params
    from qlora.training.memory import Shape
    from tools.sizes import BaseModel

CPU_SIZED = 1e9  # parameters; larger models take days on a CPU
MERGED_AT_ONCE = 3e9  # bytes of the model: two large tensors in 32 bits, or the layers that are compared


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
    yield check_python()
    packages = check_packages()
    yield packages
    if packages.level == PROBLEM:
        return  # the checks below import them
    yield from check_llama_cpp()
    yield from check_user()
    yield from check_clone()
    from qlora.recipe.load import load_params

    try:
        params = load_params()
        yield Finding(OK, "params.yaml", f"{params.model.id} on {params.data.name}")
    except Refusal as refusal:
        yield Finding(PROBLEM, "params.yaml", str(refusal))
        params = None
    yield check_gpu(params and params.quantization.compute_dtype)
    if params is None or params.quantization.in_4_bits:
        yield check_nf4()
    if params is not None:
        yield from check_run(params)


def check_run(params: "Params") -> Iterator[Finding]:
    """What a run of these parameters needs."""
    from qlora.reporting import trackers
    from tools import sizes

    yield check_data(params)
    try:
        trackers.check(params.train.report_to)
    except Refusal as refusal:
        yield Finding(PROBLEM, "trackers", str(refusal))
    try:
        model = sizes.find_model(params.model)
        yield Finding(WARNING if model.offline else OK, "base model", model.about)
        shape = sizes.model_shape(params, model)
    except Refusal as refusal:
        yield Finding(PROBLEM, "base model", str(refusal))
        return
    yield check_tokenizer(params, model)
    if params.vllm.types:
        yield check_llm_compressor(params, model)
    if params.data.task == "text-to-sql" and params.evaluate.engine != "sqlite":
        yield check_engine(params.evaluate.engine)
    yield from check_disk(params, model, shape)
    yield check_merge_memory(params, model)
    yield check_scoring_memory(params, model)
    yield check_training_memory(params, shape)


def check_data(params: "Params") -> Finding:
    """Whether the rows are there with the columns that the task needs, or a hub data set can be had."""
    from qlora.raw_rows import sources
    from tools.sizes import hub_repository

    try:
        parts, found = params.data.parts, []
        if params.data.test_source:
            parts = [parts[0].model_copy(update={"source": params.data.test_source, "revision": None}), *parts]
        for part in parts:
            if part.is_local:
                sources.open_source(part, params.data)
                found.append(part.source)
            else:
                _, cached = hub_repository("dataset", part.source, part.revision)
                found.append(f"{part.source} {'in the cache' if cached else 'can be fetched'}")
        return Finding(OK, "data", ", ".join(found))
    except Refusal as refusal:
        return Finding(PROBLEM, "data", str(refusal))


def check_tokenizer(params: "Params", model: "BaseModel") -> Finding:
    """Whether llama.cpp reads text as training does, and the template knows a system prompt, as fetch-base checks."""
    from qlora.gguf import parity
    from qlora.llama_cpp import tools
    from qlora.source import tokenizer

    if model.folder is None:
        return Finding(OK, "tokenizer", "fetch-base checks it")
    try:
        if tools.find().converter is None:
            return Finding(OK, "tokenizer", "not checked without llama.cpp's converter")
    except Refusal:
        return Finding(OK, "tokenizer", "not checked without llama.cpp")
    try:
        chat, changes = tokenizer.settled(model.folder, params.model_of_task)
        tokenizer.check_system_prompt(chat, params.data.system_prompt)
        compared = parity.check_before_training(chat, model.folder, params.model)
    except Refusal as refusal:
        return Finding(PROBLEM, "tokenizer", str(refusal))
    return Finding(OK, "tokenizer", "; ".join([f"llama.cpp reads the same ids ({compared})", *changes]))


def check_llm_compressor(
    params: "Params", model: "BaseModel", requirements: Path = Path("requirements-llm-compressor.txt")
) -> Finding:
    """Whether vllm.types can be made: the packages as pinned, and a group size that fits the model."""
    from qlora.weights import compressed
    from qlora.weights.architecture import skeleton

    try:
        if model.folder is not None:
            compressed.check(skeleton(model.folder), params.vllm.types, params.vllm.group_size)
    except Refusal as refusal:
        return Finding(PROBLEM, "vLLM types", str(refusal))
    packages = check_packages(requirements)
    if packages.level == PROBLEM:
        return Finding(PROBLEM, "vLLM types", packages.figure, "run `make llm-compressor`")
    return Finding(OK, "vLLM types", f"{', '.join(params.vllm.types)} in groups of {params.vllm.group_size}")


def check_engine(name: str) -> Finding:
    """Whether the engine that runs the SQL of test rows can be used."""
    from qlora.sql import engine

    try:
        engine.check(name)
    except Refusal as refusal:
        return Finding(PROBLEM, "SQL engine", str(refusal))
    return Finding(OK, "SQL engine", name)


def check_disk(params: "Params", model: "BaseModel", shape: "Shape | None") -> Iterator[Finding]:
    """Free space against what one whole run writes, a line for each disk."""
    from qlora.source import embedded_model
    from tools.sizes import gb, written

    from huggingface_hub import constants

    cache = embedded_model.folder() if params.model.is_embedded else Path(constants.HF_HUB_CACHE)
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
            yield Finding(PROBLEM, "disk", figure, "make room (`make gc`), or shorten gguf.types")
        else:
            yield Finding(OK, "disk", figure)


def check_merge_memory(params: "Params", model: "BaseModel") -> Finding:
    """RAM for what merge holds at a time of a model of any size: two tensors, or the layers that it compares."""
    from qlora.training.memory import CPU_LIBRARIES
    from tools.sizes import gb

    growth = 2 if params.merge.dtype == "float32" else 1
    need, ram = CPU_LIBRARIES + growth * min(model.weights, MERGED_AT_ONCE), available_memory()
    figure = f"about {gb(need)} of RAM, {gb(ram)} available"
    if need <= ram:
        return Finding(OK, "merge", figure)
    advice = "set merge.dtype to bfloat16" if growth == 2 else "end other programs, or choose a smaller model"
    return Finding(PROBLEM, "merge", figure, advice)


def check_scoring_memory(params: "Params", model: "BaseModel") -> Finding:
    """Memory for the models that are scored in 16 bits, and for the GGUFs, which answer from RAM."""
    from qlora.recipe.artifacts import find
    from qlora.training.memory import CPU_LIBRARIES
    from qlora.weights import loading
    from tools.sizes import gb, gguf_bytes

    import torch

    names = [name for name in params.evaluate.artifacts if name != "adapter" or not params.quantization.in_4_bits]
    scored = [find(name) for name in names]  # without an adapter that can stay in 4 bits
    whole = sorted(one.name for one in scored if one.answered_by == "transformers")
    ggufs = [one.name for one in scored if one.answered_by == "llama.cpp"]
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    ram = available_memory()
    where = f"{gb(free)} free on the GPU, {gb(ram)} of RAM available" if free else f"{gb(ram)} of RAM available"
    # In the dtype that they are computed in, not stored in; before it is fetched, the embedded model's size.
    plain = loading.plain_bytes(model.folder, torch.bfloat16) if model.folder else model.weights
    if whole and plain > max(free, ram - CPU_LIBRARIES):
        figure = f"{' and '.join(whole)} take {gb(plain)}, {where}"
        return Finding(PROBLEM, "scoring", figure, f"take {' and '.join(whole)} off evaluate.artifacts")
    largest = max((plain if name == "bf16" else gguf_bytes(name, plain / 2) for name in ggufs), default=0)
    if largest + CPU_LIBRARIES > ram:
        figure = f"the largest GGUF takes {gb(largest)}, {where}"
        return Finding(PROBLEM, "scoring", figure, "take it off evaluate.artifacts")
    if whole and plain > free and plain > 2 * CPU_SIZED:
        advice = f"that is slow: take {' and '.join(whole)} off evaluate.artifacts"
        return Finding(WARNING, "scoring", f"{' and '.join(whole)} on the CPU, {where}", advice)
    return Finding(OK, "scoring", f"about {gb(max(plain * bool(whole), largest))}, {where}")


def check_training_memory(params: "Params", shape: "Shape | None") -> Finding:
    """Memory of training on each of its devices, as the memory plan has it for rows of train.max_length tokens."""
    from qlora.training import layout
    from qlora.training.device import planned_devices
    from tools.sizes import gb

    try:
        here = planned_devices(params.train)
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


if __name__ == "__main__":
    run_stage(main, __doc__)
