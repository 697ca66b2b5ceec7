"""How fast this project trains on this GPU, next to the recipe of the articles it grew from, on the same rows.

    python -m benchmarks.train_speed --shape llama3-8b --rows short --capacity-gb 24

Builds a model of the given shape with random weights, in NF4 on the GPU (nothing is downloaded, nothing is written to
disk), trains a few steps with each recipe and prints a table: tokens per second (of real tokens, not of padding),
seconds a step, peak memory and the loss of each step. Exits with status 1 if the losses of two recipes disagree.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
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

from stages import fast_path, memory_plan, packing
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
    torch.manual_seed(0)  # of the adapter
    return SFTTrainer(
        model,
        settings(4, len(order) // len(steps) // 4, len(steps), optim="paged_adamw_8bit", gradient_checkpointing=True),
        train_dataset=dataset,
        processing_class=blank_tokenizer(),
        peft_config=lora(0.05, **adapter),
        callbacks=[clock],
    )


def project_trainer(
    shape: str, rows: list[Encoded], steps: list[list[list[int]]], recomputed_layers: int, clock: Clock
) -> SFTTrainer:
    """This project's recipe: packs, flex_attention, compiled layers, fused AdamW."""
    config, adapter = SHAPES[shape]
    device = torch.device("cuda")
    tokenizer = blank_tokenizer()
    packs = [pack for step in steps for pack in step]
    model = random_model(config, fast_path.attention_implementation(device), device)
    torch.manual_seed(0)
    trainer = SFTTrainer(
        model,
        settings(
            1,
            len(steps[0]),
            len(steps),
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            padding_free=True,
            pad_to_multiple_of=fast_path.PACK_MULTIPLE,
        ),
        train_dataset=packing.pack_dataset(packs, rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=lora(0.0, **adapter),
        callbacks=[clock],
    )
    fast_path.speed_up(trainer.model, recomputed_layers)
    return trainer


def step_tokens(step: list[list[int]], lengths: list[int]) -> int:
    """Tokens of a step."""
    return sum(lengths[row] for pack in step for row in pack)


def measure(recipe: str, name: str, rows: list[Encoded], steps: list, recomputed_layers: int, share: float) -> dict:
    """Train `steps` with a recipe, in at most this `share` of the GPU's memory; the first WARM_UP steps are not timed.

    Meant to run in a process of its own: what one recipe leaves behind would count as the memory of the next.
    """
    torch.cuda.set_per_process_memory_fraction(share)
    clock = Clock()
    if recipe == "article":
        trainer = article_trainer(name, rows, steps, clock)
    else:
        trainer = project_trainer(name, rows, steps, recomputed_layers, clock)
    trainer.train()
    tokens = [step_tokens(step, [len(row.input_ids) for row in rows]) for step in steps]
    return {
        "tokens_per_second": round(sum(tokens[WARM_UP:]) / sum(clock.seconds[WARM_UP:])),
        "step_seconds": round(statistics.median(clock.seconds[WARM_UP:]), 3),
        "warm_up_seconds": round(sum(clock.seconds[:WARM_UP]), 1),
        "peak_gb": round(max(clock.peaks) / 1e9, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", choices=("short", "full"), default="short", help="145 tokens on average, or 1,024")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step, a multiple of 4 (the articles: 16)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--capacity-gb", type=float, help="use no more GPU memory than this, like a smaller card")
    parser.add_argument("--memory", choices=("auto", "low", "high"), default="auto")
    parser.add_argument("--recipes", nargs="+", choices=("article", "project"), default=("article", "project"))
    parser.add_argument("--json", help="write the results there as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark measures a GPU and there is none")

    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    config, adapter = SHAPES[arguments.shape]
    free, total = torch.cuda.mem_get_info()
    free = min(free, int((arguments.capacity_gb or 1000) * 1e9))
    rows = random_rows(arguments.rows, arguments.batch_size * arguments.steps, config.vocab_size)
    lengths = [len(row.input_ids) for row in rows]
    with torch.device("meta"):
        shape = memory_plan.shape_of(AutoModelForCausalLM.from_config(config), **adapter)
    whole = packing.plan(lengths, arguments.batch_size, sum(lengths), 1, None, 0)
    largest_step = max(step_tokens(step, lengths) for step in whole)
    layout = memory_plan.choose(shape, free, arguments.memory, max(lengths), largest_step, "adamw")
    steps = packing.plan(lengths, arguments.batch_size, layout.pack_tokens, 1, None, 0)
    print(
        f"{arguments.shape} on {torch.cuda.get_device_name()}, {free / 1e9:.1f} GB: {arguments.batch_size} "
        f"{arguments.rows} rows a step; layout: {len(steps[0])} packs of at most {layout.pack_tokens} tokens, "
        f"{layout.recomputed_layers} of {shape.layers} layers recomputed, predicted peak {layout.peak / 1e9:.2f} GB"
    )
    results = {}
    for recipe in arguments.recipes:
        job = (recipe, arguments.shape, rows, steps, layout.recomputed_layers, free / total)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results[recipe] = process.submit(measure, *job).result()
    print(f"\n{'recipe':<8} {'tok/s':>7} {'s/step':>7} {'peak GB':>8} {'warm-up s':>10}  loss, first and last step")
    for recipe, result in results.items():
        print(
            f"{recipe:<8} {result['tokens_per_second']:>7,} {result['step_seconds']:>7.3f} {result['peak_gb']:>8.2f} "
            f"{result['warm_up_seconds']:>10.1f}  {result['losses'][0]:.4f} {result['losses'][-1]:.4f}"
        )
    if arguments.json:
        document = vars(arguments) | {"gpu": torch.cuda.get_device_name(), "layout": asdict(layout), "results": results}
        Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    if len(results) > 1:
        pairs = zip(results["article"]["losses"], results["project"]["losses"], strict=True)
        apart = max(abs(first - second) for first, second in pairs)
        print(f"\nlargest difference of the losses at a step: {apart:.4f} (at most {TOLERANCE} expected)")
        if apart > TOLERANCE:
            sys.exit("error: the two recipes do not learn the same")


if __name__ == "__main__":
    main()
