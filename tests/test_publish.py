"""publish against a hub on the loopback interface: what appears, what never does, and how a broken upload goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from qlora.recipe.artifacts import ADAPTER_GGUF
from qlora.recipe.schema import EMBEDDED, Model
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from tools import publish, secrets_scan

import numpy as np
import pytest
from conftest import Workspace, refused, write_gguf
from fake_hub import UploadHub, upload_hub
from repository import ROOT
from safetensors.numpy import save_file

TOKEN = "a-token-of-this-test"
CARD = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
---
# A model

- files: models/Q4_K_M/model.gguf

## Run it

```bash
make pull-model TYPE=Q4_K_M
```

Scores.
"""


@pytest.fixture(scope="module")
def record() -> dict:
    return base_model.describe(Model(id=EMBEDDED), base_model.fetch(Model(id=EMBEDDED)))


@pytest.fixture
def place(tmp_path, record) -> Workspace:
    """A folder with a GGUF, an adapter and a card, as the pipeline leaves them."""
    for name in ("stages", "qlora", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("Q4_K_M", "adapter", ADAPTER_GGUF):
        write_json(tmp_path / "models" / name / "base.json", record)
    write_gguf(tmp_path / "models/Q4_K_M/model.gguf")
    (tmp_path / "models/Q4_K_M/Modelfile").write_text("FROM ./model.gguf\n")
    save_file({"lora_A.weight": np.ones((8, 64))}, tmp_path / "models/adapter/adapter_model.safetensors")
    config = {"base_model_name_or_path": "/home/me/secret-project/model", "r": 8}
    write_json(tmp_path / "models/adapter/adapter_config.json", config)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/model_card.md").write_text(CARD)
    return Workspace(tmp_path)


@pytest.fixture
def hub():
    with upload_hub(TOKEN, "me") as hub:
        yield hub


def start(place: Workspace, hub: UploadHub, *arguments: str, type_: str = "Q4_K_M", **environment: str):
    """`python -m tools.publish` as a process, at home and with the token."""
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(place.path / "home")}
    command = [sys.executable, "-m", "tools.publish", "--type", type_, "--to", "me/sql", *arguments]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"CI": "", "NO_PROXY": "127.0.0.1"} | own | environment
    return subprocess.Popen(command, cwd=place.path, env=environment, text=True, **pipes)


def run(place: Workspace, hub: UploadHub, *arguments: str, answer: str = "", **more: str):
    """What it printed, if a person answers so."""
    process = start(place, hub, *arguments, **more)
    printed = process.communicate(answer)
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def test_a_gguf_appears_private_with_its_card_under_a_name_that_says_its_type(place, hub):
    done = run(place, hub)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/sql"]
    assert repository.private
    assert repository.commits == 1
    assert repository.files.keys() == {"README.md", "sql-Q4_K_M.gguf"}
    assert repository.files["sql-Q4_K_M.gguf"] == (place.path / "models/Q4_K_M/model.gguf").read_bytes()
    card = repository.files["README.md"].decode()
    assert "llama-server -hf me/sql:Q4_K_M" in card
    assert "base_model_relation: quantized" in card
    assert "Scores." in card
    assert "models/" not in card


def test_an_interrupted_upload_leaves_nothing_and_goes_on(place, hub):
    hub.stalls = True
    process = start(place, hub, "--public")
    process.stdin.write("y\n")
    process.stdin.flush()
    assert hub.stalled.wait(60)
    process.terminate()
    assert "interrupted; the same command goes on" in process.communicate()[1]
    assert hub.repositories["me/sql"].private
    assert hub.repositories["me/sql"].files == {}

    hub.stalls = False
    assert run(place, hub, "--public", answer="y\n").returncode == 0
    assert not hub.repositories["me/sql"].private
    assert "sql-Q4_K_M.gguf" in hub.repositories["me/sql"].files
    sent = sum(path.startswith("PUT /blob/") for path in hub.asked)
    assert run(place, hub, "--public", answer="y\n").returncode == 0
    assert sum(path.startswith("PUT /blob/") for path in hub.asked) == sent  # the hub has it already


@pytest.mark.parametrize("answer", ["", "n\n", "\n"])
def test_nothing_becomes_public_unless_a_person_says_so(place, hub, answer):
    assert "nothing was uploaded" in refused(run(place, hub, "--public", answer=answer))
    assert hub.asked == []


