"""params.yaml, read through one strict schema: every problem at once, each with its path and what to do."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from qlora.runtime.console import Refusal, run_stage

EMBEDDED = "embedded/SmolLM2-135M-Instruct"
VLLM_TYPES = ("W4A16-AWQ", "W4A16-GPTQ")  # 4-bit weights, 16-bit activations
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    # strict: `r: "8"` or `r: 8.5` is a mistake to report, not to guess at.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    id: str  # EMBEDDED, a hub name (owner/name), or a local folder (starts with ./, ../, / or ~)
    revision: str | None = None  # of a hub name: its commit; `hub.download` refuses anything else

    @property
    def is_embedded(self) -> bool:
        return self.id == EMBEDDED

    @property
    def is_local(self) -> bool:
        return self.id.startswith(("./", "../", "/", "~"))


class Columns(Section):
    """The names under which the rows hold what the task needs; text-to-sql reads the first four, chat the rest."""

    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    group: str | None = None  # rows with one value stay in one split; null: the context, or the first question
    messages: str = "messages"
    text: str | None = None  # chat rows as one text: `### Human:` / `### Assistant:`, or Llama-2's `[INST]`


class Data(Section):
    source: str  # a file under data/raw (.jsonl, .csv, .parquet) or a hub data set (owner/name)
    revision: str | None = None
    split: str = "train"
    test_source: str | None = None  # a file with the test rows; null: they are split off `source`
    task: Literal["text-to-sql", "chat"]
    dialect: Literal["sqlite", "postgres", "mysql"]
    columns: Columns = Columns()
    system_prompt: str | None = None
    user_prompt: str = "{context}\n\n{question}"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    test_fraction: Share = 0.1
    train_rows: Count | None = None
    validation_rows: Count | None = None
    test_rows: Count | None = None
    near_duplicates: Literal["drop", "keep"] = "drop"
    overlong: Literal["drop", "truncate"] = "drop"
    seed: Seed = 0

    @property
    def is_local(self) -> bool:
        return self.source.startswith("data/raw/")


class Quantization(Section):
    type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # float16 overflows on some models


class Lora(Section):
    r: Count
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    use_rslora: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @field_validator("target_modules")
    @classmethod
    def not_empty(cls, modules: str | list[str]) -> str | list[str]:
        if not modules:
            raise ValueError('names no module; use "all-linear" or a list such as [q_proj, v_proj]')
        return modules


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Count | None = None
    batch_size: Count
    max_length: Annotated[int, Field(ge=16)]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    memory: Literal["auto", "low", "high"] = "auto"
    micro_batch_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    eval_steps: Count = 20
    checkpoint_steps: Count = 20
    seed: Seed = 0


class Merge(Section):
    base: Literal["full", "dequantized"] = "full"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Gguf(Section):
    types: Annotated[list[str], Field(min_length=1)]  # llama-quantize's names, each may end in PLAIN
    imatrix: bool
    imatrix_rows: Count

    @field_validator("types")
    @classmethod
    def known(cls, types: list[str]) -> list[str]:
        for name in types:
            if name.removesuffix(PLAIN) not in GGUF_TYPES:
                raise ValueError(f"{name!r} is no GGUF type; {_nearest(name.upper(), GGUF_TYPES)}")
        if len(set(types)) < len(types):
            raise ValueError("lists a type twice")
        return types


class Vllm(Section):
    types: list[Literal[VLLM_TYPES]]
    group_size: Literal[32, 64, 128]  # what vLLM's kernels know
    calibration_rows: Count

    @field_validator("types")
    @classmethod
    def each_once(cls, types: list[str]) -> list[str]:
        if len(set(types)) < len(types):
            raise ValueError("lists a type twice")
        return types


class Evaluate(Section):
    artifacts: Annotated[list[str], Field(min_length=1)]
    max_new_tokens: Count
    batch_size: Count
    databases: Count
    seed: Seed
    gates: dict[str, dict[str, float]] = {}  # artifact -> metric (as `parse_gate` reads it) -> limit


class Params(Section):
    model: Model
    data: Data
    quantization: Quantization
    lora: Lora
    train: Train
    merge: Merge
    gguf: Gguf
    vllm: Vllm
    evaluate: Evaluate

    @model_validator(mode="after")
    def combinations(self) -> "Params":
        """Refuse what no single value shows to be wrong."""
        problems = []
        for section, name, is_hub in (
            ("model", self.model.id, not (self.model.is_embedded or self.model.is_local)),
            ("data", self.data.source, not self.data.is_local),
        ):
            revision = getattr(self, section).revision
            if is_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                where = "a folder (./my-model)" if section == "model" else "a file under data/raw"
                problems.append(f"{section}: {name!r} is neither {where} nor a name on the hub (owner/name)")
            elif not is_hub and revision is not None:
                problems.append(f"{section}.revision: only a hub name has one; set it to null for {name!r}")
        built = {"base", "adapter", "merged", "bf16", *self.gguf.types, *self.vllm.types}
        for artifact in self.evaluate.artifacts:
            if artifact not in built:
                problems.append(
                    f"evaluate.artifacts: {artifact!r} is never made; choose from {', '.join(sorted(built))}, "
                    "or add it to gguf.types or vllm.types"
                )
        if len(set(self.evaluate.artifacts)) < len(self.evaluate.artifacts):
            problems.append("evaluate.artifacts: lists an artifact twice")
        for artifact, limits in self.evaluate.gates.items():
            problems += [
                f"evaluate.gates.{artifact}{problem}" for problem in self._gate_problems(artifact, list(limits))
            ]
        for field in ("source", "test_source"):
            name = getattr(self.data, field) or "data/raw/"
            is_file = field == "test_source" or name.endswith((".jsonl", ".csv", ".parquet"))
            if is_file and not name.startswith("data/raw/"):
                problems.append(f"data.{field}: {name!r} must lie under data/raw")
        if self.data.task == "text-to-sql":
            for field in ("{context}", "{question}"):
                if field not in self.data.user_prompt:
                    problems.append(f"data.user_prompt: must contain {field}")
        if self.data.test_source is None and self.data.test_fraction == 0:
            problems.append("data.test_fraction: must be above 0, or name a file of test rows in data.test_source")
        for type_ in self.gguf.types:
            if type_ in NEEDS_MATRIX and not self.gguf.imatrix:
                problems.append(f"gguf.types: {type_} needs an importance matrix; set gguf.imatrix to true")
            if type_.removesuffix(PLAIN) in NEEDS_MATRIX and type_.endswith(PLAIN):
                problems.append(
                    f"gguf.types: {type_} cannot be made, llama.cpp wants an importance matrix for this type"
                )
        devices = self.train.devices
        if devices != "auto" and devices > self.train.batch_size:
            problems.append(
                f"train.devices: {devices} cannot share a step of {self.train.batch_size} rows (train.batch_size)"
            )
        if self.train.parallel == "fsdp" and self.train.optimizer != "adamw":
            problems.append("train.parallel: fsdp shards the optimizer's state, too; set train.optimizer to adamw")
        if isinstance(self.train.micro_batch_tokens, int) and self.train.micro_batch_tokens < self.train.max_length:
            problems.append(
                f"train.micro_batch_tokens: {self.train.micro_batch_tokens} cannot hold a row of train.max_length "
                f"({self.train.max_length}) tokens"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _gate_problems(self, artifact: str, names: list[str]) -> list[str]:
        """What is wrong with an artifact's gates, each as the rest of a sentence after evaluate.gates.ARTIFACT."""
        scored = self.evaluate.artifacts
        if artifact not in scored:
            return [
                f": is not scored; {_nearest(artifact, scored)} (or add it to evaluate.artifacts, or drop its gates)"
            ]
        if self.data.task == "text-to-sql":
            known = [*AT_LEAST, *AT_MOST]
        else:
            known = [metric for metric in (*AT_LEAST, *AT_MOST) if metric not in SQL_METRICS]
        problems = []
        for name in names:
            metric, change, other = parse_gate(name)
            if metric not in known:
                problems.append(f".{name}: {metric!r} is not measured; {_nearest(metric, known)}")
            elif other is not None and other not in scored:
                problems.append(f".{name}: {other!r} is not scored; {_nearest(other, scored)}")
            elif change and metric in DISTANCES:
                problems.append(f".{name}: {metric} is a distance between two artifacts; limit it itself")
            elif change and change != (right := "drop" if metric in AT_LEAST else "rise"):
                better = "higher" if metric in AT_LEAST else "lower"
                problems.append(f".{name}: {better} is better, so limit {metric}_{right}_from_{other}")
            elif metric in DISTANCES and predecessor(artifact, scored) in (None, "base"):
                problems.append(f".{name}: {artifact} is compared with no other artifact; score the one before it, too")
        return problems


