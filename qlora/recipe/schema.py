"""The schema of params.yaml: a class for each section. A value of another type is refused.

Only what the recipes may leave out has a default, and each default is the recommended value.
"""

import difflib
import re
from collections.abc import Sequence
from datetime import date as Date
from typing import Annotated, Literal

from qlora.recipe.artifacts import ADAPTER_GGUF, FIT, GGUF_TYPES, PLAIN, VLLM_TYPES
from qlora.recipe.metrics import KINDS

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ADAPTERS = "data/adapters/"  # folders to continue training from
EMBEDDED = "embedded/SmolLM2-135M-Instruct"
EMBEDDED_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the package's model is on the hub
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # an `int` of the tools that get it
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's


class Section(BaseModel):
    # strict: `r: "8"` or `r: 8.5` is a mistake to report, not to guess at.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def is_text(cls, value: object) -> object:
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
            raise ValueError("holds a character that no file or name may hold")
        return value


class Model(Section):
    id: str  # EMBEDDED, a hub name (owner/name), or a local folder (starts with ./, ../, / or ~)
    revision: str | None = None  # of a hub name: its commit; `hub.download` refuses anything else
    date: str = "2024-07-26"  # that a template which prints today's date prints instead, in training and in serving
    chat_template: str | None = None  # chatml, or a file under templates/; null: the model's own
    chat_template_kwargs: dict[str, bool | int | float | str | None] = {}  # the template's arguments: enable_thinking

    @field_validator("date")
    @classmethod
    def is_date(cls, date: str) -> str:
        Date.fromisoformat(date)
        return date

    @property
    def is_embedded(self) -> bool:
        return self.id == EMBEDDED

    @property
    def is_local(self) -> bool:
        return self.id.startswith(("./", "../", "/", "~"))


class Columns(Section):
    """The names under which the rows hold what the task needs; null: found by their usual names."""

    question: str | None = None  # text-to-sql: these three
    context: str | None = None
    answer: str | None = None
    messages: str | None = None  # chat: a list of messages,
    prompt: str | None = None  # or a prompt and its completion,
    input: str | None = None
    completion: str | None = None
    history: str | None = None
    text: str | None = None  # or one text: `### Human:` / `### Assistant:`, or Llama-2's `[INST]`; text: a document
    system: str | None = None  # beside messages or prompt
    tools: str | None = None
    group: str | None = None  # rows with one value stay in one split; null: the context, or the first question


class Rows(Section):
    """Where rows are and how they are written."""

    source: str  # a file under data/raw (recipe.checks.FILES) or a hub data set (owner/name)
    revision: str | None = None
    split: str = "train"
    subset: str | None = None
    encoding: str = "auto"  # of a text file, as Python names it
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = "auto"  # of chat rows
    columns: Columns = Columns()

    @field_validator("encoding")
    @classmethod
    def is_codec(cls, encoding: str) -> str:
        if encoding != "auto":
            try:
                "".encode(encoding)
            except LookupError:
                raise ValueError("is no encoding that Python knows; try utf-8, cp1252 or shift_jis") from None
        return encoding

    @property
    def is_local(self) -> bool:
        return self.source.startswith("data/raw/")


class Part(Rows):
    """One of several sources. What it leaves out is as in `data` (format, columns, encoding, split, subset)."""

    rows: Count | None = None  # training rows from it, at most
    weight: Annotated[float, Field(gt=0)] | None = None  # its part of the training rows, beside the others' weights


class Data(Rows):
    source: str | None = None  # null: sources
    sources: list[Part] = []
    test_source: str | None = None  # a file with the test rows; null: they are split off `source`
    task: Literal["text-to-sql", "chat", "text"]
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
    keep: list[str] = []  # columns that go along as they are, under "kept"
    seed: Seed = 0

    @property
    def parts(self) -> list[Part]:
        """The sources of the rows: `source`, or each of `sources`."""
        shared = {name: getattr(self, name) for name in Rows.model_fields if name not in ("source", "revision")}
        if not self.sources:
            return [Part(source=self.source, revision=self.revision, **shared)]
        return [
            part.model_copy(update={k: shared[k] for k in shared.keys() - part.model_fields_set})
            for part in self.sources
        ]

    @property
    def name(self) -> str:
        """The sources' names, for people."""
        return " and ".join(part.source for part in self.parts)

    @property
    def is_local(self) -> bool:
        return all(part.is_local for part in self.parts)


