"""Unsloth's recipe, which train_speed runs with the interpreter of an environment that has Unsloth.

    unsloth-env/bin/python -m benchmarks.unsloth_recipe < JOB

What its notebooks do, with packing: 4-bit weights, no dropout, its own checkpointing, 8-bit AdamW. JOB is what
`train_speed.unsloth` writes; the last line of the output is the figures of the run in JSON.
"""

import json
import os
import sys
import tempfile
from unittest.mock import patch

generated = tempfile.TemporaryDirectory(prefix="unsloth-")
os.environ["UNSLOTH_COMPILE_LOCATION"] = generated.name  # of the code that it writes; by default where one stands
os.environ["HF_HUB_OFFLINE"] = "1"  # it counts on the hub how often it is used

import unsloth  # noqa: E402, I001 - before transformers, trl and peft, parts of which it replaces
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedConfig  # noqa: E402
from trl import SFTTrainer  # noqa: E402
from unsloth.utils.attention_dispatch import select_attention_backend  # noqa: E402

from benchmarks.recipe import Clock, blank_tokenizer, figures, random_model, settings  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from qlora.training import packing  # noqa: E402
from qlora.rows.chat import Encoded  # noqa: E402


def load(config: PreTrainedConfig, adapter: dict, pack_tokens: int) -> PeftModel:
    """The model as Unsloth prepares it, around random weights instead of a folder's.

    Between its patches of transformers' classes and of the model it asks transformers to read the weights; there, and
    only there, they are made up. Its folder holds the configuration and the tokenizer.
    """
    config.max_position_embeddings = max(config.max_position_embeddings, pack_tokens)  # or it would rescale rotations

    def from_pretrained(*_, attn_implementation: str, **__):
        return random_model(config, attn_implementation, torch.device("cuda"))

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(AutoModelForCausalLM, "from_pretrained", from_pretrained),
    ):
        config.save_pretrained(folder)
        blank_tokenizer().save_pretrained(folder)
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            folder, max_seq_length=pack_tokens, dtype=torch.bfloat16, load_in_4bit=True, use_exact_model_name=True
        )
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        lora_alpha=2 * adapter["r"],
        lora_dropout=0.0,
        use_gradient_checkpointing="unsloth",
        random_state=0,
        **adapter,
    )


def check_patched(model: PeftModel) -> str:
    """Refuse to measure what is not Unsloth's; say how many layers run its fused products, and its attention."""
    layers = model.get_base_model().model.layers
    attention = [layer.self_attn for layer in layers]
    if any(not type(module).forward.__module__.startswith("unsloth") for module in attention):
        sys.exit("error: Unsloth did not replace the attention of this model: its versions do not fit one another")
    fused = {
        "QKV": sum(module.apply_qkv.__module__.startswith("unsloth.kernels") for module in attention),
        "O": sum(module.apply_o.__module__.startswith("unsloth.kernels") for module in attention),
        "MLP": sum(layer.mlp.forward.__module__.startswith("unsloth.kernels") for layer in layers),
    }
    counts = ", ".join(f"{count} {kind}" for kind, count in fused.items())
    return f"{len(layers)} layers, fused: {counts}; attention: {select_attention_backend(use_varlen=True)}"


def main() -> None:
    job = json.load(sys.stdin)
    torch.cuda.set_per_process_memory_fraction(job["capacity"] / torch.cuda.mem_get_info()[1])
    steps = job["steps"]
    rows = [Encoded(*row) for row in job["rows"]]
    packs = [pack for step in steps for pack in step]
    pack_tokens = max(sum(len(rows[row].input_ids) for row in pack) for pack in packs)
    model = load(*SHAPES[job["shape"]], pack_tokens)
    print(f"unsloth {unsloth.__version__}, torch {torch.__version__}: {check_patched(model)}", flush=True)
    tokenizer = blank_tokenizer()
    clock = Clock(profile=False)
    trainer = SFTTrainer(
        model,
        settings(1, len(steps[0]), len(steps), optim="adamw_8bit", packing=True),
        train_dataset=Dataset.from_dict(packing.pack_dataset(packs, rows, tokenizer.pad_token_id)[:]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    if "packed_seq_lengths" not in trainer.data_collator([trainer.train_dataset[0]]):
        sys.exit("error: Unsloth would not keep the rows of a pack apart; it may say why above")
    trainer.train()
    tokens = [sum(len(rows[row].input_ids) for pack in step for row in pack) for step in steps]
    print(json.dumps(figures(trainer, clock, tokens)))


if __name__ == "__main__":
    main()
