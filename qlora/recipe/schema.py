"""The schema of params.yaml: a class for each section. A value of another type is refused.

Only what the recipes may leave out has a default, and each default is the recommended value.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Literal

from qlora.recipe.artifacts import GGUF_TYPES, PLAIN, VLLM_TYPES

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    eval_steps: Count = 20
    checkpoint_steps: Count = 20
    seed: Seed = 0


class Merge(Section):
    base: Literal["full", "dequantized"] = "dequantized"
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
                raise ValueError(f"{name!r} is no GGUF type; {nearest(name.upper(), GGUF_TYPES)}")
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


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like `name`, as a question; all known ones if none is like it."""
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
