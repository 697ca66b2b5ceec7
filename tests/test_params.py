"""params.yaml: what is refused, with the key to change, and the tables of artifacts and metrics that it names."""

import re

from qlora.recipe.artifacts import ADAPTER_GGUF, ARTIFACTS, GGUF_TYPES, NEEDS_MATRIX, PLAIN, VLLM_TYPES, predecessor
from qlora.recipe.load import load_params
from qlora.recipe.metrics import DISTANCES, METRICS, headline, parse_gate
from qlora.recipe.schema import Params
from qlora.runtime.console import Refusal

import pytest
from conftest import refused
from repository import ROOT
from ruamel.yaml import YAML

A, B = {"source": "data/raw/a.csv"}, {"source": "data/raw/b.csv"}
SOURCES = {"data.source": None}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def load(tmp_path):
    """A function that loads the default recipe with changes, given by dotted names."""

    def load(changes: dict) -> Params:
        yaml = YAML()
        params = yaml.load(ROOT / "recipes/smollm2-sql.yaml")
        for name, value in changes.items():
            *sections, key = name.split(".")
            place = params
            for section in sections:
                place = place[section]
            place[key] = value
        yaml.dump(params, tmp_path / "params.yaml")
        return load_params(tmp_path / "params.yaml")

    return load


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    load_params(recipe)


