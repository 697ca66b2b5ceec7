"""Where the base model comes from: a folder or a hub (on the loopback interface); and what is refused."""

import json
import re
import shutil

from qlora.recipe.artifacts import BASE_RECORD
from qlora.recipe.schema import Model
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model

import pytest
from conftest import refused
from fake_hub import COMMIT, fake_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "org/tiny"
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.fixture
def environment(tmp_path):
    """The environment of a stage that asks `address` as its hub, with an empty cache and no token."""
    return lambda address: {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "",
        "HF_TOKEN": "",
    }


# A local folder


def test_the_record_follows_the_content(tmp_path, tiny_model):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model, folder)
    model = Model(id=str(folder))
    before = base_model.describe(model, folder)
    assert (before["id"], before["revision"]) == (str(folder), None)
    assert {n: file["size"] for n, file in before["files"].items()} == {
        p.name: p.stat().st_size for p in folder.iterdir()
    }
    assert base_model.describe(model, folder) == before
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = base_model.describe(model, folder)
    assert [name for name in before["files"] if before["files"][name] != after["files"][name]] == [weights.name]


def test_a_folder_that_was_changed_since_is_refused(tmp_path, tiny_model):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model, folder)
    model = Model(id=str(folder))
    write_json(tmp_path / "base" / BASE_RECORD, base_model.describe(model, folder))
    assert base_model.locate(tmp_path / "base") == folder
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(Refusal, match=r"tokenizer_config\.json has 2 bytes .*base\.json .*--single-item fetch-base"):
        base_model.locate(tmp_path / "base")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(Refusal, match=r"tokenizer_config\.json has no bytes"):
        base_model.locate(tmp_path / "base")


def test_no_such_folder(tmp_path):
    with pytest.raises(Refusal, match=r"model\.id: .*missing"):
        base_model.fetch(Model(id=str(tmp_path / "missing")))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(Refusal, match=r"model\.id: .*config\.json"):
        base_model.fetch(Model(id=str(tmp_path)))


def test_pickled_weights_are_refused(workspace):
    (workspace.path / "tiny/model.safetensors").rename(workspace.path / "tiny/pytorch_model.bin")
    sentence = refused(workspace.run("fetch_base"))
    assert sentence.startswith("model.id: ./tiny has no .safetensors file")
    assert ".bin" in sentence
    assert not (workspace.path / "models").exists()


# The hub

# What the stage does first, without what takes seconds to import.
FETCH = """
from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage
from qlora.source import base_model
run_stage(lambda: base_model.fetch(load_params().model))
"""
RECORD = """
import json
from qlora.recipe.load import load_params
from qlora.source import base_model
model = load_params().model
print(json.dumps(base_model.describe(model, base_model.fetch(model))))
"""


def test_a_hub_model_is_fetched_once_and_then_needs_no_hub(workspace, tiny_model, environment):
    (workspace.path / "tiny/pytorch_model.bin").write_bytes(b"a pickle")
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    with fake_hub(workspace.path / "tiny", NAME) as (address, asked):
        online = workspace.python("-c", RECORD, **environment(address))
    assert not [path for path in asked if path.endswith(".bin")]
    record = json.loads(online.stdout)
    assert (record["id"], record["revision"]) == (NAME, COMMIT)
    local = base_model.describe(Model(id=str(tiny_model)), tiny_model)
    assert record["files"] == local["files"]
    assert workspace.python("-c", RECORD, **environment(NOWHERE)).stdout == online.stdout


@pytest.mark.parametrize("revision", ["main", None])
def test_a_branch_is_refused_with_the_commit_to_pin(workspace, environment, revision):
    workspace.set({"model.id": NAME, "model.revision": revision})
    with fake_hub(workspace.path / "tiny", NAME) as (address, asked):
        sentence = refused(workspace.python("-c", FETCH, **environment(address)))
    assert sentence.startswith("model.revision: ")
    assert NAME in sentence
    assert COMMIT in sentence
    assert not [path for path in asked if path.endswith(".safetensors")]


