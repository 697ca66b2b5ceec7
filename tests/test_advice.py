"""What a refusal advises is done, to the letter, and then the same command works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qlora.recipe.artifacts import find

import pytest
from conftest import Workspace, refused
from fake_hub import COMMIT, fake_hub
from repository import environment, git, make_repository, repro, run_dvc, set_param

pytestmark = pytest.mark.slow
NAME = "org/tiny"


def commands(sentence: str) -> list[str]:
    """What a refusal says to run, in its order."""
    return [command for command in re.findall("`([^`]*)`", sentence) if " " in command]


def run(folder: Path, command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True)


# Files that were damaged or lost


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model) -> Path:
    """A repository with the real dvc.yaml, run once."""
    folder = tmp_path_factory.mktemp("finished") / "repository"
    folder.mkdir()
    make_repository(folder, tiny_model)
    set_param(folder, "gguf.adapters", ["adapter-gguf"])
    assert "report" in repro(folder)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "run")
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy in which outputs are the cache's own files (hard links), as after a run."""
    shutil.rmtree(folder := tmp_path / "repository", ignore_errors=True)
    subprocess.run(["cp", "-a", finished, folder], check=True)
    return folder


def replace(path: Path) -> None:
    """Another, shorter file in its place: a copy that broke off. DVC's cache keeps the whole one."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    path.write_bytes(half)


def shorten(path: Path) -> None:
    """The same file, shorter, as a failing disk leaves it: DVC's cache has lost it, too, and does not know."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)
    path.chmod(mode)


def lose(path: Path) -> None:
    path.unlink()


def lose_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("damage", "path", "reader"),
    [
        (lose, "models/adapter/adapter_model.safetensors", "merge"),
        (lose, "results/answers/Q8_0.jsonl", "judge --artifact Q8_0"),
        (lose_folder, "models/bf16/model.gguf", "quantize_gguf --type Q8_0"),
        (replace, "models/adapter/adapter_model.safetensors", "merge"),
        (replace, "models/Q8_0/model.gguf", "evaluate --artifact Q8_0"),
        (shorten, "models/base/base.json", "prepare_dataset"),
        (shorten, "data/prepared/train.jsonl", "convert_gguf"),
        (shorten, "models/adapter/adapter_model.safetensors", "merge"),
        (shorten, "models/adapter/adapter_config.json", "convert_adapter"),
        (shorten, "models/merged/model.safetensors", "convert_gguf"),
        (shorten, "models/bf16/model.gguf", "quantize_gguf --type Q8_0"),
        (shorten, "models/Q8_0/model.gguf", "evaluate --artifact Q8_0"),
        (shorten, "results/answers/Q8_0.jsonl", "judge --artifact Q8_0"),
    ],
)
def test_what_was_damaged_or_lost_is_brought_back(copy, damage, path, reader):
    damage(copy / path)
    read = f"{sys.executable} -m stages.{reader}"
    done = run(copy, read)
    sentence = refused(done)
    assert sentence.startswith(path if damage is not lose_folder else str(Path(path).parent))
    followed = []
    for command in commands(sentence):
        followed.append(run(copy, command))
        if (done := run(copy, read)).returncode == 0:
            break
    assert done.returncode == 0, [*followed, done]
    assert len(followed) == (2 if damage is shorten else 1)
    assert run_dvc(copy, "repro").returncode == 0


