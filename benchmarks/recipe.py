"""What the recipes that train_speed compares have in common: the model, the trainer's settings, and the clock.

Unsloth's environment imports this, too: besides what Unsloth brings it needs ruamel.yaml only.
"""

import re
import statistics
import time
from collections import Counter

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Params4bit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from trl import SFTConfig

from qlora.recipe.params import Quantization
from qlora.weights.loading import quantization_config

WARM_UP = 2  # steps that compile and allocate, and are not timed
PROFILED = 4  # the step, counted from 0, that --profile looks at
KERNELS = {  # kind: pattern of the kernels' names
    "dequantization": "_dequantize|kDequantize",
    "attention": "flex_attention|flash|fmha",
    "matrix products": "gemm|nvjet|cutlass|splitK",
    "loss": "^_(forward|backward)_kernel",
    "norms, rotations, activations": "^triton_",
    "optimizer": "multi_tensor|[Aa]dam",
    "copies": "[Mm]em(cpy|set)|copy",
}


def random_model(
    config: PreTrainedConfig, attention: str, device: torch.device, sharded: bool = False
) -> AutoModelForCausalLM:
    """A model of this shape on `device`, its linear layers in double-quantized NF4, the same at every call.

    What is to be `sharded` is made on `device` layer by layer, and left to the CPU's memory."""
    generator = torch.Generator(device).manual_seed(0)
    quantizer = Bnb4BitHfQuantizer(quantization_config(Quantization(), sharded), pre_quantized=False)
    with init_empty_weights():  # buffers are real
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    quantizer.preprocess_model(model, device_map={"": device})
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            value = value.fill_(1) if value.dim() == 1 else value.normal_(0, 0.02, generator=generator)
            if isinstance(module, Linear4bit):
                storage = module.quant_storage
                quantized = Params4bit(
                    value, requires_grad=False, quant_type="nf4", quant_storage=storage, module=module
                )
                module.weight = quantized._quantize(device)
                if sharded:
                    module.weight.data = module.weight.data.cpu()
            else:
                setattr(module, name, torch.nn.Parameter(value.cpu() if sharded else value))
    model.tie_weights()
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    return model if sharded else model.to(device)


class Clock(TrainerCallback):
    """Seconds and peak memory of each step; with `profile`, what one of them did on the GPU."""

    def __init__(self, profile: bool):
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if profile else None

    def on_step_begin(self, *args, **kwargs):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        if self.profiler and len(self.seconds) == PROFILED:
            self.profiler.start()
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)
        self.peaks.append(torch.cuda.max_memory_allocated())
        if self.profiler and len(self.seconds) == PROFILED + 1:
            self.profiler.stop()

    def profile(self) -> dict[str, float]:
        """Milliseconds of the profiled step by kind of kernel; what is left of it the GPU had nothing to do."""
        spent: Counter[str] = Counter()
        for event in self.profiler.key_averages():
            kind = next((kind for kind, pattern in KERNELS.items() if re.search(pattern, event.key)), "others")
            spent[kind] += event.self_device_time_total / 1000
        idle = self.seconds[PROFILED] * 1000 - sum(spent.values())
        return {kind: round(time, 1) for kind, time in [*spent.most_common(), ("idle", idle)]}


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
        lr_scheduler_type="linear",  # this and the next two as transformers has them: Unsloth has other defaults
        warmup_steps=0,
        weight_decay=0.0,
        bf16=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # its check would wait for the GPU after each micro-batch
        save_strategy="no",
        report_to="none",
        **others,
    )


def figures(trainer: Trainer, clock: Clock, tokens: list[int]) -> dict:
    """What came out of a training whose steps had so many `tokens`; the first WARM_UP steps are not timed."""
    timed = [at for at in range(WARM_UP, len(tokens)) if not (clock.profiler and at == PROFILED)]
    return {
        "tokens_per_second": round(sum(tokens[at] for at in timed) / sum(clock.seconds[at] for at in timed)),
        "step_seconds": round(statistics.median(clock.seconds[at] for at in timed), 3),
        "warm_up_seconds": round(sum(clock.seconds[:WARM_UP]), 1),
        "peak_gb": round(max(clock.peaks) / 1e9, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