def test_there_are_recipes():
    assert "smollm2-sql" in [recipe.stem for recipe in RECIPES]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora.rnak": 8, "lora.alhpa": 8}, r"lora\.alhpa: .*\balpha\?"),
        ({"trian": {}}, r"trian: .*\btrain\?"),
        ({"data.columns.anwser": "sql"}, r"data\.columns\.anwser: .*\banswer\?"),
        ({"merge.zzzz": 1}, r"merge\.zzzz: .*\bbase, dtype$"),
        ({"data.source": None}, r"data\.source: name one source, or several"),
        ({"data.sources": [{"source": "data/raw/a.csv"}]}, r"data\.source: .*not both"),
        (
            SOURCES | {"data.sources": [{"source": "data/raw/a.csv", "weigth": 1}]},
            r"data\.sources\.0\.weigth: .*weight\?",
        ),
        (SOURCES | {"data.sources": [{"source": "data/raw/a.csv", "rows": "9"}]}, r"data\.sources\.0\.rows: .*integer"),
        (SOURCES | {"data.sources": [A, A]}, r"data\.sources: names a source twice"),
        (SOURCES | {"data.sources": [A | {"weight": 1}, B]}, r"data\.sources: give each source a weight"),
        (SOURCES | {"data.sources": [A, B | {"source": "b"}]}, r"data\.sources\.1: 'b' is neither"),
        (SOURCES | {"data.sources": [A, B | {"source": "x/b.csv"}]}, r"data\.sources\.1: 'x/b\.csv' must lie|must lie"),
        (SOURCES | {"data.sources": [A | {"revision": "1"}]}, r"data\.sources\.0\.revision: only a hub name"),
        (SOURCES | {"data.sources": [A], "data.revision": "1"}, r"data\.revision: belongs to each"),
        ({"evaluate.metrics": ["exact_mach"]}, r"evaluate\.metrics\.0\.name: .*did you mean exact_match\?"),
        ({"evaluate.metrics": ["regex_match"]}, r"evaluate\.metrics\.0: regex_match needs pattern"),
        ({"evaluate.metrics": [{"regex_match": {"pattern": "("}}]}, r"evaluate\.metrics\.0\.pattern: is no regular"),
        ({"evaluate.metrics": [{"name": "chrf", "tolerance": 0.1}]}, r"evaluate\.metrics\.0: chrf has no tolerance"),
        ({"evaluate.metrics": ["chrf", "chrf"]}, r"evaluate\.metrics: lists a metric twice"),
        (
            {"evaluate.metrics": [{"json_fields": {"json_schema": "scorers/no.json"}}]},
            r"scorers/no\.json cannot be read",
        ),
        ({"evaluate.scorer": "mine.py"}, r"evaluate\.scorer: must be a Python file directly under scorers/"),
        ({"evaluate.scorer": "scorers/no.py"}, r"evaluate\.scorer: scorers/no\.py cannot be read"),
        ({"evaluate.general": "other.jsonl"}, r"evaluate\.general: 'other\.jsonl' is neither builtin"),
        ({"evaluate.preference.artifacts": ["base"]}, r"evaluate\.preference\.artifacts: 'base' and base must be two"),
        ({"evaluate.preference.url": "http://key@host/"}, r"evaluate\.preference\.url: .*QLORA_JUDGE_KEY"),
        ({"evaluate.gates": {"merged": {"label_accuracy": 0.5}}}, r"name label_accuracy in evaluate\.metrics"),
        ({"evaluate.gates": {"merged": {"general": 0.5}}}, r"general: is not measured; set evaluate\.general"),
        ({"data.encoding": "latin-99"}, r"data\.encoding: .*cp1252"),
        ({"model.chat_template": "mine.jinja"}, r"model\.chat_template: .*templates/mine\.jinja"),
        ({"lora.r": "8"}, r"lora\.r: .*integer.*'8'"),
        ({"lora.r": 8.5}, r"lora\.r: .*integer.*8\.5"),
        ({"lora.r": 0}, r"lora\.r: .*\b1\b.*0"),
        ({"lora.r": True}, r"lora\.r: .*integer"),
        ({"train.max_length": None}, r"train\.max_length: .*integer.*None"),
        ({"train.learning_rate": 2}, r"train\.learning_rate: .*less than 1"),
        ({"train.learning_rate": float("nan")}, r"train\.learning_rate: "),
        ({"train.epochs": float("inf")}, r"train\.epochs: "),
        ({"quantization.type": "int8"}, r"quantization\.type: .*'nf4', 'fp4' or 'none'"),
        ({"lora.target_modules": []}, r"lora\.target_modules.*: .*all-linear"),
        ({"lora.target_modules": "all"}, r"lora\.target_modules: .*'all-linear' or .*list.*'all'"),
        ({"train.compile": "yes"}, r"^\S+: train\.compile: .*boolean or 'auto' .*'yes'\)$"),
        ({"lora": None}, r"lora: "),
        ({"model.revision": "main"}, r"model\.revision: .*null"),
        ({"model.id": "llama"}, r"model: 'llama' .*\./.*owner/name"),
        ({"data.source": "rows.jsonl"}, r"data: 'rows\.jsonl' .*data/raw.*owner/name"),
        ({"evaluate.artifacts": ["base", "Q5_K_M"]}, r"evaluate\.artifacts: 'Q5_K_M' .*Q4_K_M.*gguf\.types"),
        ({"evaluate.artifacts": ["adapter-gguf"], "evaluate.gates": {}}, r"artifacts: 'adapter-gguf' .*gguf\.adapters"),
        ({"gguf.types": ["fit-100MB"]}, r"gguf\.types: fit-100MB .*set gguf\.sensitivity to true"),
        ({"gguf.types": ["fit-2bpw"], "gguf.sensitivity": True}, r"gguf\.types: fit-2bpw .*from 2\.6 .*to 8\.6"),
        ({"gguf.types": ["fit-100"]}, r"gguf\.types: 'fit-100' .*fit-100MB"),
        ({"gguf.adapters": ["adapter"]}, r"gguf\.adapters.*adapter-gguf"),
        ({"evaluate.artifacts": ["base", "base"]}, r"evaluate\.artifacts: .*twice"),
        ({"gguf.types": ["Q4_KM"]}, r"gguf\.types: 'Q4_KM' .*\bQ4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q8_0"]}, r"gguf\.types: .*twice"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS"], "gguf.imatrix": False}, r"gguf\.types: IQ2_XS .*gguf\.imatrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q2_K_S"], "gguf.imatrix": False}, r"gguf\.types: Q2_K_S .*gguf\.imatrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q4_K_M-pain"]}, r"gguf\.types: 'Q4_K_M-pain' .*\bQ4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS-plain"]}, r"gguf\.types: IQ2_XS-plain "),
        ({"vllm.types": ["awq"]}, r"vllm\.types.*: .*'W4A16-AWQ', 'W4A16-GPTQ', 'FP8' or 'NVFP4'.*'awq'"),
        ({"vllm.types": ["W4A16-AWQ", "W4A16-AWQ"]}, r"vllm\.types: .*twice"),
        ({"vllm.group_size": 48}, r"vllm\.group_size: .*32, 64 or 128"),
        ({"evaluate.artifacts": ["W4A16-AWQ"], "evaluate.gates": {}}, r"artifacts: 'W4A16-AWQ' .*vllm\.types"),
        ({"evaluate.gates": {"Q4_KM": {"loss": 1.0}}}, r"evaluate\.gates\.Q4_KM: .*\bQ4_K_M\?"),
        ({"evaluate.gates": {"base": {"los": 1.0}}}, r"evaluate\.gates\.base\.los: 'los' .*\bloss\?"),
        ({"evaluate.gates": {"base": {"loss": "1"}}}, r"evaluate\.gates\.base\.loss: .*number"),
        (
            {"evaluate.gates": {"merged": {"execution_accuracy_drop_from_adaptor": 0.1}}},
            r"evaluate\.gates\.merged\.execution_accuracy_drop_from_adaptor: 'adaptor' .*\badapter\?",
        ),
        (
            {"evaluate.gates": {"merged": {"loss_drop_from_adapter": 0.1}}},
            r"evaluate\.gates\.merged\.loss_drop_from_adapter: .*loss_rise_from_adapter",
        ),
        (
            {"evaluate.gates": {"merged": {"kl_mean_rise_from_base": 0.1}}},
            r"kl_mean_rise_from_base: .*distance",
        ),
        ({"evaluate.gates": {"adapter": {"kl_mean": 0.1}}}, r"evaluate\.gates\.adapter\.kl_mean: "),
        ({"data.task": "chat", "evaluate.gates": {"base": {"valid_sql": 0.5}}}, r"valid_sql: .*text-to-sql, and"),
        ({"train.micro_batch_tokens": 128}, r"train\.micro_batch_tokens: 128 .*train\.max_length \(256\)"),
        ({"train.devices": 99}, r"train\.devices: 99 .*train\.batch_size"),
        ({"train.parallel": "fsdp", "train.optimizer": "paged_adamw_8bit"}, r"train\.parallel: .*train\.optimizer"),
        ({"data.user_prompt": "{question}"}, r"data\.user_prompt: .*\{context\}"),
        ({"data.test_fraction": 0.0}, r"data\.test_fraction: .*data\.test_source"),
        # Keys that are no Python names stay in the path.
        ({"lora.target-modules": "all-linear"}, r"lora\.target-modules: .*\btarget_modules\?"),
        ({"evaluate.gates": {"Q4_K_M-plain": {"loss": "x"}}}, r"evaluate\.gates\.Q4_K_M-plain\.loss: .*number"),
        ({"evaluate.gates": {5: {"loss": 1.0}}}, r"evaluate\.gates\.5: .*string"),
        ({"model.chat_template_kwargs": {"a-b": []}}, r"yaml: model\.chat_template_kwargs\.a-b: .*boolean.* string"),
        ({"lora": None}, r"lora: must hold keys"),
        # What the libraries cannot take is refused here.
        ({"train.seed": 2**32}, r"train\.seed: .*4294967296"),
        ({"lora.r": 2**31}, r"lora\.r: .*2147483647"),
        ({"train.epochs": 1e300}, r"train\.epochs: .*10000"),
        ({"data.source": "data/raw/a\0.csv"}, r"data\.source: .*character"),
    ],
)
def test_a_problem_is_named(load, changes, named):
    with pytest.raises(Refusal, match=named):
        load(changes)


