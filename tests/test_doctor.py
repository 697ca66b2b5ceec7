"""doctor: real checks of this machine, and of machines that lack something."""

import re
import shutil
from collections import namedtuple

from qlora.llama_cpp import tools as llama_cpp
from qlora.recipe.load import load_params
from qlora.recipe.schema import Model, Params
from qlora.runtime import machine
from qlora.runtime.console import Refusal
from qlora.training import device
from tools import doctor, machine_checks, sizes
from tools.machine_checks import OK, PROBLEM, Finding
from tools.sizes import BaseModel

import pytest
import torch
from conftest import refused
from fake_hub import COMMIT, fake_hub
from repository import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig

GB = 10**9
NAME = "org/tiny"
usage = namedtuple("usage", "total used free")


@pytest.fixture
def inside(workspace, monkeypatch):
    """The workspace as current folder, with the repository's requirements."""
    for name in ("requirements.txt", "requirements-light.txt"):
        shutil.copy(ROOT / name, workspace.path)
    monkeypatch.chdir(workspace.path)
    return workspace


def the(findings) -> Finding:
    """The only finding there is."""
    (finding,) = findings
    return finding


def lines_of(done) -> dict[str, tuple[str, str]]:
    """What a doctor's run printed: check -> (level, rest of the line)."""
    lines = (line for line in done.stdout.splitlines() if line.startswith(("ok ", "warning ", "problem ")))
    return {line[9:20].strip(): (line[:8].strip(), line[21:]) for line in lines}


# The whole