class Quantization(Section):
    type: Literal["nf4", "fp4", "none"] = "nf4"  # none: the weights stay in compute_dtype
    double_quantization: bool = True
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # float16 overflows on some models

    @property
    def in_4_bits(self) -> bool:
        return self.type != "none"


class Lora(Section):
    r: Count
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    experts: bool = False  # of a mixture of experts
    use_rslora: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    start_from: str | None = None  # an earlier adapter: a folder under ADAPTERS, or the hub's owner/name@commit

    @field_validator("start_from")
    @classmethod
    def is_tracked_or_pinned(cls, name: str | None) -> str | None:
        if name and not re.fullmatch(rf"{ADAPTERS}[\w-][\w.-]*/?|[\w-][\w.-]*/[\w.-]+@\S+", name):
            raise ValueError(
                f"{name[:60]!r} is neither a folder under {ADAPTERS} (copy the adapter there, then `dvc add` it) nor a "
                "name on the hub with its commit (owner/name@commit)"
            )
        return name

    @field_validator("target_modules")
    @classmethod
    def not_empty(cls, modules: str | list[str]) -> str | list[str]:
        if not modules:
            raise ValueError('names no module; use "all-linear" or a list such as [q_proj, v_proj]')
        return modules


class Train(Section):
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    max_steps: Count | None = None
    batch_size: Count
    max_length: Annotated[int, Field(ge=16, le=2**31 - 1)]
    loss_on: Literal["all_answers", "last_answer"] = "all_answers"
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    memory: Literal["auto", "low", "high"] = "auto"
    micro_batch_tokens: Annotated[int, Field(ge=16, le=2**31 - 1)] | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    devices: Count | Literal["auto"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    eval_steps: Count = 20
    checkpoint_steps: Count = 20
    keep: Literal["last", "best"] = "last"
    patience: Count | None = None  # evaluations
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    seed: Seed = 0


class Merge(Section):
    base: Literal["full", "dequantized"] = "dequantized"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Gguf(Section):
    types: Annotated[list[str], Field(min_length=1)]  # llama-quantize's names, which may end in PLAIN, and sizes (FIT)
    imatrix: bool
    imatrix_rows: Count
    adapters: Annotated[list[Literal[ADAPTER_GGUF]], Field(max_length=1)]  # a list, because a DVC matrix is one
    sensitivity: bool  # of each tensor, for the sizes in `types`

    @field_validator("types")
    @classmethod
    def known(cls, types: list[str]) -> list[str]:
        for name in types:
            if name.removesuffix(PLAIN) not in GGUF_TYPES and not FIT.fullmatch(name):
                if name.startswith("fit"):
                    raise ValueError(f"{name!r} is no size; a size is written fit-4.5bpw, fit-100MB or fit-1.5GB")
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


class ModelJudge(Section):
    """A larger model behind an OpenAI-compatible server. Its key is in QLORA_JUDGE_KEY, never here."""

    url: str = "http://127.0.0.1:8080/v1"
    model: str | None = None  # as the server names it
    rubric: str = "Is the answer correct, complete and as short as the reference answer?"

    @field_validator("url")
    @classmethod
    def is_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url):
            raise ValueError("is no address of a server, such as http://127.0.0.1:8080/v1; a key is in QLORA_JUDGE_KEY")
        return url


class Preference(ModelJudge):
    """A larger model that compares artifacts with the base model."""

    artifacts: list[str] = []


