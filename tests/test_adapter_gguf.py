"""The adapter as a GGUF over the base model's: llama-server computes what PEFT does, with several adapters, too."""

import json
import shutil
from pathlib import Path

from qlora.gguf import base_gguf, file
from qlora.llama_cpp import server as llama_server
from qlora.recipe.artifacts import ADAPTER_GGUF, BASE_RECORD, MODELS
from qlora.recipe.load import load_params
from qlora.rows.chat import load_chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import encode_rows, read
from qlora.runtime.console import Refusal
from qlora.scoring import llama_run, transformers_run
from qlora.scoring.top_tokens import kl_divergence
from qlora.weights.loading import load_plain
from stages import convert_adapter, fetch_base, prepare_dataset
from tools import serving

import pytest
import torch
from conftest import Workspace, make_workspace
from peft import LoraConfig, PeftModel, get_peft_model

ADAPTERS = {"first": False, "second": True}  # whether rsLoRA scales it


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Workspace:
    """A workspace with base model, rows, and two adapters that change the answers: adapters/NAME, each also as GGUF."""
    workspace = make_workspace(tmp_path_factory.mktemp("adapters"), tiny_model)
    workspace.set({"gguf.adapters": [ADAPTER_GGUF], "evaluate.artifacts": ["base", ADAPTER_GGUF]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        fetch_base.main()
        prepare_dataset.main()
        for seed, (name, use_rslora) in enumerate(ADAPTERS.items()):
            folder = Path("adapters") / name
            torch.manual_seed(seed)
            config = LoraConfig(
                r=8,
                lora_alpha=16,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
                use_rslora=use_rslora,
            )
            model = get_peft_model(load_plain(Path("tiny"), torch.float32), config)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.05)
            model.save_pretrained(folder)
            shutil.copy(Path("models/base") / BASE_RECORD, folder)
            shutil.rmtree(MODELS / "adapter", ignore_errors=True)
            shutil.copytree(folder, MODELS / "adapter")
            convert_adapter.main()
            shutil.move(MODELS / ADAPTER_GGUF / "model.gguf", folder / "model.gguf")
    return workspace


@pytest.fixture
def rows(place, monkeypatch) -> list[Encoded]:
    monkeypatch.chdir(place.path)
    return list(encode_rows(read("test"), load_chat(Path("tiny")), 256))


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_served_is_what_peft_computes(rows, name):
    folder = Path("adapters") / name
    plain = load_plain(Path("tiny"), torch.float32)
    base = transformers_run.score(plain, rows, lambda _: None)
    tuned = transformers_run.score(PeftModel.from_pretrained(plain, folder).eval(), rows, lambda _: None)
    served = llama_run.run(base_gguf.converted(MODELS / "base"), rows, load_params(), folder / "model.gguf").scores
    for before, wanted, found in zip(base, tuned, served, strict=True):
        assert kl_divergence(wanted.top, found.top).mean() < 0.02 * kl_divergence(wanted.top, before.top).mean()
        assert found.nll == pytest.approx(wanted.nll, rel=0.02)


def ask(server: llama_server.Running, row: Encoded, scales: list[float]) -> list[int]:
    """The answer's ids with each adapter scaled so; a request that says nothing applies all of them."""
    body = {"prompt": list(row.input_ids[: row.prompt_length]), "n_predict": 8, "temperature": 0, "return_tokens": True}
    if scales:
        body["lora"] = [{"id": number, "scale": scale} for number, scale in enumerate(scales)]
    with server.ask("POST", "/completion", body) as response:
        return json.loads(response.read())["tokens"]


def test_two_adapters_behind_one_server_answer_as_each_does_alone(rows):
    params, base = load_params(), base_gguf.converted(MODELS / "base")
    room = serving.room(base, params, context=512, slots=1)
    files = [Path("adapters") / name / "model.gguf" for name in ADAPTERS]
    alone = []
    for path in files:
        with llama_server.run(base, {"--ctx-size": 512, "--parallel": 1, "--lora": path}) as server:
            alone.append([ask(server, row, []) for row in rows])
    with llama_server.run(base, {"--ctx-size": 512, "--parallel": 1}) as server:
        untuned = [ask(server, row, []) for row in rows]
    assert alone[0] != alone[1] != untuned != alone[0]

    MODELS.joinpath(ADAPTER_GGUF).mkdir(exist_ok=True)
    shutil.copy(files[0], MODELS / ADAPTER_GGUF / "model.gguf")
    with serving.serve(ADAPTER_GGUF, base, params, room, options=["--lora", files[1]]) as server:
        for at, row in enumerate(rows):
            assert ask(server, row, [1, 0]) == alone[0][at]
            both = ask(server, row, [])
            assert ask(server, row, [0, 1]) == alone[1][at]
            assert ask(server, row, [0, 0]) == untuned[at]
            assert ask(server, row, [1, 1]) == both


def test_an_adapter_that_lost_a_tensor_is_refused(place):
    path = place.path / "adapters/first/model.gguf"
    assert file.check_adapter(path, 28, 16) == 14
    with pytest.raises(Refusal, match="28 tensors of 30"):
        file.check_adapter(path, 30, 16)
    with pytest.raises(Refusal, match="alpha 16 for 32"):
        file.check_adapter(path, 28, 32)


def test_an_adapter_of_experts_is_refused(place, monkeypatch, tmp_path):
    adapter = shutil.copytree(place.path / "adapters/first", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": ["mlp.experts.down_proj"]}))
    with pytest.raises(Refusal, match="adapter of experts"):
        convert_adapter.convert(adapter, place.path / "tiny", tmp_path / "model.gguf")


def test_it_is_scored_as_every_artifact(place, monkeypatch):
    monkeypatch.chdir(place.path)
    convert_adapter.main()
    done = place.run("evaluate", "--artifact", ADAPTER_GGUF)
    assert done.returncode == 0, done.stderr
    scores = json.loads((place.path / f"results/answers/{ADAPTER_GGUF}.json").read_text())
    assert scores["size_mb"] < 1  # without the base model
    assert scores["loss"] > 0