@pytest.mark.parametrize("name", ["model.id", "data.source", "data.encoding", "lora.r", "gguf.types", "merge.base"])
def test_a_sentence_stays_short_whatever_the_value(load, name):
    for value in ("x" * 5000, ["y" * 500] * 20, {"z" * 5000: 1}):
        with pytest.raises(Refusal) as refusal:
            load({name: value})
        assert len(str(refusal.value).rpartition("params.yaml")[2]) < 400


def test_of_many_problems_the_first_are_shown(load):
    with pytest.raises(Refusal) as refusal:
        load({f"lora.key{number}": 1 for number in range(100)})
    assert "100 problems" in str(refusal.value)
    assert "and 80 more" in str(refusal.value)


def test_a_single_problem_is_one_sentence(load):
    with pytest.raises(Refusal) as refusal:
        load({"lora.rank": 8})
    assert "\n" not in str(refusal.value)
    assert re.search(r"params\.yaml: lora\.rank: ", str(refusal.value))


def test_all_problems_are_listed_at_once(load):
    with pytest.raises(Refusal) as refusal:
        load({"lora.r": "8", "train.batchsize": 4, "gguf.types": ["Q9"], "model.id": 7, "evaluate.seed": None})
    text = str(refusal.value)
    assert "5 problems" in text
    for path in ("lora.r:", "train.batchsize:", "gguf.types:", "model.id:", "evaluate.seed:"):
        assert text.count(f"\n  - {path}") == 1