# fmt: off
# What a gate may limit: measures that are better when higher, and those that are better when lower.
AT_LEAST = (
    "execution_accuracy", "execution_accuracy_lenient", "exact_match", "valid_sql", "next_token_accuracy", "stop_rate",
    "tokens_per_second", "same_top_token",
)
AT_MOST = (
    "loss", "perplexity", "kl_mean", "kl_p99", "answer_tokens", "answer_tokens_p50", "answer_tokens_p95",
    "first_token_ms", "peak_memory_mb", "size_mb",
)
# fmt: on
SQL_METRICS = ("execution_accuracy", "execution_accuracy_lenient", "exact_match", "valid_sql")
DISTANCES = ("same_top_token", "kl_mean", "kl_p99")  # from the artifact that it was made from
PLAIN = "-plain"  # Q4_K_M-plain is made without the importance matrix, to see what that is worth


def parse_gate(name: str) -> tuple[str, str | None, str | None]:
    """A gate's metric, and for a limit on a change "drop" or "rise" and the artifact it is taken from.

    `loss` -> loss, None, None; `execution_accuracy_drop_from_adapter` -> execution_accuracy, drop, adapter.
    """
    match = re.fullmatch(r"(.+?)(?:_(drop|rise)_from_(.+))?", name)
    return match.groups() if match else (name, None, None)


