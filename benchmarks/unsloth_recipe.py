"""Unsloth's recipe, run by train_speed with the Python of an environment that has Unsloth.

    unsloth-env/bin/python -m benchmarks.unsloth_recipe < JOB

The recipe is that of Unsloth's notebooks, with packing: 4-bit weights, no dropout, Unsloth's activation checkpointing,
8-bit AdamW. `train_speed.unsloth` writes JOB; the last line of the output holds the run's figures as JSON. Imports
nothing that Unsloth's environment lacks.
"""

import json
import os
import sys
import tempfile
from unittest.mock import patch

generated = tempfile.TemporaryDirectory(prefix="unsloth-")
os.environ["UNSLOTH_COMPILE_LOCATION"] = generated.name  # generated code; default: here
os.environ["HF_HUB_OFFLINE"] = "1"  # Unsloth reports each use to the hub

import unsloth  # noqa: E402, I001 - before transformers, trl and peft, which it patches
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedConfig  # noqa: E402
from trl import SFTTrainer  # noqa: E402
from unsloth.utils.attention_dispatch import select_attention_backend  # noqa: E402

from benchmarks.parts.clock import Clock, figures  # noqa: E402
from benchmarks.parts.nf4_model import random_model  # noqa: E402
from benchmarks.parts.settings import blank_tokenizer, settings  # noqa: E402
from benchmarks.parts.shapes import SHAPES  # noqa: E402
from qlora.rows.loss_mask import Encoded  # noqa: E402
from qlora.training import packing  # noqa: E402


def load(config: PreTrainedConfig, adapter: dict, pack_tokens: int) -> PeftModel:
    """The model as Unsloth prepares it, with random weights.

    Unsloth patches transformers' classes, lets transformers read the weights, and then patches the model. Only the
    reading is replaced; the folder holds the configuration and the tokenizer.
    """
    config.max_position_embeddings = max(config.max_position_embeddings, pack_tokens)  # or Unsloth would rescale RoPE

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
    """Exit unless Unsloth's attention runs; return how many layers run its fused products, and the attention's name."""
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
    rows = [Encoded(*row) for row in job["rows"]]
    steps = packing.Steps(job["steps"], [len(row.input_ids) for row in rows])
    model = load(*SHAPES[job["shape"]], max(steps.pack_tokens))
    print(f"unsloth {unsloth.__version__}, torch {torch.__version__}: {check_patched(model)}", flush=True)
    tokenizer = blank_tokenizer()
    clock = Clock(profile=False)
    trainer = SFTTrainer(
        model,
        settings(1, steps.packs_a_step, len(steps), optim="adamw_8bit", packing=True),
        train_dataset=Dataset.from_dict(packing.pack_dataset(steps.packs, rows, tokenizer.pad_token_id)[:]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    if "packed_seq_lengths" not in trainer.data_collator([trainer.train_dataset[0]]):
        sys.exit("error: Unsloth would not keep the rows of a pack apart; it may say why above")
    trainer.train()
    print(json.dumps(figures(trainer, clock, steps.tokens)))


if __name__ == "__main__":
    main()
