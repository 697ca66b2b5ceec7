"""params.yaml, read through one strict schema: every problem at once, each with its path and what to do."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from stages.console import Refusal, run_stage

EMBEDDED = "embedded/SmolLM2-135M-Instruct"
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
    eval_steps: Count = 20
    checkpoint_steps: Count = 20
    seed: Seed = 0


class Merge(Section):
    base: Literal["full", "dequantized"] = "full"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Gguf(Section):
    types: Annotated[list[str], Field(min_length=1)]
    imatrix: bool
    imatrix_rows: Count

    @field_validator("types")
    @classmethod
    def known(cls, types: list[str]) -> list[str]:
        for name in types:
            if name not in GGUF_TYPES:
                near = difflib.get_close_matches(name.upper(), GGUF_TYPES, 1, 0.4)
                raise ValueError(f"{name!r} is no GGUF type" + (f"; did you mean {near[0]}?" if near else ""))
        if len(set(types)) < len(types):
            raise ValueError("lists a type twice")
        return types


class Evaluate(Section):
    artifacts: Annotated[list[str], Field(min_length=1)]
    max_new_tokens: Count
    batch_size: Count
    databases: Count
    seed: Seed


class Params(Section):
    model: Model
    data: Data
    quantization: Quantization
    lora: Lora
    train: Train
    merge: Merge
    gguf: Gguf
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
        built = {"base", "adapter", "merged", "bf16", *self.gguf.types}
        for artifact in self.evaluate.artifacts:
            if artifact not in built:
                problems.append(
                    f"evaluate.artifacts: {artifact!r} is never made; choose from {', '.join(sorted(built))}, "
                    "or add it to gguf.types"
                )
        if len(set(self.evaluate.artifacts)) < len(self.evaluate.artifacts):
            problems.append("evaluate.artifacts: lists an artifact twice")
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
        if isinstance(self.train.micro_batch_tokens, int) and self.train.micro_batch_tokens < self.train.max_length:
            problems.append(
                f"train.micro_batch_tokens: {self.train.micro_batch_tokens} cannot hold a row of train.max_length "
                f"({self.train.max_length}) tokens"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


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
        near = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), 1, 0.4)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(_known_keys(location[:-1]))}"
        return [f"{path}: unknown key; {known}"]
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