def test_nothing_is_added_to_a_public_repository_unless_a_person_says_so(place, hub):
    assert run(place, hub, "--public", answer="y\n").returncode == 0
    assert "nothing was uploaded" in refused(run(place, hub, type_="adapter"))
    assert hub.repositories["me/sql"].commits == 1
    assert run(place, hub, type_="adapter", answer="yes\n").returncode == 0
    assert hub.repositories["me/sql"].commits == 2


def test_an_adapter_names_its_base_model_as_the_hub_does(place, hub):
    assert run(place, hub, type_="adapter").returncode == 0
    files = hub.repositories["me/sql"].files
    assert files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files["adapter_config.json"])
    assert config == {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "r": 8}
    assert "base_model_relation: adapter" in files["README.md"].decode()


def test_a_dry_run_lists_the_files_and_asks_nobody(place, hub):
    done = run(place, hub, "--dry-run", HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    assert "would upload Q4_K_M to me/sql, private" in done.stdout
    assert "sql-Q4_K_M.gguf" in done.stdout
    assert hub.asked == []


def test_a_wrong_token_and_a_foreign_owner_are_one_sentence_each(place, hub):
    assert "does not know this token" in refused(run(place, hub, HF_TOKEN="wrong"))
    assert "no token has" in refused(run(place, hub, HF_TOKEN="wr ong"))
    assert "may not write to you/sql" in refused(run(place, hub, "--to", "you/sql"))
    assert hub.repositories == {}


def test_without_a_token_in_the_environment_ci_publishes_nothing(place, hub):
    (place.path / "home").mkdir()
    (place.path / "home/token").write_text(TOKEN)
    assert "in CI" in refused(run(place, hub, CI="true", HF_TOKEN=""))
    assert hub.asked == []
    assert run(place, hub, HF_TOKEN="").returncode == 0  # at home the login counts
    assert run(place, hub, CI="true").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--type", "Q5_K_M"], "run `dvc repro quantize-gguf@Q5_K_M`"),
        (["--type", "base"], "publish adapter, merged"),
        (["--type", "Q4_K_N"], "publish adapter, merged"),
        (["--to", "sql"], "as owner/name"),
    ],
)
def test_what_cannot_be_published_is_refused(place, hub, arguments, sentence):
    assert sentence in refused(run(place, hub, *arguments))
    assert hub.asked == []


# Keys


KEYS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "an AWS access key": "AKIA" + "ABCD" * 4,
    "a GitHub token": "ghp_" + "x1" * 18,
    "a GitLab token": "glpat-" + "x1" * 10,
    "an API key": "sk-proj-" + "x1" * 20,
    "a Google API key": "AIza" + "x" * 35,
    "a Slack token": "xoxb-" + "1" * 24,
    "a password in an address": "postgresql://me:pass@db.example.com/x",
}


def test_each_pattern_has_an_example():
    assert KEYS.keys() == secrets_scan.PATTERNS.keys()


@pytest.mark.parametrize("kind", KEYS)
def test_nothing_is_uploaded_that_holds_a_key(place, hub, kind):
    card = place.path / "results/model_card.md"
    card.write_text(f"{CARD}\nsystem prompt: {KEYS[kind]}\n")
    assert kind in refused(run(place, hub))
    assert hub.asked == []


@pytest.mark.parametrize("name", [".env", "key.pem", "id_rsa", ".netrc"])
def test_a_file_for_keys_is_not_uploaded(place, hub, name):
    (place.path / "models/adapter" / name).write_text("x")
    assert name in refused(run(place, hub, type_="adapter"))
    assert hub.asked == []


def test_a_key_is_found_in_a_header_and_across_blocks(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + b"\0" * (secrets_scan.BLOCK - 20) + KEYS["a Hugging Face token"].encode() + b"\0" * 99)
    assert "a Hugging Face token" in secrets_scan.of_file(gguf)
    gguf.write_bytes(b"GGUF" + b"\0" * 99)
    assert secrets_scan.of_file(gguf) is None


def test_addresses_and_the_words_of_a_vocabulary_are_no_keys():
    for path in (Path(base_model.fetch(Model(id=EMBEDDED))) / "tokenizer.json", ROOT / "README.md"):
        assert secrets_scan.of_file(path) is None
    assert publish.NAME.fullmatch("owner/name-1.5_x")
