"""The memory plan: predicted peaks against measured ones, and the layouts that it chooses."""

import itertools
from dataclasses import replace

from qlora.recipe.load import load_params
from qlora.recipe.schema import Train
from qlora.runtime.console import Refusal
from qlora.training import layout, memory
from qlora.training.device import Device

import pytest
import torch
from repository import ROOT
from trainers import SHAPES
from transformers import AutoModelForCausalLM

GB = 10**9
H200 = 790e12  # operations a second


@pytest.fixture(scope="module")
def train():
    return load_params(ROOT / "recipes/llama3-8b-sql.yaml").train


def card(size: float) -> Device:
    return Device("a card", True, int(size * GB), H200)


def with_memory(train: Train, memory: str) -> Train:
    return train.model_copy(update={"memory": memory})


def full(steps: int) -> list[int]:
    """Lengths of the rows of so many steps of 16 rows of 1,024 tokens."""
    return [1024] * 16 * steps


@pytest.fixture(scope="module")
def shapes():
    result = {}
    for name, (config, adapter) in SHAPES.items():
        with torch.device("meta"):
            result[name] = memory.shape_of(AutoModelForCausalLM.from_config(config), **adapter)
    return result


def test_parameters_are_counted(shapes):
    assert shapes["llama3-8b"].parameters == 8_030_261_248
    assert shapes["llama3-8b"].trainable == 41_943_040
    assert shapes["smollm2-135m"].parameters == 134_515_008


@pytest.mark.parametrize(
    ("name", "pack_tokens", "recomputed_layers", "measured"),
    [
        ("llama3-8b", 4096, 0, 18.88),
        ("llama3-8b", 4096, 32, 8.02),
        ("llama3-8b", 2048, 32, 7.12),
        ("llama3-8b", 2048, 30, 7.25),
        ("llama3-8b", 1024, 32, 6.67),
        ("llama3-8b", 1024, 0, 9.39),
        ("llama3-8b", 2560, 0, 14.43),
        ("mistral-7b", 4096, 0, 17.63),
        ("mistral-7b", 2048, 32, 5.98),
        ("llama2-13b", 4096, 0, 28.52),
    ],
)
def test_predicted_peaks_are_within_a_tenth_of_the_measured(shapes, name, pack_tokens, recomputed_layers, measured):
    predicted = memory.predict(shapes[name], pack_tokens, recomputed_layers, "adamw").peak
    assert predicted == pytest.approx(measured * GB, rel=0.1)


@pytest.mark.parametrize(
    ("name", "pack_tokens", "recomputed_layers", "measured"),
    [
        ("llama3-8b", 2732, 0, 15.06),
        ("llama3-8b", 4096, 0, 19.04),
        ("llama3-8b", 2048, 32, 7.24),
        ("smollm2-135m", 2789, 0, 1.37),
    ],
)
def test_predicted_peaks_with_cuda_graphs_are_those_measured(shapes, name, pack_tokens, recomputed_layers, measured):
    predicted = memory.predict(shapes[name], pack_tokens, recomputed_layers, "adamw", captured=True).peak
    assert predicted == pytest.approx(measured * GB, rel=0.1)


@pytest.mark.parametrize(
    ("name", "pack_tokens", "measured"),
    [("llama3-8b", 4096, 8.11), ("llama3-8b", 16384, 14.56), ("mistral-7b", 616, 5.68)],
)
def test_predicted_peaks_of_plain_layers_are_those_measured(shapes, name, pack_tokens, measured):
    predicted = memory.predict(shapes[name], pack_tokens, 32, "adamw", compiled=False).peak
    assert predicted == pytest.approx(measured * GB, rel=0.1)


def test_the_predicted_peak_of_a_sharded_model_is_that_measured_on_two_gpus(shapes):
    predicted = memory.predict(shapes["llama3-8b"], 16384, 0, "adamw", shards=2).peak
    assert predicted == pytest.approx(55.46 * GB, rel=0.1)


def test_several_gpus_share_a_step(shapes, train):
    settings = train.model_copy(update={"micro_batch_tokens": 4096})
    for count in (1, 2, 4):
        device = replace(card(80), count=count)
        assert layout.lay_out(shapes["llama3-8b"], full(2), settings, device).pack_tokens == 4096
        assert layout.longest_pack(full(2), settings, 16384, count) == 16384 // count
    one, two = (layout.lay_out(shapes["llama3-8b"], full(300), train, replace(card(80), count=n)) for n in (1, 2))
    steps = [16384] * 6000
    assert layout.seconds(shapes["llama3-8b"], two, steps, replace(card(80), count=2)) < 0.6 * layout.seconds(
        shapes["llama3-8b"], one, steps, card(80)
    )


def test_with_ddp_only_a_failure_known_to_all_processes_leads_to_a_lighter_plan(shapes, train):
    tried = []

    def attempt(plan):
        tried.append(plan)
        if len(tried) == 1:
            raise layout.TooLarge
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        layout.run_fitted(attempt, shapes["llama3-8b"], full(300), train, replace(card(24), count=2))
    assert len(tried) == 2
    assert tried[1].peak < tried[0].peak


