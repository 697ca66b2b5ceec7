"""What is refused before vLLM starts, and adapters behind it. vLLM lives in an environment of its own (.venv-vllm)."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from qlora.llama_cpp.server import free_port
from qlora.recipe.artifacts import BASE_RECORD
from qlora.recipe.schema import EMBEDDED, Model
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights.loading import load_plain
from tools import serve_vllm

import numpy as np
import openai
import pytest
import torch
from conftest import Workspace, refused
from peft import LoraConfig, PeftModel, get_peft_model
from repository import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase

QUESTIONS = ["How many users are there?", "The capital of France is", "SELECT", "Once upon a time", "2 + 2 ="]


def test_what_cannot_be_served_is_refused(workspace: Workspace):
    environment = {"VLLM_API_KEY": ""}
    assert "set VLLM_API_KEY" in refused(workspace.tool("serve_vllm", "--host", "0.0.0.0", **environment))
    assert "run `dvc repro merge`" in refused(workspace.tool("serve_vllm", **environment))
    sentence = refused(workspace.tool("serve_vllm", "--artifact", "adapter", **environment))
    assert "run `dvc repro quantize-load-train`" in sentence
    (workspace.path / "models").mkdir()
    Path(workspace.path / "models/merged").symlink_to(workspace.path / "tiny")
    (workspace.path / "tiny/base.json").write_text("{}")
    assert "make serve-vllm" in refused(workspace.tool("serve_vllm", **environment))


# Adapters


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Workspace:
    """The embedded model as models/base, and two adapters of it that change its answers: models/adapter and other."""
    path = tmp_path_factory.mktemp("adapters")
    for name in ("stages", "qlora", "tools"):
        (path / name).symlink_to(ROOT / name)
    (path / serve_vllm.ENVIRONMENT).symlink_to(ROOT / serve_vllm.ENVIRONMENT)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", path / "params.yaml")
    base = base_model.fetch(Model(id=EMBEDDED))
    for seed, name in enumerate(("models/adapter", "other")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load_plain(base, torch.bfloat16), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(path / name)
        write_json(path / name / BASE_RECORD, base_model.describe(Model(id=EMBEDDED), base))
    return Workspace(path)


@pytest.fixture(scope="module")
def client(adapters) -> Iterator[openai.OpenAI]:
    """vLLM with the base model and both adapters."""
    if not (ROOT / serve_vllm.ENVIRONMENT).exists():
        pytest.skip("vLLM is not installed (make serve-vllm)")
    port = free_port("127.0.0.1", 0)
    command = [sys.executable, "-m", "tools.serve_vllm", "--artifact", "adapter", "--port", str(port)]
    command += ["--lora-modules", "adapter=models/adapter", "other=other", "--enforce-eager", "--max-num-seqs", "2"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen([*command, "--max-model-len", "512"], cwd=adapters.path, env=environment)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        while process.poll() is None:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(1)
        assert process.poll() is None
        yield client
    finally:
        process.terminate()
        process.wait()


def of_vllm(client: openai.OpenAI, model: str) -> np.ndarray:
    """The log-probability of the most probable next token after each question."""
    found = []
    for question in QUESTIONS:
        reply = client.completions.create(model=model, prompt=question, max_tokens=1, temperature=0, logprobs=1)
        found += reply.choices[0].logprobs.top_logprobs[0].values()
    return np.array(found)


def of_torch(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The same, as transformers and PEFT compute it."""
    with torch.inference_mode():
        ids = [tokenizer(question, return_tensors="pt").input_ids for question in QUESTIONS]
        return np.array([model(input_ids=row).logits[0, -1].log_softmax(-1).max().item() for row in ids])


@pytest.mark.slow
def test_each_adapter_behind_vllm_is_the_one_of_its_name_and_not_the_base(adapters, client):
    base = base_model.fetch(Model(id=EMBEDDED))
    tokenizer, expected = AutoTokenizer.from_pretrained(base), {}
    for name, folder in {"base": None, "adapter": "models/adapter", "other": "other"}.items():
        model = load_plain(base, torch.float32)
        tuned = PeftModel.from_pretrained(model, adapters.path / folder) if folder else model
        expected[name] = of_torch(tuned, tokenizer)
    for name in expected:
        found = of_vllm(client, name)
        distances = {other: np.abs(found - values).mean() for other, values in expected.items()}
        own = distances.pop(name)
        assert own < min(distances.values()) / 2, (name, own, distances)  # not 0: vLLM computes in 16 bits
    with pytest.raises(openai.NotFoundError):
        of_vllm(client, "nobody")
