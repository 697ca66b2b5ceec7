"""plan: what a run of the current params.yaml will need: parameters, memory, tokens, time and disk.

Works before anything was run: reads the model's config.json, and the prepared rows if there are any of these params.
Fetches no weights (except for the embedded model, which comes as one package) and writes nothing.
"""

from qlora.raw_rows import sources
from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.rejected import Rejected
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data, Params, Train
from qlora.rows.prepared import PREPARED, made_from, rows_of, split_file
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.inputs import made_by, read_json
from qlora.source import base_model
from qlora.training import layout, packing
from qlora.training.device import Device, planned_devices
from qlora.training.memory import Shape
from tools import sizes

import torch

CHARACTERS = 3.5  # a token: the built-in text-to-SQL rows with SmolLM2's tokenizer
CARDS = (8, 12, 16, 24, 48, 80)  # GB
CARD_FREE = 0.94  # of a card's memory, when nothing else uses it
CARD_RATE = 150e12  # operations a second on large matrix products: the slower, the less do long packs help


def main() -> None:
    params = load_params()
    if params.model.is_embedded:
        base_model.fetch(params.model)
    model = sizes.find_model(params.model)
    shape = sizes.model_shape(params, model)
    lengths, source = row_lengths(params)
    step_tokens = packing.plan(lengths, params.train).tokens
    in_4_bits = f"{shape.quantized / shape.parameters:.0%}" if shape.in_4_bits else "none"

    summary(
        params.model.id,
        {
            "parameters": f"{shape.parameters:,}, {in_4_bits} of them in 4 bits",
            "trainable": f"{shape.trainable:,} ({shape.trainable / shape.parameters:.2%})",
            "rows": f"{len(lengths):,} for training, {sum(lengths):,} tokens, the longest {max(lengths):,} ({source})",
        },
    )
    try:
        here = planned_devices(params.train)
        plan = layout.lay_out(shape, lengths, params.train, here)
        summary(f"training on {here.name}", layout.describe(shape, plan, step_tokens, here))
    except Refusal as refusal:
        summary("training here", {"does not fit": refusal})
    if not torch.cuda.is_available():
        count = cards(params.train)
        title = "training on a GPU" if count == 1 else f"training on {count} GPUs ({params.train.parallel}), on each"
        summary(title, {f"{size} GB": on_card(shape, lengths, params.train, size) for size in CARDS})
    disk = {"fetch-base": model.to_fetch} | sizes.written(params, model, shape)
    summary("disk", {stage: sizes.gb(size) for stage, size in (disk | {"whole": sum(disk.values())}).items()})


def row_lengths(params: Params) -> tuple[list[int], str]:
    """Tokens of each training row, and how that is known.

    Raises:
        Refusal: if the rows are in a file, and it cannot be read or none of them can be used.
    """
    data, longest = params.data, params.train.max_length
    stale = ""
    if (PREPARED / "report.json").is_file():
        report = read_json(PREPARED / "report.json", "prepare-dataset")
        if report.get("made_from") == made_from(params.model, data, params.train):
            with made_by("prepare-dataset", split_file("train")):
                return [min(row["tokens"], longest) for row in rows_of("train")], "as prepared"
        stale = f"; the rows in {PREPARED} are those of other params"
    if data.is_local:
        lengths = sorted(estimate(data, longest))
        if not lengths:
            raise Refusal(f"{data.name}: no row can be used; `dvc repro prepare-dataset` says why of each")
        wanted = min(len(lengths), data.train_rows or round(len(lengths) * share_for_training(data)))
        # Evenly spaced, from short to long, the longest among them.
        chosen = [lengths[(at + 1) * len(lengths) // wanted - 1] for at in range(wanted)]
        return chosen, f"an estimate from {data.name}{stale}; exact after `dvc repro prepare-dataset`"
    count = data.train_rows or 1000
    return [longest // 4] * (count - 1) + [longest], (
        f"a guess: {data.name} is read by `dvc repro prepare-dataset`, after which this is exact{stale}"
    )


def estimate(data: Data, longest: int) -> list[int]:
    """Estimated tokens of each usable row of a local file."""
    lengths = []
    for part in data.parts:
        source = sources.open_source(part, data)
        for _, row in source.rows:
            try:
                messages = conversation(row, source.layout, data)
            except Rejected:
                continue
            lengths.append(round(sum(len(message["content"]) for message in messages) / CHARACTERS) + 1)
    return [min(length, longest) for length in lengths if length <= longest or data.overlong == "truncate"]


def share_for_training(data: Data) -> float:
    return 1 - data.validation_fraction - (0 if data.test_source else data.test_fraction)


def cards(train: Train) -> int:
    """GPUs to plan for on a machine without: train.devices, or as few as make sense."""
    return train.devices if train.devices != "auto" else 2 if train.parallel == "fsdp" else 1


def on_card(shape: Shape, lengths: list[int], train: Train, size: int) -> str:
    """The layout of a run on cards of `size` GB, for people."""
    settings = train.model_copy(update={"compile": True}) if train.compile == "auto" else train
    free, count = int(size * 1e9 * CARD_FREE), cards(train)
    card = Device(f"{size} GB", True, free, CARD_RATE, count, count > 1 and train.parallel == "fsdp")
    try:
        plan = layout.lay_out(shape, lengths, settings, card)
    except Refusal:
        return "does not fit"
    return f"{plan.peak / 1e9:.1f} GB; {layout.packs(shape, plan)}"


if __name__ == "__main__":
    run_stage(main, __doc__)
