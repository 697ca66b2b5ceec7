"""Combinations of parameters that cannot work, each as one sentence that begins with the key to change."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from qlora.recipe.artifacts import FIT, NEEDS_MATRIX, PLAIN, find, predecessor
from qlora.recipe.metrics import AUTO, GENERAL, METRICS, OWN_KEYS, PREFERENCE, SCORER, SQL, measured_by, parse_gate
from qlora.recipe.schema import Data, Evaluate, Gguf, Model, Params, Train, nearest

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def problems(params: Params) -> Iterator[str]:
    """Yield what is wrong with values that are valid by themselves."""
    yield from _source_problems(params.model, params.data)
    yield from _template_problems(params.model.chat_template)
    yield from _document_problems(params)
    yield from _artifact_problems(params)
    yield from _metric_problems(params.evaluate, params.data)
    yield from _gate_problems(params.evaluate, params.data.task)
    yield from _engine_problems(params.evaluate.engine, params.data)
    yield from _data_problems(params.data)
    yield from _gguf_problems(params.gguf)
    yield from _train_problems(params.train)
    if params.lora.experts and not params.quantization.in_4_bits:
        yield "lora.experts: adapts experts in 4 bits only; set it to false, or quantization.type to nf4"


def _source_problems(model: Model, data: Data) -> Iterator[str]:
    if (data.source is None) == (not data.sources):
        yield "data.source: name one source, or several in data.sources" + (", not both" if data.sources else "")
        return
    if data.sources and data.revision is not None:
        yield "data.revision: belongs to each hub data set in data.sources; set it to null"
    if 0 < sum(part.weight is not None for part in data.sources) < len(data.sources):
        yield "data.sources: give each source a weight, or none"
    if len({(part.source, part.subset, part.split) for part in data.parts}) < len(data.parts):
        yield "data.sources: names a source twice"
    places = [f"data.sources.{at}" for at in range(len(data.sources))] or ["data"]
    for section, name, revision, is_hub, local in (
        ("model", model.id, model.revision, not (model.is_embedded or model.is_local), "a folder (./my-model)"),
        *(
            (place, part.source, part.revision, not part.is_local, "a file under data/raw")
            for place, part in zip(places, data.parts, strict=True)
        ),
    ):
        if is_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            yield f"{section}: {name!r} is neither {local} nor a name on the hub (owner/name)"
        elif not is_hub and revision is not None:
            yield f"{section}.revision: only a hub name has one; set it to null for {name!r}"


def _template_problems(name: str | None) -> Iterator[str]:
    if name not in (None, "chatml") and not re.fullmatch(r"templates/[^/]+\.jinja", name):
        yield f"model.chat_template: {name[:60]!r} is neither chatml nor a file under templates/ (templates/mine.jinja)"


def _document_problems(params: Params) -> Iterator[str]:
    """Documents have no turns, so nothing of a conversation applies to them."""
    if params.data.task != "text":
        return
    why = "data.task text learns documents as they are, without turns; set it to"
    if params.data.system_prompt:
        yield f"data.system_prompt: {why} null"
    if params.model.chat_template or params.model.chat_template_kwargs:
        key, off = ("chat_template", "null") if params.model.chat_template else ("chat_template_kwargs", "{}")
        yield f"model.{key}: {why} {off}"
    for at, part in enumerate(params.data.parts if params.data.source or params.data.sources else ()):
        if part.format != "auto":
            yield f"data.{f'sources.{at}.' if params.data.sources else ''}format: {why} auto"
    if params.train.loss_on != "all_answers":
        yield f"train.loss_on: {why} all_answers"


def _artifact_problems(params: Params) -> Iterator[str]:
    scored = params.evaluate.artifacts
    made = {"base", "adapter", "merged", "bf16", *params.gguf.types, *params.gguf.adapters, *params.vllm.types}
    for artifact in scored:
        if artifact not in made:
            yield (
                f"evaluate.artifacts: {artifact!r} is never made; choose from {', '.join(sorted(made))}, "
                "or add it to gguf.types, gguf.adapters or vllm.types"
            )
    if len(set(scored)) < len(scored):
        yield "evaluate.artifacts: lists an artifact twice"


def _engine_problems(engine: str, data: Data) -> Iterator[str]:
    if engine in ("postgres", "mysql") and data.task == "text-to-sql" and data.dialect != engine:
        yield (
            f"evaluate.engine: {engine} runs only its own dialect, and data.dialect is {data.dialect}; "
            f"set evaluate.engine to sqlite or duckdb, which queries are translated for"
        )


def _metric_problems(evaluate: Evaluate, data: Data) -> Iterator[str]:
    for one in evaluate.metrics:
        if one.name == SQL and data.task != "text-to-sql":
            yield f"evaluate.metrics: {SQL} runs SQL, and data.task is {data.task}"
        if one.json_schema:
            try:
                json.loads(Path(one.json_schema).read_text(encoding="utf-8"))
            except OSError as error:
                yield f"evaluate.metrics: {one.json_schema} cannot be read ({error.strerror})"
            except (ValueError, RecursionError) as error:
                yield f"evaluate.metrics: {one.json_schema} is not JSON ({error})"
    if evaluate.general not in (None, "builtin") and not re.fullmatch(r"data/raw/.+\.jsonl", evaluate.general):
        yield f"evaluate.general: {evaluate.general[:60]!r} is neither builtin nor a .jsonl file under data/raw"
    compared = evaluate.preference.artifacts
    if data.task == "text":  # a document is continued from its first half
        judged = {"metrics": [one for one in evaluate.metrics if one.name != "auto"], "general": evaluate.general}
        for key in (key for key, value in (judged | {"preference.artifacts": compared}).items() if value):
            yield f"evaluate.{key}: judges answers to questions, and data.task is text; leave it at its default"
    for artifact in compared:
        if artifact == "base" or artifact not in evaluate.artifacts or "base" not in evaluate.artifacts:
            yield f"evaluate.preference.artifacts: {artifact!r} and base must be two of evaluate.artifacts"
    if len(set(compared)) < len(compared):
        yield "evaluate.preference.artifacts: lists an artifact twice"
    if compared and not evaluate.preference.model:
        yield "evaluate.preference.model: is missing: the judge's name on its server"
    if evaluate.scorer:
        yield from _scorer_problems(Path(evaluate.scorer))


def _scorer_problems(path: Path) -> Iterator[str]:
    wanted = "define `def score(row, answer)` in it (scorers/README.md)"
    try:
        functions = {
            node.name: node.args for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)
        }
    except OSError as error:
        yield f"evaluate.scorer: {path} cannot be read ({error.strerror}); {wanted}"
        return
    except (SyntaxError, ValueError, RecursionError) as error:
        yield f"evaluate.scorer: {path} is not Python ({error})"
        return
    if "score" not in functions:
        yield f"evaluate.scorer: {path} has no function score; {wanted}"


def _gate_problems(evaluate: Evaluate, task: str) -> Iterator[str]:
    scored = evaluate.artifacts
    own = {SCORER: evaluate.scorer, GENERAL: evaluate.general, PREFERENCE: evaluate.preference.artifacts}
    kinds = [kind for kind, value in own.items() if value]
    for one in evaluate.metrics:
        kinds += [one.name] if one.name != "auto" else {"text-to-sql": [SQL], "chat": AUTO, "text": []}[task]
    known = [*measured_by(kinds), *(metric.name for metric in METRICS.values() if not metric.kinds)]
    for artifact, limits in evaluate.gates.items():
        if artifact not in scored:
            advice = f"{nearest(artifact, scored)} (or add it to evaluate.artifacts, or drop its gates)"
            yield f"evaluate.gates.{artifact}: is not scored; {advice}"
            continue
        for name in limits:
            path = f"evaluate.gates.{artifact}.{name}"
            metric, change, other = parse_gate(name)
            if metric not in METRICS:
                yield f"{path}: {metric!r} is not measured; {nearest(metric, known)}"
                continue
            if metric not in known:
                kind = METRICS[metric].kinds[0]
                where = f"set evaluate.{kind}" if kind in OWN_KEYS else f"name {kind} in evaluate.metrics"
                if kind == SQL and task != "text-to-sql":
                    where = f"it is of data.task text-to-sql, and data.task is {task}"
                yield f"{path}: is not measured; {where}, or drop the gate"
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
            elif is_distance and find(artifact) and predecessor(artifact, scored) in (None, "base"):
                yield f"{path}: {artifact} is compared with no other artifact; score the one before it, too"


def _data_problems(data: Data) -> Iterator[str]:
    names = {"source": data.source} | {f"sources.{at}": part.source for at, part in enumerate(data.sources)}
    for field, name in (names | {"test_source": data.test_source}).items():
        if name and (field == "test_source" or name.endswith(FILES)) and not name.startswith("data/raw/"):
            yield f"data.{field}: {name!r} must lie under data/raw"
    if data.task == "text-to-sql":
        for field in ("{context}", "{question}"):
            if field not in data.user_prompt:
                yield f"data.user_prompt: must contain {field}"
    if data.test_source is None and data.test_fraction == 0:
        yield "data.test_fraction: must be above 0, or name a file of test rows in data.test_source"


def _gguf_problems(gguf: Gguf) -> Iterator[str]:
    for type_ in gguf.types:
        fitted = FIT.fullmatch(type_)
        if fitted and not gguf.sensitivity:
            yield f"gguf.types: {type_} is chosen by how sensitive each tensor is; set gguf.sensitivity to true"
        if fitted and fitted[2] == "bpw" and not 2.6 <= float(fitted[1]) <= 8.6:
            yield f"gguf.types: {type_} cannot be made; bits per weight are from 2.6 (Q2_K) to 8.6 (Q8_0)"
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