def test_all_impossible_combinations_are_listed_at_once(load):
    changes = {"model.id": "llama", "evaluate.artifacts": ["Q2_K"], "evaluate.gates": {}}
    with pytest.raises(Refusal, match="3 problems"):
        load(changes | {"train.micro_batch_tokens": 64})


@pytest.mark.parametrize("written", ["1e-05", "1E-5", "0.00001", "1.0e-5"])
def test_numbers_as_dvc_writes_them(tmp_path, written):
    text = (ROOT / "recipes/smollm2-sql.yaml").read_text()
    changed = re.sub(r"learning_rate: \S+", f"learning_rate: {written}", text)
    (tmp_path / "params.yaml").write_text(changed)
    assert load_params(tmp_path / "params.yaml").train.learning_rate == 1e-5


def test_a_hub_model_with_its_commit_is_valid(load):
    assert not load({"model.id": "org/model", "model.revision": COMMIT}).model.is_local


@pytest.mark.parametrize("name", ["./m", "../m", "/m", "~/m"])
def test_a_folder_needs_no_revision(load, name):
    assert load({"model.id": name}).model.is_local


def test_missing_file_names_a_recipe(tmp_path):
    with pytest.raises(Refusal, match=r"params\.yaml .*cp recipes/smollm2-sql\.yaml"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model:\n  id: x\n lora: [1\n", r"params\.yaml, line 3: "),
        ("model: {id: x\n", r"params\.yaml, line \d+: "),
        ("model:\n  id: x\n  id: y\n", r"params\.yaml, line 3: .*id"),
        ("model:\n\tid: x\n", r"params\.yaml, line 2: "),
        ("model: \x00\n", r"params\.yaml: not YAML"),
        ("", r"params\.yaml is empty"),
        ("- a\n- b\n", r"the whole: must hold keys"),
        ("model: 2024-99-99\n", r"not YAML .*month"),
        (f"model: {'9' * 5000}\n", r"not YAML .*digits"),
        (f"model: {'[' * 5000}\n", r"not YAML .*recursion"),
        ("? [a]\n: b\n", r"\('a',\): keys should be strings"),
        ("model: !!float x\n", r"not YAML"),
        ("model: &m {id: *m}\n", r"model\.id: "),
    ],
)
def test_broken_yaml_names_the_line(tmp_path, text, named):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(Refusal, match=named):
        load_params(tmp_path / "params.yaml")


