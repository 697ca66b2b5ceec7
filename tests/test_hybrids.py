"""Models with recurrent layers or convolutions beside attention: no row of a batch or a step reaches another one."""

import csv
from pathlib import Path

from qlora.recipe.load import load_params
from qlora.recipe.schema import Model, Quantization
from qlora.rows.chat import load_chat
from qlora.rows.prepared import encode_rows, first
from qlora.runtime.outputs import write_json
from qlora.scoring import transformers_run
from qlora.source import base_model
from qlora.training import layout, packing
from qlora.weights import loading
from qlora.weights.architecture import mixing_layers, skeleton
from stages import merge, prepare_dataset, quantize_load_train

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconH1Config,
    GraniteMoeHybridConfig,
    Lfm2Config,
    Qwen3_5TextConfig,
)

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
HYBRIDS = {
    "qwen3_5": Qwen3_5TextConfig(**SHAPE, **DELTA, layer_types=["linear_attention", "full_attention"] * 2),
    "lfm2": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False),
    "granite_4_h": GraniteMoeHybridConfig(
        **SHAPE,
        **MAMBA,
        layer_types=["mamba", "attention"] * 2,
        num_local_experts=0,
        shared_intermediate_size=128,
        position_embedding_type="nope",
    ),
    "falcon_h1": FalconH1Config(**SHAPE, **MAMBA | {"mamba_d_ssm": 128}),
}


SLOW = {"granite_4_h", "falcon_h1"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in HYBRIDS])
def hybrid(request, workspace, monkeypatch):
    """The workspace with a tiny hybrid and prepared rows."""
    monkeypatch.chdir(workspace.path)
    config, tokenizer = HYBRIDS[request.param], AutoTokenizer.from_pretrained("tiny")
    config.vocab_size, config.pad_token_id = len(tokenizer), None
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained("tiny")
    model = Model(id="./tiny")
    write_json(Path("models/base/base.json"), base_model.describe(model, base_model.fetch(model)))
    prepare_dataset.main()
    return workspace


def test_the_loss_of_a_step_is_that_of_its_rows_alone(hybrid, capsys):
    params, base = load_params(), Path("tiny")
    rows = list(encode_rows(first("train", 16), load_chat(base), params.train.max_length))
    steps = packing.plan([len(row.input_ids) for row in rows], params.train)
    together = [rows[at] for pack in steps.steps[0] for at in pack]
    assert len(together) == 4
    model = loading.load_base(base, Quantization(compute_dtype="float32"))
    alone = sum(score.nll for row in together for score in transformers_run.score(model, [row], lambda count: None))
    expected = alone / sum(row.supervised for row in together)

    quantize_load_train.main()
    with Path("results/train/log.csv").open() as log:
        loss = float(next(csv.DictReader(log))["loss"])
    assert loss == pytest.approx(expected, abs=2e-3)
    said = capsys.readouterr().out
    assert f"one row at a time, because {mixing_layers(model)} would mix rows" in said
    merge.main()  # compares its logits with the adapter's


def test_rows_of_a_batch_score_and_answer_as_alone(hybrid):
    params, chat = load_params(), load_chat(Path("tiny"))
    rows = list(encode_rows(first("train", 6), chat, params.train.max_length))
    model = loading.load_plain(Path("tiny"), torch.float32)

    def scores(rows):
        return [score.nll for score in transformers_run.score(model, rows, lambda count: None)]

    def answers(rows):
        prompts = [row.input_ids[: row.prompt_length] for row in rows]
        return transformers_run.generate(model, prompts, chat.stops, chat.pad, 8, 8, lambda count: None)[0]

    assert scores(rows) == pytest.approx([nll for row in rows for nll in scores([row])], rel=1e-4)
    assert answers(rows) == [answer for row in rows for answer in answers([row])]


def test_the_plan_is_of_plain_layers_and_single_rows(hybrid):
    shape = layout.shape_of(skeleton(Path("tiny")), load_params().lora, Quantization())
    assert shape.alone
    assert shape.plain
    lengths = [30, 50, 40, 20, 10, 60]
    steps = packing.plan(lengths, load_params().train, None, 2, alone=True)
    assert {len(pack) for pack in steps.packs} <= {0, 1}
    assert len({len(step) for step in steps.steps}) == 1
