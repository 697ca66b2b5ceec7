"""What the tests share: a tiny model with random weights, and a folder in which the stages run on it."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.schema import EMBEDDED, Model
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from stages import fetch_base, prepare_dataset

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from repository import CODE, ROOT
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

# A run of a few seconds on the tiny model, as changes to the default recipe.
FAST = {
    "model.id": "./tiny",
    "data.validation_fraction": 0.2,
    "data.train_rows": 16,
    "data.validation_rows": 4,
    "data.test_rows": 4,
    "quantization.compute_dtype": "float32",
    "lora.r": 2,
    "train.batch_size": 4,
    "train.max_steps": 3,
    "train.eval_steps": 2,
    "train.checkpoint_steps": 1,
    "train.compile": False,
    "gguf.types": ["Q8_0"],
    "gguf.imatrix": False,
    "evaluate.artifacts": ["base", "adapter", "merged", "Q8_0"],
    "evaluate.max_new_tokens": 4,
    "evaluate.batch_size": 4,
    "evaluate.databases": 2,
    "evaluate.gates": {},
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A transformers folder: two random Llama layers, the embedded model's tokenizer and template. Do not change it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(base_model.fetch(Model(id=EMBEDDED)))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,  # logits far from uniform, so that a wrong one shows
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Workspace:
    """A folder with the layout of the repository: code, params.yaml, data/raw and the tiny model."""

    path: Path

    def set(self, changes: dict[str, object]) -> None:
        """Change values of params.yaml by their dotted names; a value of None is null."""
        yaml = YAML()
        params = yaml.load(self.path / "params.yaml")
        for name, value in changes.items():
            *sections, key = name.split(".")
            section = params
            for part in sections:
                section = section[part]
            section[key] = value
        yaml.dump(params, self.path / "params.yaml")

    def run(self, stage: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `python -m stages.STAGE` here, with changes to the environment, and return what it printed."""
        return self.python("-m", f"stages.{stage}", *args, **environment)

    def tool(self, name: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `python -m tools.NAME` here, with changes to the environment, and return what it printed."""
        return self.python("-m", f"tools.{name}", *args, **environment)

    def python(self, *args: str, **environment: str) -> subprocess.CompletedProcess:
        """Run this Python here, with changes to the environment, and return what it printed."""
        command = [sys.executable, *args]
        return subprocess.run(command, cwd=self.path, env=os.environ | environment, capture_output=True, text=True)


def refused(done: subprocess.CompletedProcess) -> str:
    """The sentence with which a stage or tool refused to run."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    _, error, sentence = done.stderr.rpartition("error: ")
    assert error, done.stderr
    return sentence.strip()


def write_gguf(path: Path) -> None:
    """A small GGUF of a megabyte, without a vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("weight", np.arange(2**18, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing handles it."""


@contextmanager
def chromium() -> Iterator:
    """The machine's own Chromium, headless (playwright's `Browser`); the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not path:
        pytest.skip("no Chromium on PATH (apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def workspace(tmp_path, tiny_model) -> Workspace:
    """The tiny model and a few dozen of the built-in rows, with a fast recipe; nothing has run yet."""
    return make_workspace(tmp_path, tiny_model)


def make_workspace(folder: Path, tiny_model: Path) -> Workspace:
    for name in CODE:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_model, folder / "tiny")
    (folder / "data" / "raw").mkdir(parents=True)
    with (ROOT / "data/raw/text2sql.jsonl").open() as rows:
        (folder / "data/raw/text2sql.jsonl").write_text("".join(itertools.islice(rows, 96)))
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", folder / "params.yaml")
    workspace = Workspace(folder)
    workspace.set(FAST)
    return workspace


def make_prepared(folder: Path, tiny_model: Path, changes: dict | None = None) -> Workspace:
    """A workspace with `changes` to its recipe, in which fetch-base and prepare-dataset have run."""
    workspace = make_workspace(folder, tiny_model)
    workspace.set(changes or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        fetch_base.main()
        prepare_dataset.main()
    return workspace


@pytest.fixture
def prepared(workspace, monkeypatch):
    """The workspace with models/base and the prepared rows."""
    monkeypatch.chdir(workspace.path)
    model = Model(id="./tiny")
    write_json(Path("models/base/base.json"), base_model.describe(model, base_model.fetch(model)))
    prepare_dataset.main()
    return workspace
