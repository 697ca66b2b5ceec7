"""params.yaml: what is refused, with the key to change, and the tables of artifacts and metrics that it names."""

import re

from qlora.recipe.artifacts import ARTIFACTS, GGUF_TYPES, NEEDS_MATRIX, PLAIN, VLLM_TYPES, predecessor
from qlora.recipe.load import load_params
from qlora.recipe.metrics import DISTANCES, METRICS, headline, parse_gate
from qlora.recipe.schema import Params
from qlora.runtime.console import Refusal

import pytest
from conftest import refused
from repository import ROOT
from ruamel.yaml import YAML

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
        ({"lora.r": "8"}, r"lora\.r: .*integer.*'8'"),
        ({"lora.r": 8.5}, r"lora\.r: .*integer.*8\.5"),
        ({"lora.r": 0}, r"lora\.r: .*\b1\b.*0"),
        ({"lora.r": True}, r"lora\.r: .*integer"),
        ({"train.max_length": None}, r"train\.max_length: .*integer.*None"),
        ({"train.learning_rate": 2}, r"train\.learning_rate: .*less than 1"),
        ({"train.learning_rate": float("nan")}, r"train\.learning_rate: "),
        ({"train.epochs": float("inf")}, r"train\.epochs: "),
        ({"quantization.type": "int8"}, r"quantization\.type: .*'nf4' or 'fp4'"),
        ({"lora.target_modules": []}, r"lora\.target_modules.*: .*all-linear"),
        ({"lora.target_modules": "all"}, r"lora\.target_modules: .*'all-linear' or .*list.*'all'"),
        ({"train.compile": "yes"}, r"^\S+: train\.compile: .*boolean or 'auto' .*'yes'\)$"),
        ({"lora": None}, r"lora: "),
        ({"model.revision": "main"}, r"model\.revision: .*null"),
        ({"model.id": "llama"}, r"model: 'llama' .*\./.*owner/name"),
        ({"data.source": "rows.jsonl"}, r"data: 'rows\.jsonl' .*data/raw.*owner/name"),
        ({"evaluate.artifacts": ["base", "Q5_K_M"]}, r"evaluate\.artifacts: 'Q5_K_M' .*Q4_K_M.*gguf\.types"),
        ({"evaluate.artifacts": ["base", "base"]}, r"evaluate\.artifacts: .*twice"),
        ({"gguf.types": ["Q4_KM"]}, r"gguf\.types: 'Q4_KM' .*\bQ4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q8_0"]}, r"gguf\.types: .*twice"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS"], "gguf.imatrix": False}, r"gguf\.types: IQ2_XS .*gguf\.imatrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q2_K_S"], "gguf.imatrix": False}, r"gguf\.types: Q2_K_S .*gguf\.imatrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q4_K_M-pain"]}, r"gguf\.types: 'Q4_K_M-pain' .*\bQ4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS-plain"]}, r"gguf\.types: IQ2_XS-plain "),
        ({"vllm.types": ["awq"]}, r"vllm\.types.*: .*'W4A16-AWQ' or 'W4A16-GPTQ'.*'awq'"),
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
        ({"data.task": "chat", "evaluate.gates": {"base": {"valid_sql": 0.5}}}, r"base\.valid_sql: .*not measured"),
        ({"train.micro_batch_tokens": 128}, r"train\.micro_batch_tokens: 128 .*train\.max_length \(256\)"),
        ({"train.devices": 99}, r"train\.devices: 99 .*train\.batch_size"),
        ({"train.parallel": "fsdp", "train.optimizer": "paged_adamw_8bit"}, r"train\.parallel: .*train\.optimizer"),
        ({"data.user_prompt": "{question}"}, r"data\.user_prompt: .*\{context\}"),
        ({"data.test_fraction": 0.0}, r"data\.test_fraction: .*data\.test_source"),
    ],
)
def test_a_problem_is_named(load, changes, named):
    with pytest.raises(Refusal, match=named):
        load(changes)


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
        ("", r"the file: "),
        ("- a\n- b\n", r"the file: "),
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
    assert ARTIFACTS.keys() == {"base", "adapter", "merged", "bf16"} | types
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
    assert not METRICS[headline("text-to-sql")].machine_dependent
    assert not METRICS[headline("chat")].sql


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
