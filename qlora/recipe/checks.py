"""Combinations of parameters that cannot work, each as one sentence that begins with the key to change."""

import re
from collections.abc import Iterator

from qlora.recipe.artifacts import ARTIFACTS, NEEDS_MATRIX, PLAIN, predecessor
from qlora.recipe.metrics import METRICS, parse_gate
from qlora.recipe.schema import Data, Evaluate, Gguf, Model, Params, Train, nearest

FILES = (".jsonl", ".csv", ".parquet")


def problems(params: Params) -> Iterator[str]:
    """Yield what is wrong with values that are valid by themselves."""
    yield from _source_problems(params.model, params.data)
    yield from _artifact_problems(params)
    yield from _gate_problems(params.evaluate, params.data.task)
    yield from _data_problems(params.data)
    yield from _gguf_problems(params.gguf)
    yield from _train_problems(params.train)


def _source_problems(model: Model, data: Data) -> Iterator[str]:
    for section, name, revision, is_hub, local in (
        ("model", model.id, model.revision, not (model.is_embedded or model.is_local), "a folder (./my-model)"),
        ("data", data.source, data.revision, not data.is_local, "a file under data/raw"),
    ):
        if is_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            yield f"{section}: {name!r} is neither {local} nor a name on the hub (owner/name)"
        elif not is_hub and revision is not None:
            yield f"{section}.revision: only a hub name has one; set it to null for {name!r}"


def _artifact_problems(params: Params) -> Iterator[str]:
    scored = params.evaluate.artifacts
    made = {"base", "adapter", "merged", "bf16", *params.gguf.types, *params.vllm.types}
    for artifact in scored:
        if artifact not in made:
            yield (
                f"evaluate.artifacts: {artifact!r} is never made; choose from {', '.join(sorted(made))}, "
                "or add it to gguf.types or vllm.types"
            )
    if len(set(scored)) < len(scored):
        yield "evaluate.artifacts: lists an artifact twice"


def _gate_problems(evaluate: Evaluate, task: str) -> Iterator[str]:
    scored = evaluate.artifacts
    known = [metric.name for metric in METRICS.values() if task == "text-to-sql" or not metric.sql]
    for artifact, limits in evaluate.gates.items():
        if artifact not in scored:
            advice = f"{nearest(artifact, scored)} (or add it to evaluate.artifacts, or drop its gates)"
            yield f"evaluate.gates.{artifact}: is not scored; {advice}"
            continue
        for name in limits:
            path = f"evaluate.gates.{artifact}.{name}"
            metric, change, other = parse_gate(name)
            if metric not in known:
                yield f"{path}: {metric!r} is not measured; {nearest(metric, known)}"
                continue
            is_distance, higher_is_better = METRICS[metric].distance, METRICS[metric].higher_is_better
            worse = "drop" if higher_is_better else "rise"
            if other is not None and other not in scored:
                yield f"{path}: {other!r} is not scored; {nearest(other, scored)}"
            elif change and is_distance:
                yield f"{path}: {metric} is a distance between two artifacts; limit it itself"
            elif change and change != worse:
                better = "higher" if higher_is_better else "lower"
                yield f"{path}: {better} is better, so limit {metric}_{worse}_from_{other}"
            elif is_distance and artifact in ARTIFACTS and predecessor(artifact, scored) in (None, "base"):
                yield f"{path}: {artifact} is compared with no other artifact; score the one before it, too"


def _data_problems(data: Data) -> Iterator[str]:
    for field in ("source", "test_source"):
        name = getattr(data, field) or "data/raw/"
        is_file = field == "test_source" or name.endswith(FILES)
        if is_file and not name.startswith("data/raw/"):
            yield f"data.{field}: {name!r} must lie under data/raw"
    if data.task == "text-to-sql":
        for field in ("{context}", "{question}"):
            if field not in data.user_prompt:
                yield f"data.user_prompt: must contain {field}"
    if data.test_source is None and data.test_fraction == 0:
        yield "data.test_fraction: must be above 0, or name a file of test rows in data.test_source"


def _gguf_problems(gguf: Gguf) -> Iterator[str]:
    for type_ in gguf.types:
        if type_ in NEEDS_MATRIX and not gguf.imatrix:
            yield f"gguf.types: {type_} needs an importance matrix; set gguf.imatrix to true"
        if type_.endswith(PLAIN) and type_.removesuffix(PLAIN) in NEEDS_MATRIX:
            yield f"gguf.types: {type_} cannot be made; llama.cpp wants an importance matrix for this type"


def _train_problems(train: Train) -> Iterator[str]:
    if train.devices != "auto" and train.devices > train.batch_size:
        yield f"train.devices: {train.devices} cannot share a step of {train.batch_size} rows (train.batch_size)"
    if train.parallel == "fsdp" and train.optimizer != "adamw":
        yield "train.parallel: fsdp shards the optimizer's state, too; set train.optimizer to adamw"
    if isinstance(train.micro_batch_tokens, int) and train.micro_batch_tokens < train.max_length:
        yield (
            f"train.micro_batch_tokens: {train.micro_batch_tokens} cannot hold a row of train.max_length "
            f"({train.max_length}) tokens"
        )
