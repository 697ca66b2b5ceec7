"""params.yaml: what is refused, and in which words."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qlora.recipe.params import Params, load_params
from qlora.runtime.console import Refusal

REPO = Path(__file__).parent.parent
RECIPES = sorted((REPO / "recipes").glob("*.yaml"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def load(tmp_path):
    """A function that loads the default recipe with changes, given by dotted names."""

    def load(changes: dict) -> Params:
        yaml = YAML()
        params = yaml.load(REPO / "recipes/smollm2-sql.yaml")
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
    ("changes", "sentence"),
    [
        ({"lora.rnak": 8, "lora.alhpa": 8}, r"lora\.alhpa: unknown key; did you mean alpha\?"),
        ({"trian": {}}, r"trian: unknown key; did you mean train\?"),
        ({"data.columns.anwser": "sql"}, r"data\.columns\.anwser: unknown key; did you mean answer\?"),
        ({"merge.zzzz": 1}, r"merge\.zzzz: unknown key; known are base, dtype"),
        ({"lora.r": "8"}, r"lora\.r: .*integer.* \(it is '8'\)"),
        ({"lora.r": 8.5}, r"lora\.r: .*integer.* \(it is 8\.5\)"),
        ({"lora.r": 0}, r"lora\.r: .*greater than or equal to 1"),
        ({"lora.r": True}, r"lora\.r: .*integer"),
        ({"train.max_length": None}, r"train\.max_length: .*integer.* \(it is None\)"),
        ({"train.learning_rate": 2}, r"train\.learning_rate: .*less than 1"),
        ({"train.learning_rate": float("nan")}, r"train\.learning_rate: "),
        ({"train.epochs": float("inf")}, r"train\.epochs: "),
        ({"quantization.type": "int8"}, r"quantization\.type: .*'nf4' or 'fp4'"),
        ({"lora.target_modules": []}, r"lora\.target_modules.*: names no module"),
        (
            {"lora.target_modules": "all"},
            r"lora\.target_modules: .* 'all-linear' or a valid list \(it is 'all'",
        ),
        ({"train.compile": "yes"}, r"^\S+: train\.compile: input should be a valid boolean or 'auto' \(it is 'yes'\)$"),
        ({"lora": None}, r"lora: "),
        ({"model.revision": "main"}, r"model\.revision: only a hub name has one"),
        ({"model.id": "llama"}, r"model: 'llama' is neither a folder \(\./my-model\) nor a name on the hub"),
        ({"data.source": "rows.jsonl"}, r"data: 'rows\.jsonl' is neither a file under data/raw nor a name on the hub"),
        ({"evaluate.artifacts": ["base", "Q5_K_M"]}, r"evaluate\.artifacts: 'Q5_K_M' is never made; choose from"),
        ({"evaluate.artifacts": ["base", "base"]}, r"evaluate\.artifacts: lists an artifact twice"),
        ({"gguf.types": ["Q4_KM"]}, r"gguf\.types: 'Q4_KM' is no GGUF type; did you mean Q4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q8_0"]}, r"gguf\.types: lists a type twice"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS"], "gguf.imatrix": False}, r"IQ2_XS needs an importance matrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q2_K_S"], "gguf.imatrix": False}, r"Q2_K_S needs an importance matrix"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "Q4_K_M-pain"]}, r"'Q4_K_M-pain' is no GGUF type; did you mean Q4_K_M\?"),
        ({"gguf.types": ["Q8_0", "Q4_K_M", "IQ2_XS-plain"]}, r"IQ2_XS-plain cannot be made"),
        ({"vllm.types": ["awq"]}, r"vllm\.types.*: input should be 'W4A16-AWQ' or 'W4A16-GPTQ' \(it is 'awq'\)"),
        ({"vllm.types": ["W4A16-AWQ", "W4A16-AWQ"]}, r"vllm\.types: lists a type twice"),
        ({"vllm.group_size": 48}, r"vllm\.group_size: input should be 32, 64 or 128"),
        ({"evaluate.artifacts": ["W4A16-AWQ"], "evaluate.gates": {}}, r"'W4A16-AWQ' is never made; .*vllm\.types"),
        ({"evaluate.gates": {"Q4_KM": {"loss": 1.0}}}, r"evaluate\.gates\.Q4_KM: is not scored; did you mean Q4_K_M\?"),
        ({"evaluate.gates": {"base": {"los": 1.0}}}, r"gates\.base\.los: 'los' is not measured; did you mean loss\?"),
        ({"evaluate.gates": {"base": {"loss": "1"}}}, r"gates\.base\.loss: .*number"),
        (
            {"evaluate.gates": {"merged": {"execution_accuracy_drop_from_adaptor": 0.1}}},
            r"'adaptor' is not scored; did you mean adapter\?",
        ),
        ({"evaluate.gates": {"merged": {"loss_drop_from_adapter": 0.1}}}, r"so limit loss_rise_from_adapter"),
        ({"evaluate.gates": {"merged": {"kl_mean_rise_from_base": 0.1}}}, r"kl_mean is a distance"),
        ({"evaluate.gates": {"adapter": {"kl_mean": 0.1}}}, r"adapter is compared with no other artifact"),
        ({"data.task": "chat", "evaluate.gates": {"base": {"valid_sql": 0.5}}}, r"'valid_sql' is not measured"),
        ({"train.micro_batch_tokens": 128}, r"micro_batch_tokens: 128 cannot hold a row of train\.max_length \(256\)"),
        ({"data.user_prompt": "{question}"}, r"data\.user_prompt: must contain \{context\}"),
        ({"data.test_fraction": 0.0}, r"data\.test_fraction: must be above 0"),
    ],
)
def test_a_problem_is_named(load, changes, sentence):
    with pytest.raises(Refusal, match=sentence):
        load(changes)


def test_a_single_problem_is_one_sentence(load):
    with pytest.raises(Refusal) as refusal:
        load({"lora.rank": 8})
    assert "\n" not in str(refusal.value)
    assert re.search(r"params\.yaml: lora\.rank: unknown key", str(refusal.value))


def test_all_problems_are_listed_at_once(load):
    with pytest.raises(Refusal) as refusal:
        load({"lora.r": "8", "train.batchsize": 4, "gguf.types": ["Q9"], "model.id": 7, "evaluate.seed": None})
    text = str(refusal.value)
    assert "has 5 problems" in text
    for path in ("lora.r:", "train.batchsize: unknown key; did you mean batch_size?", "gguf.types:", "model.id:"):
        assert text.count(f"\n  - {path}") == 1
    assert "evaluate.seed: " in text


def test_all_impossible_combinations_are_listed_at_once(load):
    with pytest.raises(Refusal, match="has 3 problems"):
        load(
            {
                "model.id": "llama",
                "evaluate.artifacts": ["Q2_K"],
                "evaluate.gates": {},
                "train.micro_batch_tokens": 64,
            }
        )


@pytest.mark.parametrize("written", ["1e-05", "1E-5", "0.00001", "1.0e-5"])
def test_numbers_as_dvc_writes_them(tmp_path, written):
    text = (REPO / "recipes/smollm2-sql.yaml").read_text()
    changed = re.sub(r"learning_rate: \S+", f"learning_rate: {written}", text)
    (tmp_path / "params.yaml").write_text(changed)
    assert load_params(tmp_path / "params.yaml").train.learning_rate == 1e-5


def test_a_hub_model_with_its_commit_is_valid(load):
    assert not load({"model.id": "org/model", "model.revision": COMMIT}).model.is_local


@pytest.mark.parametrize("name", ["./m", "../m", "/m", "~/m"])
def test_a_folder_needs_no_revision(load, name):
    assert load({"model.id": name}).model.is_local


def test_missing_file_names_a_recipe(tmp_path):
    with pytest.raises(Refusal, match=r"is missing; copy a recipe: cp recipes/smollm2-sql\.yaml"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model:\n  id: x\n lora: [1\n", r"line 3: not YAML"),
        ("model: {id: x\n", r"line \d+: not YAML"),
        ("model:\n  id: x\n  id: y\n", r"line 3: not YAML .*id"),
        ("model:\n\tid: x\n", r"line 2: not YAML"),
        ("model: \x00\n", r"not YAML"),
        ("", r"the file: "),
        ("- a\n- b\n", r"the file: "),
    ],
)
def test_broken_yaml_names_the_line(tmp_path, text, sentence):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(Refusal, match=sentence):
        load_params(tmp_path / "params.yaml")


def test_not_utf8_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes("model: {id: Modèle}\n".encode("latin-1"))
    with pytest.raises(Refusal, match="not YAML"):
        load_params(tmp_path / "params.yaml")


def test_from_the_command_line_it_is_a_sentence_and_a_status(workspace):
    workspace.set({"lora.rank": 8})
    done = workspace.run("report")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: params.yaml: lora.rank: unknown key; did you mean r?"
