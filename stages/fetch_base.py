"""fetch-base: make the base model's files available and record exactly which they are.

Writes models/base/base.json. The weights stay where they are (the hub's cache, a folder, a per-user cache).
"""

from pathlib import Path

from qlora.gguf import parity
from qlora.recipe.params import load_params
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model, hub
from qlora.weights import architecture


def main() -> None:
    params = load_params()
    model, data = params.model, params.data
    if not data.is_local:  # what prepare-dataset would refuse, before gigabytes of weights are fetched
        hub.check_pinned("dataset", data.source, data.revision)
    folder = base_model.fetch(model)
    architecture.check(architecture.skeleton(folder))
    # Found here, and not after hours of training: a tokenizer that llama.cpp does not know, or splits otherwise.
    parity.check_before_training(folder)
    record = base_model.describe(model, folder)
    with new_folder(Path("models/base")) as output:
        write_json(output / base_model.RECORD, record)
    summary(
        "fetch-base",
        {
            "model": model.id,
            "revision": model.revision or "-",
            "files": len(record["files"]),
            "weights": f"{base_model.weights_bytes(folder) / 1e9:.2f} GB",
        },
    )


if __name__ == "__main__":
    run_stage(main)
