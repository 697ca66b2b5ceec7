"""How fast this project trains on this GPU, next to the recipe of the articles it grew from, on the same rows.

    python -m benchmarks.train_speed --shape llama3-8b --rows short --capacity-gb 24

Builds a model of the given shape with random weights, in NF4 on the GPU (nothing is downloaded, nothing is written to
disk), trains a few steps with each recipe and prints a table: tokens per second (of real tokens, not of padding),
seconds a step, peak memory and the loss of each step. Exits with status 1 if the losses of two recipes disagree.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from trl import SFTConfig, SFTTrainer

from stages import fast_path, packing
from stages.chat import IGNORED, Encoded
from stages.models import quantization_config
from stages.params import Quantization

WARM_UP = 2  # steps that compile and allocate, and are not timed
TOLERANCE = 0.02  # between the losses of two recipes at the same step: bf16 in another order of summation

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, tuple[PreTrainedConfig, dict]] = {
    "llama3-8b": (
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "mistral-7b": (
        MistralConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            sliding_window=4096,
        ),
        {"r": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]},
    ),
    "llama2-13b": (
        LlamaConfig(
            vocab_size=32000,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
        ),
        {"r": 16, "target_modules": ALL},
    ),
    "smollm2-135m": (
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        {"r": 16, "target_modules": ALL},
    ),
}


def random_model(config: PreTrainedConfig, attention: str, device: torch.device) -> AutoModelForCausalLM:
    """A model of this shape on `device`, its linear layers in double-quantized NF4, the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    quantizer = Bnb4BitHfQuantizer(quantization_config(Quantization()), pre_quantized=False)
    with init_empty_weights():  # buffers are real
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    quantizer.preprocess_model(model, device_map={"": device})
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            value = value.fill_(1) if value.dim() == 1 else value.normal_(0, 0.02, generator=generator)
            if isinstance(module, Linear4bit):
                quantized = Params4bit(value, requires_grad=False, quant_type="nf4", module=module)
                module.weight = quantized._quantize(device)
            else:
                setattr(module, name, torch.nn.Parameter(value))
    model.tie_weights()
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    return model.to(device)


def random_rows(kind: str, count: int, vocabulary: int) -> list[Encoded]:
    """Rows of random tokens whose last quarter is to be learned: `full` has 1,024 tokens each, `short` what
    text-to-SQL has (log-normal, 145 tokens on average)."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = 1024 if kind == "full" else max(40, min(1024, int(draw.lognormvariate(4.9, 0.45))))
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        masked = length * 3 // 4
        rows.append(Encoded(ids, [IGNORED] * masked + ids[masked:]))
    return rows


class Clock(TrainerCallback):
    """Seconds and peak memory of each step."""

    def __init__(self):
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def on_step_begin(self, *args, **kwargs):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)
        self.peaks.append(torch.cuda.max_memory_allocated())


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """What the trainer asks for to know the padding token; the rows are token ids already."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")


def settings(micro_batch: int, accumulation: int, steps: int, **others) -> SFTConfig:
    return SFTConfig(
        output_dir="results/benchmark",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        train_sampling_strategy="sequential",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        learning_rate=2e-4,
        bf16=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # its check would wait for the GPU after each micro-batch
        save_strategy="no",
        report_to="none",
        **others,
    )


def lora(dropout: float, **shape) -> LoraConfig:
    return LoraConfig(lora_alpha=2 * shape["r"], lora_dropout=dropout, task_type="CAUSAL_LM", **shape)


def article_trainer(shape: str, rows: list[Encoded], steps: list[list[list[int]]], clock: Clock) -> SFTTrainer:
    """The articles' recipe: k-bit preparation, dropout 0.05, checkpointing, 8-bit paged AdamW, padded rows, 4 by 4."""
    config, adapter = SHAPES[shape]
    model = prepare_model_for_kbit_training(random_model(config, "sdpa", torch.device("cuda")))
    order = [row for step in steps for pack in step for row in pack]
    dataset = Dataset.from_list([{"input_ids": rows[row].input_ids, "labels": rows[row].labels} for row in order])
    return SFTTrainer(
        model,
        settings(4, len(order) // len(steps) // 4, len(steps), optim="paged_adamw_8bit", gradient_checkpointing=True),
        train_dataset=dataset,
        processing_class=blank_tokenizer(),
        peft_config=lora(0.05, **adapter),
        callbacks=[clock],
    )


def project_trainer(
    shape: str, rows: list[Encoded], steps: list[list[list[int]]], clock: Clock, recomputed: int,
    optimizer: str = "adamw_torch_fused", dynamic: bool | None = None,
) -> SFTTrainer:  # fmt: skip
    """This project's recipe: packs, flex_attention, compiled layers, fused AdamW."""
    config, adapter = SHAPES[shape]
    device = torch.device("cuda")
    tokenizer = blank_tokenizer()
    trainer = SFTTrainer(
        random_model(config, fast_path.attention_implementation(device), device),
        settings(1, len(steps[0]), len(steps), optim=optimizer, gradient_checkpointing=False, padding_free=True,
                 pad_to_multiple_of=fast_path.PACK_MULTIPLE),
        train_dataset=packing.pack_dataset([pack for step in steps for pack in step], rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=lora(0.0, **adapter),
        callbacks=[clock],
    )  # fmt: skip
    fast_path.speed_up(trainer.model, recomputed_layers=recomputed, dynamic=dynamic)
    return trainer


def measure(name: str, make, rows: list[Encoded], steps: list[list[list[int]]]) -> dict:
    """Train `steps` with the trainer that `make(clock)` builds."""
    clock = Clock()
    trainer = make(clock)
    torch.cuda.synchronize()
    loaded = torch.cuda.memory_allocated()
    trainer.train()
    tokens = [sum(len(rows[row].input_ids) for pack in step for row in pack) for step in steps]
    timed = slice(WARM_UP, None)
    result = {
        "recipe": name,
        "tokens_per_second": round(sum(tokens[timed]) / sum(clock.seconds[timed])),
        "step_seconds": round(statistics.median(clock.seconds[timed]), 3),
        "first_steps_seconds": [round(seconds, 1) for seconds in clock.seconds[:WARM_UP]],
        "loaded_gb": round(loaded / 1e9, 2),
        "peak_gb": round(max(clock.peaks) / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    return result