def test_a_machine_that_runs_the_tests_is_fit_for_a_run(inside):
    done = inside.tool("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done)
    assert "problem" not in {level for level, _ in lines.values()}
    assert lines["NF4"][1].startswith("a product on ")
    assert lines["base model"][1] == "./tiny, 6 MB"
    assert {
        "Python",
        "packages",
        "llama.cpp",
        "params.yaml",
        "GPU",
        "data",
        "disk",
        "merge",
        "scoring",
        "training",
    } <= lines.keys()
    assert not (inside.path / "models").exists()


def test_everything_that_is_wrong_is_found_in_one_run(inside):
    inside.set({"lora.rank": 8})
    empty = {"PATH": str(inside.path), "XDG_CACHE_HOME": str(inside.path)}
    done = inside.tool("doctor", **empty)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = lines_of(done)
    assert lines["params.yaml"][0] == "problem"
    assert "lora.rank" in lines["params.yaml"][1]
    assert lines["llama.cpp"][0] == "warning"
    assert lines["compiler"][0] == "problem"
    assert "g++" in lines["compiler"][1]
    assert lines["NF4"][0] == "ok"


# Packages, tools and the device


def test_packages_are_held_to_their_pins(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\n\npytest==0.0.1 # old\nno-such-package==1.0\ntqdm\nruff[x]==9.9.9\n")
    finding = machine_checks.check_packages(requirements)
    assert finding.level == PROBLEM
    assert "pytest is " in finding.figure
    assert "pinned is 0.0.1" in finding.figure
    assert "no-such-package is missing" in finding.figure
    assert "pinned is 9.9.9" in finding.figure
    assert "tqdm" not in finding.figure
    assert "make setup" in finding.advice
    assert machine_checks.check_packages(tmp_path / "none.txt").level == PROBLEM


def test_a_half_made_environment_is_reported_by_itself(inside):
    (inside.path / "requirements.txt").write_text("no-such-package==1.0\n")
    done = inside.tool("doctor")
    assert done.returncode == 1
    assert list(lines_of(done)) == ["Python", "packages"]


def test_tools_that_do_not_run_are_a_problem(tmp_path, monkeypatch):
    for name in llama_cpp.TOOLS:
        (tmp_path / name).write_text("not a program of this machine")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    finding = the(machine_checks.check_llama_cpp())
    assert finding.level == PROBLEM
    assert str(tmp_path / "llama-quantize") in finding.figure


def test_a_folder_of_ones_own_without_tools_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    finding = the(machine_checks.check_llama_cpp())
    assert finding.level == PROBLEM
    assert "LLAMA_CPP_DIR" in finding.figure


def test_the_product_in_nf4_is_measured(monkeypatch):
    assert machine_checks.check_nf4().level == OK
    monkeypatch.setattr(machine_checks, "NF4_ERROR", 0.01)  # 4 bits cannot be that exact, so the product was one
    assert machine_checks.check_nf4().level == PROBLEM


# Model and data


def of_folder(folder) -> BaseModel:
    return sizes.find_model(Model(id=str(folder)))


@pytest.fixture
def params(inside) -> Params:
    return load_params()


def changed(params: Params, section: str, **values) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


def test_a_missing_folder_is_a_sentence(params):
    with pytest.raises(Refusal, match=r"model\.id.*\./none"):
        sizes.find_model(changed(params, "model", id="./none").model)


def test_data_is_looked_into(params, inside):
    assert doctor.check_data(params).level == OK
    (inside.path / "data/raw/text2sql.jsonl").write_text('{"q": 1}\n')
    finding = doctor.check_data(params)
    assert finding.level == PROBLEM
    assert "'question'" in finding.figure
    missing = doctor.check_data(changed(params, "data", source="data/raw/none.csv"))
    assert "data/raw/none.csv" in missing.figure


def test_layers_that_the_model_does_not_have(params, tiny_model):
    with pytest.raises(Refusal, match=r"lora\.target_modules.*query"):
        sizes.model_shape(changed(params, "lora", target_modules=["query"]), of_folder(tiny_model))


ASK = """
from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage
from tools import sizes
model = load_params().model
def ask():
    sizes.hub_repository("dataset", model.id, model.revision)
    print(sizes.find_model(model).about)
run_stage(ask)
"""


@pytest.fixture
def ask(inside):
    """A function that asks a hub for the model (and for a data set of that name), with an empty cache and no token."""
    inside.set({"model.id": NAME, "model.revision": COMMIT})
    empty = {"HF_HOME": str(inside.path / "hf"), "HF_HUB_OFFLINE": "", "HF_TOKEN": ""}
    return lambda address: inside.python("-c", ASK, HF_ENDPOINT=address, **empty)


def test_a_hub_model_is_asked_for_and_not_fetched(ask, inside):
    (inside.path / "tiny/consolidated.safetensors").write_bytes(bytes(9_000_000))  # the same weights once more
    with fake_hub(inside.path / "tiny", NAME) as (address, asked):
        done, again = ask(address), ask(address)  # the first one leaves config.json in the cache
    assert done.stdout == "org/tiny, 6 MB, can be fetched, licence: apache-2.0\n", done.stderr
    assert again.stdout == done.stdout
    assert [path for path in asked if path.endswith("/config.json")]
    assert not [path for path in asked if path.endswith(".safetensors")]


def test_a_gated_model_says_where_to_accept(ask, tiny_model):
    with fake_hub(tiny_model, NAME, gated=True) as (address, _):
        sentence = refused(ask(address))
    assert sentence.startswith("model.id") or sentence.startswith("data.source")
    assert "HF_TOKEN" in sentence


def test_an_unreachable_hub_is_said(ask):
    assert "HF_ENDPOINT" in refused(ask("http://127.0.0.1:9"))


# Room


def test_a_disk_that_is_too_small(params, tiny_model):
    model = of_folder(tiny_model)
    shape = sizes.model_shape(params, model)
    assert the(doctor.check_disk(params, model, shape)).level == OK
    huge = BaseModel(10**18, 10**18, None, "huge")
    findings = list(doctor.check_disk(params, huge, None))
    assert findings
    assert {finding.level for finding in findings} == {PROBLEM}


def test_the_disk_needs_what_a_run_writes(params, tiny_model):
    model = of_folder(tiny_model)
    shape = sizes.model_shape(params, model)
    assert shape.parameters * 2 == pytest.approx(model.weights, rel=0.01)
    one = sizes.written(params, model, shape)
    two = sizes.written(changed(params, "gguf", types=["Q8_0", "Q4_K_M"]), model, shape)
    float32 = sizes.written(changed(params, "merge", dtype="float32"), model, shape)
    assert two.keys() - one.keys() == {"quantize-gguf@Q4_K_M"}
    assert two["quantize-gguf@Q4_K_M"] == pytest.approx(shape.parameters * 5 / 8)
    assert float32["merge"] == 2 * one["merge"] == 4 * shape.parameters


def test_a_model_that_is_stored_in_32_bits_is_scored_in_16(params, tiny_model, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).save_pretrained(tmp_path)
    halves, floats = of_folder(tiny_model), of_folder(tmp_path)
    assert floats.weights > 1.9 * halves.weights
    figure = doctor.check_scoring_memory(params, floats).figure
    assert figure.split(",")[0] == doctor.check_scoring_memory(params, halves).figure.split(",")[0]


def test_memory_that_is_too_small(params, tiny_model, monkeypatch):
    model = of_folder(tiny_model)
    shape = sizes.model_shape(params, model)
    assert doctor.check_merge_memory(params, model).level == OK
    assert doctor.check_training_memory(params, shape).level == OK
    monkeypatch.setattr(doctor, "available_memory", lambda: 1_000_000)
    assert doctor.check_merge_memory(params, model).level == PROBLEM
    float32 = doctor.check_merge_memory(changed(params, "merge", dtype="float32"), model)
    assert "merge.dtype" in float32.advice


@pytest.fixture
def of_8b(tmp_path):
    """The recipe of 8 billion parameters, its model (whose weights are not here) and the shape."""
    params = load_params(ROOT / "recipes/llama3-8b-sql.yaml")
    widths = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    LlamaConfig(vocab_size=128256, **widths).save_pretrained(tmp_path)
    model = BaseModel(16_060_000_000, 0, tmp_path, "8B")
    return params, model, sizes.model_shape(params, model)


def with_gpus(monkeypatch, count: int, free: int) -> None:
    """Let there be so many GPUs, with so many bytes free of each."""
    cuda = namedtuple("cuda", "is_available device_count mem_get_info")
    monkeypatch.setattr(torch, "cuda", cuda(lambda: True, lambda: count, lambda: (free, free)))
    monkeypatch.setattr(device, "gpu", lambda: device.Device("a card", True, free, 1e14))


def test_an_8b_run_on_a_machine_that_is_too_small(of_8b, monkeypatch):
    """Figures, and the parameter that would help."""
    params, model, shape = of_8b
    assert shape.trainable == 41_943_040

    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(250 * GB, 210 * GB, 40 * GB))
    finding = the(doctor.check_disk(params, model, shape))
    assert finding.level == PROBLEM
    assert re.search(r"40\.0 GB free .* 4\d\.\d GB", finding.figure)
    assert "gguf.types" in finding.advice

    monkeypatch.setattr(doctor, "available_memory", lambda: 12 * GB)
    assert doctor.check_merge_memory(params, model).level == OK
    with_gpus(monkeypatch, 1, 12 * GB)
    finding = doctor.check_scoring_memory(params, model)
    assert finding.level == PROBLEM
    assert re.findall(r"(\d+\.\d) GB", finding.figure) == ["17.7", "12.0", "12.0"]
    assert "evaluate.artifacts" in finding.advice
    few = changed(params, "evaluate", artifacts=["adapter", "Q4_K_M"])
    assert doctor.check_scoring_memory(few, model).level == OK
    assert doctor.check_training_memory(params, shape).level == OK

    with_gpus(monkeypatch, 1, 5 * GB)
    finding = doctor.check_training_memory(params, shape)
    assert finding.level == PROBLEM
    assert re.search(r" \d\.\d GB .* 5\.0 GB .*train\.max_length", finding.figure)


def test_training_is_planned_for_the_devices_that_it_asks_for(of_8b, monkeypatch):
    params, _, shape = of_8b
    with_gpus(monkeypatch, 2, 6 * GB)
    assert doctor.check_training_memory(params, shape).level == PROBLEM
    finding = doctor.check_training_memory(changed(params, "train", parallel="fsdp"), shape)
    assert finding.level == OK
    assert re.search(r"2 x a card: about [45]\.\d GB, 6\.0 GB", finding.figure)
    finding = doctor.check_training_memory(changed(params, "train", devices=4), shape)
    assert finding.level == PROBLEM
    assert re.search(r"train\.devices: 4 .* 2 GPUs", finding.figure)


def test_available_memory_is_this_machine_s():
    assert 10**8 < machine.available_memory() < 10**14