def test_a_data_set_without_commit_is_refused_before_the_model_is_fetched(workspace, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT, "data.source": "org/rows", "data.revision": None})
    with fake_hub(workspace.path / "tiny", "org/rows") as (address, asked):
        sentence = refused(workspace.run("fetch_base", **environment(address)))
    assert sentence.startswith("data.revision: ")
    assert COMMIT in sentence
    assert not [path for path in asked if NAME in path]


def test_an_unreachable_hub_is_named(workspace, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    sentence = refused(workspace.run("fetch_base", **environment(NOWHERE)))
    assert sentence.startswith(f"model.id: {NAME} at {COMMIT} is not in the local cache")
    assert "HF_ENDPOINT" in sentence


CACHE = """
from huggingface_hub import snapshot_download
snapshot_download("{name}", revision="{commit}", allow_patterns={patterns})
"""
ONE = """
from huggingface_hub import hf_hub_download
hf_hub_download("{name}", "config.json", revision="{commit}")
"""


@pytest.mark.parametrize(
    ("cached", "missing", "offline"),
    [
        (ONE.format(name=NAME, commit=COMMIT), "its weights", ""),  # the hub is asked again and again
        (ONE.format(name=NAME, commit=COMMIT), "its weights", "1"),
        (CACHE.format(name=NAME, commit=COMMIT, patterns=["*.json", "*.jinja"]), "model.safetensors", "1"),
    ],
)
def test_what_a_model_that_is_cached_in_part_lacks_is_named(
    workspace, tiny_model, environment, cached, missing, offline
):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    with fake_hub(tiny_model, NAME) as (address, _):
        assert workspace.python("-c", cached, **environment(address)).returncode == 0
    nowhere = environment(NOWHERE) | {"HF_HUB_OFFLINE": offline}
    sentence = refused(workspace.python("-c", FETCH, **nowhere))
    assert sentence.startswith(f"model.id: {NAME} at {COMMIT} is in the local cache without {missing},")


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path, tiny_model):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_model, folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(Refusal, match=r"model\.id: .* model-2\.safetensors, .*index\.json"):
        base_model.fetch(Model(id=str(folder)))