class JudgedBy(ModelJudge):
    """An entry of evaluate.metrics: the name of a metric, and the options that only this one has."""

    name: str  # auto: what the test rows' answers call for
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # number_match: as a share of the gold number
    pattern: str | None = None  # regex_match
    json_schema: str | None = None  # json_fields: a file under scorers/, such as scorers/answer.json
    tests: str | None = None  # code_tests: the column of data.keep that holds the tests
    seconds: Annotated[float, Field(gt=0)] = 10.0  # code_tests: for the tests of one row
    memory_mb: Annotated[int, Field(ge=64)] = 1024  # code_tests
    # model_grade: those of ModelJudge

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        if name not in ("auto", *KINDS):
            raise ValueError(f"is no metric that judges answers; {nearest(name, KINDS)}")
        return name

    @field_validator("pattern")
    @classmethod
    def compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return pattern

    @field_validator("json_schema")
    @classmethod
    def is_schema_file(cls, path: str | None) -> str | None:
        if path is not None and not re.fullmatch(r"scorers/[\w.-]+\.json", path):
            raise ValueError("must be a JSON file directly under scorers/, such as scorers/answer.json")
        return path

    @model_validator(mode="after")
    def has_its_options(self) -> "JudgedBy":
        own = {
            "number_match": {"tolerance"},
            "regex_match": {"pattern"},
            "json_fields": {"json_schema"},
            "code_tests": {"tests", "seconds", "memory_mb"},
            "model_grade": {"url", "model", "rubric"},
        }.get(self.name, set())
        if foreign := sorted(self.model_fields_set - own - {"name"}):
            raise ValueError(f"{self.name} has no {foreign[0]}; its options are {', '.join(sorted(own)) or 'none'}")
        for kind, needed in {"regex_match": "pattern", "code_tests": "tests", "model_grade": "model"}.items():
            if self.name == kind and getattr(self, needed) is None:
                raise ValueError(f"{kind} needs {needed}: {{name: {kind}, {needed}: ...}}")
        return self


class Evaluate(Section):
    artifacts: Annotated[list[str], Field(min_length=1)]
    max_new_tokens: Count
    batch_size: Count
    databases: Annotated[int, Field(ge=1, le=1000)]
    engine: Literal["sqlite", "duckdb", "postgres", "mysql"] = "sqlite"
    seed: Seed
    metrics: list[JudgedBy] = [JudgedBy(name="auto")]  # the first is the headline
    scorer: str | None = None  # a metric of one's own: scorers/NAME.py, and then the headline
    general: str | None = None  # builtin, or a file under data/raw: other tasks, to see what tuning costs them
    preference: Preference = Preference()
    gates: dict[str, dict[str, float]] = {}  # artifact -> metric (as `parse_gate` reads it) -> limit

    @field_validator("metrics", mode="before")
    @classmethod
    def by_name(cls, metrics: object) -> object:
        """A name stands for an entry without options, {name: options} for one with them, a single name for a list."""
        metrics = [metrics] if isinstance(metrics, str) else metrics
        return [_entry(one) for one in metrics] if isinstance(metrics, list) else metrics

    @field_validator("metrics")
    @classmethod
    def each_once(cls, metrics: list[JudgedBy]) -> list[JudgedBy]:
        names = [one.name for one in metrics]
        if len(set(names)) < len(names):
            raise ValueError("lists a metric twice")
        return metrics

    @field_validator("scorer")
    @classmethod
    def is_scorer(cls, scorer: str | None) -> str | None:
        if scorer is not None and not re.fullmatch(r"scorers/\w+\.py", scorer):
            raise ValueError("must be a Python file directly under scorers/, such as scorers/my_metric.py")
        return scorer


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

    @property
    def model_of_task(self) -> Model:
        """The model; for documents (data.task: text) with a template that adds nothing, whatever its own is."""
        return self.model.model_copy(update={"chat_template": "plain"}) if self.data.task == "text" else self.model


def _entry(one: object) -> object:
    if isinstance(one, str):
        return {"name": one}
    if isinstance(one, dict) and len(one) == 1:
        ((name, options),) = one.items()
        if name in KINDS and isinstance(options, dict):
            return {"name": name} | options
    return one


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like `name`, as a question; all known ones if none is like it."""
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
