"""fetch-base: make the base model's files available and record exactly which they are.

Writes models/base/base.json. The weights stay where they are: in the hub's cache, a folder, or a per-user cache. What
can be checked without weights is checked before they are fetched.
"""

from qlora.gguf import parity
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.load import load_params
from qlora.runtime.console import run_stage, summary
from qlora.runtime.outputs import new_folder, write_json
from qlora.source import base_model, hub, tokenizer
from qlora.weights import architecture
from qlora.weights.files import weights_bytes


def main() -> None:
    params = load_params()
    model, data = params.model_of_task, params.data
    for part in data.parts:
        if not part.is_local:  # prepare-dataset would refuse this, after gigabytes of weights were fetched
            hub.check_pinned("dataset", part.source, part.revision)

    # Checks that need no weights
    folder = base_model.fetch_settings(model)
    skeleton = architecture.skeleton(folder)
    architecture.check(skeleton)
    architecture.check_length(skeleton.config, params.train, params.evaluate)
    chat, changes = tokenizer.settled(folder, model)
    tokenizer.check_system_prompt(chat, data.system_prompt)
    compared = parity.check_before_training(chat, folder, model)

    # The weights
    folder = base_model.fetch(model)
    record = base_model.describe(model, folder)
    record["chat_template"] = tokenizer.recorded_template(model)
    record["tokenizer"] = {"settled": changes, "differing": compared.differing}
    with new_folder(ARTIFACTS["base"].folder) as output:
        write_json(output / BASE_RECORD, record)
    summary(
        "fetch-base",
        {
            "model": model.id,
            "revision": model.revision or "-",
            "files": len(record["files"]),
            "weights": f"{weights_bytes(folder) / 1e9:.2f} GB",
            "chat template": "; ".join(changes) or "as it is",
            "same ids in llama.cpp": compared,
        },
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
