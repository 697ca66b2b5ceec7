"""The model card in the hub's format: what the served files are, what they were made from, and how good they are."""

import hashlib
from pathlib import Path

from qlora.recipe.artifacts import VLLM_TYPES
from qlora.recipe.schema import EMBEDDED_SOURCE, Params


def render(params: Params, base: dict, data: dict, sections: list[str]) -> str:
    """The card.

    Args:
        base: models/base/base.json.
        data: data/prepared/report.json.
        sections: Markdown of what was measured: metrics of every artifact, gates.
    """
    from huggingface_hub import ModelCardData  # takes a second

    parts = params.data.parts
    on_hub = [part.source for part in parts if not part.is_local] or None
    model_id = EMBEDDED_SOURCE if params.model.is_embedded else params.model.id
    header = ModelCardData(
        base_model=None if params.model.is_local else model_id,
        base_model_relation="quantized",
        license=base["licence"],
        datasets=on_hub,
        tags=["qlora", "gguf", params.data.task],
    )
    rows = hashlib.sha256(Path("data/prepared/train.jsonl").read_bytes()).hexdigest()
    trained_on = " and ".join(f"{part.source}{f' at {part.revision}' if part.revision else ''}" for part in parts)
    ggufs = [name for name in params.evaluate.artifacts if name in params.gguf.types] or params.gguf.types
    vllm = [name for name in params.evaluate.artifacts if name in VLLM_TYPES]
    files = [*(f"models/{name}/model.gguf" for name in ggufs), *(f"models/{name}" for name in vllm)]
    return "\n".join(
        [
            f"---\n{header}\n---",
            f"# {params.model.id}, fine-tuned on {params.data.name}",
            "",
            f"- base model: {params.model.id}, revision {params.model.revision or 'of the files in models/base'}",
            f"- licence of the base model: {base['licence'] or 'not named by its files: look it up before you share'}",
            f"- training rows: {data['rows']['train']:,} of {trained_on} (SHA-256 of the prepared rows: {rows})",
            f"- files: {', '.join(files)}",
            "",
            "## Run it",
            "",
            "```bash",
            f"make pull-model TYPE={ggufs[-1]}   # in the repository, at this model's tag or commit (REV=...)",
            f"llama-server --model served/{ggufs[-1]}/model.gguf --jinja",
            *(f"make pull-model TYPE={name} && vllm serve served/{name}" for name in vllm),
            "```",
            "",
            "The chat template is in the files. The system prompt of training: "
            + (f"`{params.data.system_prompt}`" if params.data.system_prompt else "none")
            + ".",
            "",
            *sections,
            "## Parameters",
            "",
            "| parameter | value |",
            "|---|---|",
            *(
                f"| {section}.{name} | {value} |"
                for section in ("quantization", "lora", "train", "merge")
                for name, value in getattr(params, section)
            ),
            "",
        ]
    )