def test_not_utf8_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes("model: {id: Modèle}\n".encode("latin-1"))
    with pytest.raises(Refusal, match="not YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_key_that_is_left_out_has_the_recommended_value(load, tmp_path):
    load({})
    params = YAML().load(tmp_path / "params.yaml")
    params["merge"] = {}
    del params["data"]["test_fraction"]
    YAML().dump(params, tmp_path / "params.yaml")
    left_out = load_params(tmp_path / "params.yaml")
    assert (left_out.merge.base, left_out.merge.dtype) == ("dequantized", "bfloat16")
    assert left_out.data.test_fraction == 0.1


def test_from_the_command_line_it_is_a_sentence_and_a_status(workspace):
    workspace.set({"lora.rank": 8})
    assert re.fullmatch(r"params\.yaml: lora\.rank: .*\br\?", refused(workspace.run("report")))


# Artifacts and metrics


def test_every_artifact_leads_back_to_the_base_model():
    for name, artifact in ARTIFACTS.items():
        assert artifact.name == artifact.folder.name == name
        chain = [name]
        while ARTIFACTS[chain[-1]].made_from:
            chain.append(ARTIFACTS[chain[-1]].made_from)
            assert len(chain) <= 5
        assert chain[-1] == "base"
    types = {*GGUF_TYPES, *(type_ + PLAIN for type_ in GGUF_TYPES), *VLLM_TYPES}
    assert ARTIFACTS.keys() == {"base", "adapter", ADAPTER_GGUF, "merged", "bf16"} | types
    assert set(NEEDS_MATRIX) <= set(GGUF_TYPES)


def test_every_artifact_names_a_stage_of_dvc_yaml():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert {artifact.stage.partition("@")[0] for artifact in ARTIFACTS.values()} < stages.keys()


@pytest.mark.parametrize(
    ("name", "scored", "expected"),
    [
        ("Q8_0", ["base", "adapter", "merged", "bf16", "Q8_0"], "bf16"),
        ("Q8_0", ["base", "merged", "Q8_0"], "merged"),
        ("Q4_K_M-plain", ["base", "Q4_K_M", "Q4_K_M-plain"], "base"),
        ("W4A16-AWQ", ["adapter", "bf16", "W4A16-AWQ"], "adapter"),
        ("fit-100MB", ["merged", "bf16", "fit-100MB"], "bf16"),
        ("adapter-gguf", ["base", "adapter", "merged", "adapter-gguf"], "adapter"),
        ("bf16", ["bf16"], None),
        ("base", ["base", "merged"], None),
    ],
)
def test_the_predecessor_is_the_nearest_scored_artifact_before(name, scored, expected):
    assert predecessor(name, scored) == expected


def test_the_metrics_agree_with_their_names():
    assert all(metric.name == name and metric.heading for name, metric in METRICS.items())
    assert DISTANCES == ("same_top_token", "kl_mean", "kl_p99")
    assert {metric.unit for metric in METRICS.values()} <= {"", "share", "nats", "tokens", "tokens/s", "ms", "MB"}
    assert headline(["loss", "execution_accuracy", "exact_match"]) == "execution_accuracy"
    assert not METRICS[headline(["loss"])].machine_dependent


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("loss", ("loss", None, None)),
        ("execution_accuracy_drop_from_adapter", ("execution_accuracy", "drop", "adapter")),
        ("loss_rise_from_Q4_K_M-plain", ("loss", "rise", "Q4_K_M-plain")),
    ],
)
def test_a_gates_name_has_a_metric_a_change_and_an_artifact(name, parts):
    assert parse_gate(name) == parts