def test_a_gated_model_says_where_to_accept_and_what_to_set(workspace, tiny_model, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    with fake_hub(tiny_model, NAME, gated=True) as (address, asked):
        sentence = refused(workspace.python("-c", FETCH, **environment(address)))
    assert asked
    assert sentence.startswith(f"model.id: {NAME} is gated: ")
    assert "HF_TOKEN" in sentence


@pytest.mark.parametrize(
    ("name", "commit", "key", "missing"),
    [("org/tyni", COMMIT, "model.id", "org/tyni"), (NAME, "f" * 40, "model.revision", "f" * 40)],
)
def test_what_the_hub_does_not_have_is_named(workspace, tiny_model, environment, name, commit, key, missing):
    workspace.set({"model.id": name, "model.revision": commit})
    with fake_hub(tiny_model, NAME) as (address, _):
        sentence = refused(workspace.python("-c", FETCH, **environment(address)))
    assert sentence.startswith(f"{key}: ")
    assert missing in sentence


def test_a_model_of_pickles_is_refused_before_they_are_fetched(workspace, environment):
    (workspace.path / "tiny/model.safetensors").rename(workspace.path / "tiny/pytorch_model.bin")
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    with fake_hub(workspace.path / "tiny", NAME) as (address, asked):
        sentence = refused(workspace.python("-c", FETCH, **environment(address)))
    assert sentence.startswith(f"model.id: {NAME} has no .safetensors file")
    assert not [path for path in asked if "/resolve/" in path and path.endswith(".bin")]


def test_a_broken_download_resumes(workspace, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    weights = workspace.path / "tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes() * 5)  # the client keeps pieces of 10 MB
    with fake_hub(workspace.path / "tiny", NAME, breaks=1) as (address, asked):
        done = workspace.python("-c", RECORD, **environment(address))
    assert done.returncode == 0, done.stderr
    local = base_model.describe(Model(id="./tiny"), workspace.path / "tiny")
    assert json.loads(done.stdout)["files"] == local["files"]
    assert [path.partition(" ")[2] for path in asked if ".safetensors bytes=" in path] == [f"bytes={10 << 20}-"]


def test_a_file_that_ends_too_early_is_refused(workspace, tiny_model, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    with fake_hub(tiny_model, NAME, short=True) as (address, _):
        sentence = refused(workspace.python("-c", FETCH, **environment(address)))
    assert sentence.startswith("model.id: ")
    assert f"file should be of size {(tiny_model / 'model.safetensors').stat().st_size}" in sentence
    with fake_hub(tiny_model, NAME) as (address, _):
        assert workspace.python("-c", FETCH, **environment(address)).returncode == 0


def test_a_token_is_used_and_written_nowhere(workspace, tiny_model, environment):
    workspace.set({"model.id": NAME, "model.revision": COMMIT})
    token = "hf_ThisIsNobodysToken"
    with fake_hub(tiny_model, NAME) as (address, asked):
        done = workspace.run("fetch_base", **environment(address) | {"HF_TOKEN": token})
    assert done.returncode == 0, done.stderr
    assert any(path.endswith(f"Bearer {token}") for path in asked)
    assert token not in done.stdout + done.stderr
    files = [path for path in workspace.path.rglob("*") if path.is_file()]
    assert workspace.path / "models/base/base.json" in files
    assert not [path for path in files if token.encode() in path.read_bytes()]


READ = """
from qlora.raw_rows import sources
from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage
data = load_params().data
run_stage(lambda: print(*(row for _, row in sources.open_source(data, data).rows), sep="\\n"))
"""


def test_a_hub_data_set_is_fetched_at_its_commit_and_then_needs_no_hub(workspace, environment):
    folder = workspace.path / "dataset"
    folder.mkdir()
    rows = [{"question": f"q{i}", "context": "c", "answer": "a", "schema": "s"} for i in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace.set({"data.source": "org/rows", "data.revision": COMMIT})
    with fake_hub(folder, "org/rows") as (address, _):
        online = workspace.python("-c", READ, **environment(address))
    offline = workspace.python("-c", READ, **environment(NOWHERE))
    assert online.stdout == offline.stdout == "".join(f"{row}\n" for row in rows), online.stderr + offline.stderr


def test_an_unreachable_data_set_is_named(workspace, environment):
    workspace.set({"data.source": "org/rows", "data.revision": COMMIT})
    sentence = refused(workspace.python("-c", READ, **environment(NOWHERE)))
    assert sentence.startswith(f"data.source: org/rows at {COMMIT} is not in the local cache")


def test_a_data_set_that_cannot_be_parsed_is_named(workspace, environment):
    folder = workspace.path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"question": "q"}\n{"question": \n')
    workspace.set({"data.source": "org/rows", "data.revision": COMMIT})
    with fake_hub(folder, "org/rows") as (address, _):
        done = workspace.python("-c", READ, **environment(address))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: data.source: org/rows: JSON")


def test_a_tokenizer_that_is_longer_than_the_embeddings_is_named_and_the_advice_works(workspace):
    tokenizer = AutoTokenizer.from_pretrained(workspace.path / "tiny")
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(3)])
    tokenizer.save_pretrained(workspace.path / "tiny")
    sentence = refused(workspace.run("fetch_base"))
    assert "beyond config.json's vocab_size" in sentence
    assert len(sentence) < 300 + len(str(workspace.path))
    model = AutoModelForCausalLM.from_pretrained(workspace.path / "tiny")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(workspace.path / "tiny")
    done = workspace.run("fetch_base")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.max_length": 4096}, r"train\.max_length: 4096 .* 2048 positions .* at most 2048"),
        ({"evaluate.max_new_tokens": 2048}, r"evaluate\.max_new_tokens: 2048 leaves no room .* 2048 positions"),
    ],
)
def test_lengths_beyond_the_model_are_refused_before_training(workspace, changes, named):
    workspace.set(changes)
    assert re.match(named, refused(workspace.run("fetch_base")))
    workspace.set({"train.max_length": 2048, "evaluate.max_new_tokens": 64})
    assert workspace.run("fetch_base").returncode == 0
    workspace.set(changes)
    assert re.match(named, refused(workspace.run("prepare_dataset")))