def predecessor(artifact: str, scored: list[str]) -> str | None:
    """The artifact in `scored` that `artifact` was made from, or the nearest before it; None if there is none."""
    chain = ["base", "adapter", "merged", "bf16"]
    if artifact in chain:
        chain = chain[: chain.index(artifact)]
    elif artifact in VLLM_TYPES:  # made beside the GGUFs
        chain.remove("bf16")
    return next((name for name in reversed(chain) if name in scored), None)


# llama-quantize's names; F16 and BF16 stand under models/bf16 already.
# fmt: off
GGUF_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_XS", "IQ4_NL",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)
# fmt: on
# Those that it refuses to make without an importance matrix.
NEEDS_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S")


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check `path`.

    YAML 1.2 rules hold (ruamel.yaml), so `1e-05`, as `dvc exp run -S` writes it, is a number.

    Raises:
        Refusal: naming every problem, each with its path in the file and, for an unknown key, the nearest known one.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; copy a recipe: cp recipes/smollm2-sql.yaml {path}") from None
    except MarkedYAMLError as error:
        raise Refusal(f"{path}, line {error.problem_mark.line + 1}: not YAML ({error.problem})") from None
    except ReaderError as error:
        raise Refusal(f"{path}: not YAML ({error.reason} at position {error.position})") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = [line for problem in _by_key(error.errors()) for line in _sentences(problem)]
        raise Refusal(f"{path}: " + "; ".join(problems) if len(problems) == 1 else _list(path, problems)) from None


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _list(path: Path, problems: list[str]) -> str:
    return f"{path} has {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)


def _by_key(errors: list[dict]) -> list[dict]:
    """pydantic's error records, where a key that may be of one type or another has one for each, as one a key."""
    merged: dict[tuple, dict] = {}
    for error in errors:
        section, depth = Params, 0
        while depth < len(error["loc"]) and isinstance(section, type) and issubclass(section, Section):
            field = section.model_fields.get(error["loc"][depth])
            section, depth = field and field.annotation, depth + 1
        if get_origin(section) is dict:  # what follows are its keys, and no types
            depth = len(error["loc"])
        key = error["loc"][:depth] if depth else ("", len(merged))
        if key in merged and depth < len(error["loc"]):
            merged[key]["msg"] += " or " + error["msg"].removeprefix("Input should be ")
        else:
            merged[key] = error | {"loc": error["loc"][:depth]}
    return list(merged.values())


def _sentences(problem: dict) -> list[str]:
    """One of pydantic's error records as sentences that start with the key's path."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(part for part in location if part.isidentifier() or part.isdigit()) or "the file"
    if problem["type"] == "value_error" and not location:  # from `combinations`: already sentences
        return str(problem["ctx"]["error"]).split("\n")
    if problem["type"] == "extra_forbidden":
        return [f"{path}: unknown key; {_nearest(location[-1], _known_keys(location[:-1]))}"]
    if problem["type"] == "missing":
        return [f"{path}: is missing"]
    message = problem["msg"].removeprefix("Value error, ")
    return [f"{path}: {message[0].lower()}{message[1:]} (it is {problem['input']!r})"]


def _known_keys(location: list[str]) -> list[str]:
    section = Params
    for name in location:
        section = section.model_fields[name].annotation
    return list(section.model_fields)


if __name__ == "__main__":  # `make repro` asks before DVC reads the file in its own way
    run_stage(lambda: load_params() and None)
