"""A GGUF of a given size: what each tensor costs is predicted well, and the types are chosen well."""

import csv
import random
import re
import shutil
import sys
from pathlib import Path

from qlora.gguf import file, fit, sensitivity
from qlora.recipe.artifacts import BASE_RECORD
from qlora.rows.chat import load_chat
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.rows.prepared import encode_rows, evenly
from qlora.runtime.console import Refusal
from qlora.weights.loading import load_plain
from stages import convert_gguf, quantize_gguf

import numpy as np
import pytest
import torch
from conftest import Workspace, make_prepared
from gguf import GGUFReader, GGUFWriter
from transformers import PreTrainedModel

LINEAR = "model.layers.0.mlp.up_proj"


def table_of(tensors: dict[str, dict[str, tuple[int, float]]], other: int = 0) -> fit.Table:
    costs = {name: {type_: fit.Cost(*cost) for type_, cost in types.items()} for name, types in tensors.items()}
    return fit.Table(costs, other, header=0, weights=100)


def random_table(seed: int) -> fit.Table:
    """200 tensors of several widths, whose sensitivity spans four orders of magnitude."""
    chance = random.Random(seed)
    types = {"Q2_K": 26, "Q3_K": 34, "Q4_K": 45, "Q6_K": 66, "Q8_0": 85}
    tensors = {}
    for name in map(str, range(200)):
        width, weight = chance.choice([1, 2, 5]), 10 ** chance.uniform(-4, 0)
        tensors[name] = {
            type_: (width * size, weight * 4 ** (-size / 10) * chance.uniform(0.7, 1.4))
            for type_, size in types.items()
        }
    return table_of(tensors)


def total(table: fit.Table, chosen: dict[str, str]) -> int:
    return sum(table.tensors[name][type_].size for name, type_ in chosen.items())


# The choice


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_choice_is_nearly_the_best_there_can_be(seed, share):
    table = random_table(seed)
    least, largest = (
        sum(pick(cost.size for cost in types.values()) for types in table.tensors.values()) for pick in (min, max)
    )
    most = int(least + share * (largest - least))
    chosen = fit.choose(table, most)
    assert total(table, chosen) <= most
    # For any price of a byte this is a bound that no choice within the size can go below (Lagrange duality).
    bound = max(
        sum(min(cost.kl + price * cost.size for cost in types.values()) for types in table.tensors.values())
        - price * most
        for price in np.geomspace(1e-12, 1e-1, 400)
    )
    assert bound <= fit.predicted(table, chosen) <= 1.05 * bound


def test_the_least_and_the_most_room_have_one_choice_each():
    table = random_table(0)
    for pick, type_ in ((min, "Q2_K"), (max, "Q8_0")):
        room = sum(pick(cost.size for cost in types.values()) for types in table.tensors.values())
        assert set(fit.choose(table, room).values()) == {type_}


@pytest.mark.parametrize("name", ["fit-1bpw", "fit-9bpw", "fit-50MB", "fit-0.03GB", "fit-2GB"])
def test_an_impossible_size_is_refused_and_the_sizes_that_it_names_can_be_made(name):
    costs = {"Q4_K": fit.Cost(45_000_001, 0.2), "Q8_0": fit.Cost(85_000_001, 0.1)}
    table = fit.Table({"a": costs}, other=20_000_000, header=1000, weights=100_000_000)
    with pytest.raises(Refusal, match=f"{name} cannot be made; this model's sizes are from") as refusal:
        fit.budget(table, name)
    least, most, unit = re.search(r"from (\S+) to (\S+) (bpw|MB|GB)", str(refusal.value)).groups()
    assert fit.choose(table, fit.budget(table, f"fit-{least}{unit}")) == {"a": "Q4_K"}
    assert fit.choose(table, fit.budget(table, f"fit-{most}{unit}")) == {"a": "Q8_0"}


