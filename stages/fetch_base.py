"""fetch-base: make the base model's files available and record exactly which they are.

Writes models/base/base.json. The weights stay where they are: in the hub's cache, a folder, or a per-user cache.
"""

from qlora.gguf import parity
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model, hub
from qlora.weights import architecture
from qlora.weights.files import weights_bytes


def main() -> None:
    params = load_params()
    model, data = params.model, params.data
    if not data.is_local:  # prepare-dataset would refuse this, after gigabytes of weights were fetched
        hub.check_pinned("dataset", data.source, data.revision)
    folder = base_model.fetch(model)
    architecture.check(architecture.skeleton(folder))
    parity.check_before_training(folder)  # a tokenizer that llama.cpp splits otherwise shows now, not after hours
    record = base_model.describe(model, folder)
    with new_folder(ARTIFACTS["base"].folder) as output:
        write_json(output / BASE_RECORD, record)
    summary(
        "fetch-base",
        {
            "model": model.id,
            "revision": model.revision or "-",
            "files": len(record["files"]),
            "weights": f"{weights_bytes(folder) / 1e9:.2f} GB",
        },
    )


if __name__ == "__main__":
    run_stage(main)