def test_more_memory_never_makes_a_run_slower(shapes, train):
    shape = shapes["llama3-8b"]
    before = float("inf")
    for capacity in (8, 10, 12, 16, 24, 40, 48, 80):
        plan = memory.choose(shape, card(capacity), with_memory(train, "auto"), 1024, 16384)
        assert plan.peak <= capacity * GB
        assert plan.pack_tokens >= 1024
        now = memory.seconds(shape, plan, 10**6, 10**6 // plan.pack_tokens, H200)
        assert now <= before
        before = now


def test_low_memory_profile(shapes, train):
    # 0.3 GB of it are for validation, which cannot use the memory of the graphs.
    assert memory.choose(shapes["llama3-8b"], card(80), with_memory(train, "low"), 1024, 16384).peak <= 7.35 * GB
    assert memory.choose(shapes["mistral-7b"], card(80), with_memory(train, "low"), 1024, 4096).peak <= 6.2 * GB


def test_high_memory_profile_recomputes_no_layer(shapes, train):
    plan = memory.choose(shapes["llama3-8b"], card(24), with_memory(train, "high"), 1024, 16384)
    assert (plan.recomputed_layers, plan.pack_tokens) == (0, 4096)


def test_a_pack_is_never_longer_than_a_step_nor_shorter_than_a_row(shapes, train):
    assert memory.choose(shapes["llama3-8b"], card(80), with_memory(train, "auto"), 300, 2300).pack_tokens == 2300
    assert memory.choose(shapes["llama3-8b"], card(12), with_memory(train, "auto"), 5000, 9000).pack_tokens >= 5000


def test_what_does_not_fit_is_refused_with_a_way_out(shapes, train):
    with pytest.raises(Refusal, match=r"6\.0 GB.*train\.max_length.* 1024 "):
        memory.choose(shapes["llama3-8b"], card(6), with_memory(train, "auto"), 1024, 16384)


# Layouts


def test_short_runs_are_not_compiled(shapes, train):
    shape = shapes["llama3-8b"]
    assert not layout.lay_out(shape, full(3), train, card(24)).compiled
    assert layout.lay_out(shape, full(300), train, card(24)).compiled


def test_python_bounds_the_speed_of_short_packs(shapes, train):
    """200 steps of 467 tokens took 112 seconds with plain layers. Compiled layers launch faster, which is worth their
    compilation for 200 such steps and not for 20."""
    shape, settings = shapes["mistral-7b"], train.model_copy(update={"batch_size": 4})
    plain = memory.predict(shape, 500, 32, "adamw", compiled=False)
    assert layout.seconds(shape, plain, [467] * 200, card(80)) == pytest.approx(112, rel=0.1)
    assert layout.lay_out(shape, [117] * 800, settings, card(80)).compiled
    assert not layout.lay_out(shape, [117] * 80, settings, card(80)).compiled


def test_train_compile_is_obeyed(shapes, train):
    always, never = (train.model_copy(update={"compile": value}) for value in (True, False))
    assert layout.lay_out(shapes["llama3-8b"], full(3), always, card(24)).compiled
    assert not layout.lay_out(shapes["llama3-8b"], full(300), never, card(24)).compiled
    with pytest.raises(Refusal, match=r"train\.compile"):
        layout.lay_out(shapes["llama3-8b"], [4096] * 16, never, card(8.7))


def test_a_run_that_fits_only_when_compiled_is_compiled(shapes, train):
    assert layout.lay_out(shapes["llama3-8b"], [4096] * 16, train, card(8.7)).compiled


def test_a_run_that_does_not_fit_steps_down_until_it_does(shapes, train):
    """The card has 15 GB, and the plan assumed 24."""
    tried = []

    def attempt(plan):
        tried.append(plan)
        if plan.peak > 15 * GB:
            raise torch.OutOfMemoryError
        return plan

    fitted = layout.run_fitted(attempt, shapes["llama3-8b"], full(300), train, card(24))
    assert fitted is tried[-1]
    assert len(tried) > 2
    assert all(lighter.peak < plan.peak for plan, lighter in itertools.pairwise(tried))
    assert fitted.peak > 12 * GB  # not lighter than necessary


@pytest.mark.parametrize("setting", ["auto", "low", "high"])
def test_a_run_that_never_fits_is_refused(shapes, train, setting):
    def attempt(plan):
        raise torch.OutOfMemoryError

    settings = with_memory(train, setting)
    with pytest.raises(Refusal, match=r"train\.max_length.* 1024 "):
        layout.run_fitted(attempt, shapes["llama3-8b"], full(300), settings, card(24))


def test_a_plan_counts_the_packs_that_rows_fill(shapes, train):
    """Three rows of 1,024 tokens fill 3,072 of at most 4,000."""
    settings = train.model_copy(update={"micro_batch_tokens": 4000})
    for size in (10, 24, 80):
        assert layout.lay_out(shapes["llama3-8b"], full(300), settings, card(size)).pack_tokens == 3072
    for size in (8, 12, 16, 24, 48):
        assert layout.lay_out(shapes["llama3-8b"], full(300), train, card(size)).pack_tokens % 1024 == 0


def test_a_cpu_has_its_own_layout(shapes, train):
    processor = Device("a CPU", False, 8 * GB, 1e11)
    plan = layout.lay_out(shapes["smollm2-135m"], [100, 1200], train, processor)
    assert (plan.pack_tokens, plan.recomputed_layers, plan.compiled) == (1200, 0, False)
    paged = train.model_copy(update={"optimizer": "paged_adamw_8bit"})
    with pytest.raises(Refusal, match=r"^train\.optimizer"):
        layout.lay_out(shapes["smollm2-135m"], [100], paged, processor)