# The prediction


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Workspace:
    """A workspace whose merged model is the tiny one, with prepared rows."""
    changes = {"gguf.imatrix": True, "gguf.imatrix_rows": 16, "gguf.sensitivity": True}
    workspace = make_prepared(tmp_path_factory.mktemp("fit"), tiny_model, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        shutil.copytree("tiny", "models/merged")
        shutil.copy(Path("models/base") / BASE_RECORD, "models/merged")
    return workspace


@pytest.fixture(scope="module")
def rows(place) -> list[Encoded]:
    folder = place.path / "data/prepared"
    return list(encode_rows(evenly("train", 12, folder), load_chat(place.path / "models/merged"), 256))


def answers_logprobs(model: PreTrainedModel, rows: list[Encoded]) -> torch.Tensor:
    """(tokens, vocabulary) log-probabilities at the supervised tokens."""
    found = []
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor([list(row.input_ids)])).logits[0, :-1]
            found.append(logits[[label != IGNORED for label in row.labels[1:]]].log_softmax(-1))
    return torch.cat(found)


@pytest.mark.parametrize("name", [LINEAR, "model.layers.1.self_attn.q_proj", "model.embed_tokens"])
def test_the_divergence_of_small_errors_is_predicted(place, rows, name):
    folder = place.path / "models/merged"
    found = sensitivity.measure(load_plain(folder, torch.float32), rows)
    model = load_plain(folder, torch.float32)
    before, weight = answers_logprobs(model, rows), model.get_submodule(name).weight.data
    error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.02 * weight.std()
    weight += error
    after = answers_logprobs(model, rows)
    divergence = (before.exp() * (before - after)).sum(-1).mean().item()

    uses = [found[name], found["lm_head"]] if name == "model.embed_tokens" else [found[name]]  # the tied table
    squares = error.square().numpy()
    predicted = sum(float((squares @ use.columns * (1 if use.rows is None else use.rows)).sum()) / 2 for use in uses)
    assert divergence / 1.6 < predicted < divergence * 1.6


# The stages


def run(place: Workspace, monkeypatch, stage, *arguments: str) -> None:
    monkeypatch.chdir(place.path)
    monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def test_a_file_of_a_size_has_the_types_that_its_table_lists(place, monkeypatch):
    run(place, monkeypatch, convert_gguf)
    table = fit.read_table(Path("models/bf16") / fit.TABLE)
    assert set(table.tensors["blk.0.ffn_up.weight"]) == {"IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}  # 64 wide
    for types in table.tensors.values():
        assert types["Q8_0"].kl < types["Q5_1"].kl < types["IQ4_NL"].kl
    for name in ("fit-4MB", "fit-6.5bpw"):
        run(place, monkeypatch, quantize_gguf, "--type", name)
        gguf = place.path / "models" / name / "model.gguf"
        tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
        with (gguf.parent / fit.CHOICE).open() as lines:
            chosen = {line["tensor"]: line["type"] for line in csv.DictReader(lines)}
        assert {tensor: tensors[tensor].tensor_type.name for tensor in chosen} == chosen
        bits = 8 * sum(tensor.n_bytes for tensor in tensors.values()) / sum(t.n_elements for t in tensors.values())
        assert gguf.stat().st_size <= 4e6 if name == "fit-4MB" else 6 < bits <= 6.5
    assert len(set(chosen.values())) > 1
    assert file.read(gguf).file_type in set(fit.FILE_TYPES.values())


def test_a_size_without_sensitivities_is_refused(monkeypatch, tmp_path):
    (tmp_path / "models/bf16").mkdir(parents=True)
    (tmp_path / "models/bf16" / BASE_RECORD).write_text("{}")
    writer = GGUFWriter(tmp_path / "models/bf16/model.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Refusal, match=r"gguf\.sensitivity to true"):
        run(Workspace(tmp_path), monkeypatch, quantize_gguf, "--type", "fit-3MB")