def test_a_damaged_gguf_of_the_cache_is_made_again(copy, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "LLAMA_CPP_DIR": llama_cpp()}
    command = [sys.executable, "-m", "stages.convert_adapter"]
    for _ in range(2):
        done = subprocess.run(command, cwd=copy, env=environment() | cache, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (gguf,) = (tmp_path / "cache").rglob("*.gguf")
        size = gguf.stat().st_size
        os.truncate(gguf, size // 2)


def llama_cpp() -> str:
    from qlora.llama_cpp import tools

    return str(tools.find().server.parent)


# The base model


def test_a_base_model_that_was_damaged_in_the_hubs_cache_is_fetched_again(workspace, tmp_path):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    hub = {"HF_HOME": str(tmp_path / "hf home"), "HF_HUB_OFFLINE": "", "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}
    with fake_hub(workspace.path / "tiny", NAME) as (address, _):
        hub |= {"HF_ENDPOINT": address}
        assert workspace.run("fetch_base", **hub).returncode == 0
        assert workspace.run("prepare_dataset", **hub).returncode == 0
        (weights,) = (tmp_path / "hf home").rglob("snapshots/*/model.safetensors")
        for damage in (truncate, spoil_header):
            damage(weights.resolve())
            sentence = refused(workspace.run("evaluate", "--artifact", "base", **hub))
            assert "model.safetensors" in sentence
            (command,) = commands(sentence)
            assert run(workspace.path, command).returncode == 0
            done = workspace.run("evaluate", "--artifact", "base", **hub)
            assert done.returncode == 0, done.stderr


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_header(path: Path) -> None:
    """The size stays."""
    with path.open("r+b") as file:
        file.write(b"\xff" * 64)


def test_a_local_base_model_that_was_changed_is_recorded_again(copy):
    path = copy / "tiny/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "on purpose"}))
    read = f"{sys.executable} -m stages.merge"
    assert run(copy, read).returncode == 1
    (command,) = commands(refused(run(copy, read)))
    assert run(copy, command).returncode == 0
    assert run_dvc(copy, "repro", "merge").returncode == 0
    assert run(copy, read).returncode == 0


# Keys of params.yaml


def csv(text: str, encoding: str = "utf-8") -> Callable[[Workspace], None]:
    def write(workspace: Workspace) -> None:
        (workspace.path / "data/raw/mine.csv").write_bytes(text.encode(encoding))

    return write


def sql_rows(header: str, row: str) -> str:
    return header + "\n" + "".join(row.format(n=n) + "\n" for n in range(40))


SCHEMA = "CREATE TABLE t{n} (id INTEGER)"
PLAIN = sql_rows("question,context,answer,schema", '"How many, {n}?",' + SCHEMA + ",SELECT {n},s{n}")
MINE = {"data.source": "data/raw/mine.csv"}

# Name -> what is set before, a stage, what it refuses with, and what that advises to set: keys, or a change of files.
KEYS = {
    "a length beyond the model": (
        {"train.max_length": 4096},
        "fetch_base",
        r"set it to at most (?P<most>\d+)",
        lambda found: {"train.max_length": int(found["most"])},
    ),
    "an answer beyond the model": (
        {"evaluate.max_new_tokens": 2048},
        "fetch_base",
        r"evaluate\.max_new_tokens: 2048 leaves no room for a prompt in this model's (?P<positions>\d+) positions",
        lambda found: {"evaluate.max_new_tokens": 8},
    ),
    "unknown modules": (
        {"lora.target_modules": ["query", "value"]},
        "quantize_load_train",
        r"no linear layer query, value; it has (?P<names>[\w, ]+)",
        lambda found: {"lora.target_modules": found["names"].split(", ")[:2]},
    ),
    "experts of a model without": (
        {"lora.experts": True},
        "quantize_load_train",
        r"lora\.experts: .*; set it to false",
        lambda found: {"lora.experts": False},
    ),
    "a key that is misspelt": (
        {"lora.rank": 8},
        "quantize_load_train",
        r"lora\.rank: unknown key; .*\br\b",
        lambda found: "drop lora.rank",
    ),
    "another column": (
        MINE,
        "prepare_dataset",
        r"has no column .*question.*set data\.columns to the names that the file uses",
        lambda found: {"data.columns.question": "ask"},
    ),
    "values without quotes": (
        MINE,
        "prepare_dataset",
        r"mine\.csv, line 2: has 5 values and the header 4: put quotes around values that hold",
        lambda found: csv(PLAIN),
    ),
    "letters of another encoding": (
        MINE,
        "prepare_dataset",
        r"set data\.encoding to its own, such as cp1250",
        lambda found: {"data.encoding": "cp1250"},
    ),
    "a file that is not there": (
        {"data.source": "data/raw/none.jsonl"},
        "prepare_dataset",
        r"data/raw/none\.jsonl is missing; put the file there .*, or change data\.source",
        lambda found: {"data.source": "data/raw/text2sql.jsonl"},
    ),
    "a split without rows": (
        {"data.validation_fraction": 0.001},
        "prepare_dataset",
        r"no row is left for validation: .*raise them",
        lambda found: {"data.validation_fraction": 0.2},
    ),
    "a column to keep that no row has": (
        {"data.keep": ["tests"]},
        "prepare_dataset",
        r"data\.keep: no row has a column 'tests'",
        lambda found: {"data.keep": ["kind"]},
    ),
    "a type that needs a matrix": (
        {"gguf.types": ["IQ2_XS"], "evaluate.artifacts": ["base"]},
        "fetch_base",
        r"IQ2_XS .*gguf\.imatrix",
        lambda found: {"gguf.imatrix": True},
    ),
    "an artifact that is never made": (
        {"evaluate.artifacts": ["base", "Q5_K_M"]},
        "fetch_base",
        r"'Q5_K_M' is never made; .*add it to gguf\.types",
        lambda found: {"gguf.types": ["Q8_0", "Q5_K_M"]},
    ),
    "a model folder that is not there": (
        {"model.id": "./mine"},
        "fetch_base",
        r"there is no folder \./mine; name one that holds config\.json",
        lambda found: {"model.id": "./tiny"},
    ),
    "an engine of another dialect": (
        {"evaluate.engine": "postgres"},
        "fetch_base",
        r"set evaluate\.engine to (?P<engine>\w+)",
        lambda found: {"evaluate.engine": found["engine"]},
    ),
    "a template that is not there": (
        {"model.chat_template": "templates/none.jinja"},
        "fetch_base",
        r"model\.chat_template: cannot read templates/none\.jinja .*put a Jinja template there",
        lambda found: {"model.chat_template": "chatml"},
    ),
}
FILES = {
    "another column": csv(PLAIN.replace("question", "ask", 1)),
    "values without quotes": csv(PLAIN.replace('"', "")),
    "letters of another encoding": csv(PLAIN.replace("How many", "Łódź, Kraków, Gdańsk"), "cp1250"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_that_a_refusal_names_is_the_one_to_change(prepared, name):
    before, stage, sentence, advised = KEYS[name]
    FILES.get(name, lambda workspace: None)(prepared)
    prepared.set(before)
    said = refused(prepared.run(stage))
    found = re.search(sentence, said, re.DOTALL)
    assert found, said
    advice = advised(found.groupdict())
    if callable(advice):
        advice(prepared)
    elif isinstance(advice, str):
        path = prepared.path / "params.yaml"
        path.write_text("".join(line for line in path.open() if "rank:" not in line))
    else:
        prepared.set(advice)
    done = prepared.run(stage)
    assert done.returncode == 0, done.stderr


# Commands


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ("tools.preview", ["data/prepared"]),
        ("tools.publish --type adapter --to me/sql --dry-run", ["results/model_card.md"]),
        ("tools.publish --type adapter --to me/sql --dry-run", ["models/adapter"]),
        ("tools.compare HEAD", ["metrics/outcomes.json"]),
        ('tools.ask "How many?" --schema schema.sql --max-tokens 4', ["models/Q8_0"]),
        ('tools.ask "How many?" --schema schema.sql --max-tokens 4 --artifact merged', ["models/merged"]),
        ("stages.report", ["results/scores/Q8_0.json"]),
        ("stages.judge --artifact Q8_0", ["results/answers"]),
    ],
)
def test_the_command_that_a_refusal_names_makes_what_is_missing(copy, command, gone):
    (copy / "schema.sql").write_text("CREATE TABLE users (id INTEGER, name TEXT)")
    for path in map(copy.joinpath, gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = f"{sys.executable} -m {command}"
    sentence = refused(run(copy, command))
    done = run(copy, commands(sentence)[0])
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(copy, command)
    assert done.returncode == 0, done.stderr


def test_a_type_that_the_recipe_does_not_list_is_made_once_it_does(copy):
    read = f"{sys.executable} -m tools.publish --type Q4_0 --to me/sql --dry-run"
    sentence = refused(run(copy, read))
    assert "(gguf.types has to name it)" in sentence
    set_param(copy, "gguf.types", ["Q8_0", "Q4_0"])
    command = commands(sentence)[0]
    assert shlex.split(command)[-1] == find("Q4_0").stage
    assert run(copy, command).returncode == 0
    assert run(copy, read).returncode == 0


def test_a_lost_recipe_is_copied_as_the_sentence_says(copy):
    (copy / "params.yaml").rename(copy / "mine.yaml")
    sentence = refused(run(copy, f"{sys.executable} -m stages.prepare_dataset"))
    (copy / "recipes").mkdir()
    (copy / "mine.yaml").rename(copy / "recipes/smollm2-sql.yaml")
    assert run(copy, sentence.partition("copy a recipe: ")[2]).returncode == 0
    assert run(copy, f"{sys.executable} -m stages.prepare_dataset").returncode == 0
