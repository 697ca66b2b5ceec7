"""How long a GPU takes to answer the rows of a text-to-SQL test, as `evaluate` does.

    python -m benchmarks.generate_speed --shape llama3-8b --rows 1000

A model of the given shape with random weights answers prompts of 130 tokens on average, through
`qlora.scoring.transformers_run.generate`: in bf16 (as base and merged are scored), in NF4 with an adapter and
dequantized weights (the adapter), and in NF4 with an adapter (the adapter on a GPU with little memory).
"""

import argparse
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor

from benchmarks.parts.nf4_model import random_model
from benchmarks.parts.shapes import SHAPES
from benchmarks.parts.training import lora
from qlora.scoring import transformers_run
from qlora.weights import loading

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--answer-tokens", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=BUILD, default=list(BUILD))
    parser.add_argument("--capacity-gb", type=float, help="GPU memory to use at most, as on a smaller card")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark measures a GPU and there is none")
    print(
        f"{arguments.shape} on {torch.cuda.get_device_name()}: {arguments.rows} rows, batches of {arguments.batch_size}"
    )
    print(f"{'model':<18} {'seconds':>8} {'tok/s':>8} {'peak GB':>8}", flush=True)
    for name in arguments.models:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            seconds, peak = process.submit(measure, name, arguments).result()
        tokens = arguments.rows * arguments.answer_tokens
        print(f"{name:<18} {seconds:>8.1f} {tokens / seconds:>8.0f} {peak / 1e9:>8.2f}", flush=True)


def measure(name: str, arguments: argparse.Namespace) -> tuple[float, int]:
    """Seconds for all answers, and the peak memory in bytes."""
    if arguments.capacity_gb:
        torch.cuda.set_per_process_memory_fraction(arguments.capacity_gb * 1e9 / torch.cuda.mem_get_info()[1])
    model = BUILD[name](arguments.shape).eval()
    draw = random.Random(0)
    lengths = [max(40, min(1024, int(draw.lognormvariate(4.8, 0.4)))) for _ in range(arguments.rows)]
    prompts = [[draw.randrange(3, model.config.vocab_size) for _ in range(length)] for length in lengths]
    answers, seconds = transformers_run.generate(
        model, prompts, [], 0, arguments.answer_tokens, arguments.batch_size, lambda done: None
    )
    if any(len(answer.ids) != arguments.answer_tokens for answer in answers):
        sys.exit(f"error: an answer does not have {arguments.answer_tokens} tokens")
    return seconds, torch.cuda.max_memory_allocated()


def plain(shape: str):
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(SHAPES[shape][0], dtype=torch.bfloat16)


def nf4(shape: str):
    config, adapter = SHAPES[shape]
    return get_peft_model(random_model(config, "sdpa", torch.device("cuda")), lora(0.0, **adapter))


def dequantized(shape: str):
    config, adapter = SHAPES[shape]
    model = random_model(config, "sdpa", torch.device("cuda"))
    loading.dequantize(model)
    return get_peft_model(model, lora(0.0, **adapter))


BUILD = {"bf16": plain, "NF4 dequantized": dequantized, "NF4": nf4}


if __name__ == "__main__":
    main()
