"""quantize-vllm: the merged model in 4 or 8 bits for vLLM, by llm-compressor.

Reads models/merged and data/prepared/train.jsonl; writes models/TYPE, a folder as vLLM and transformers read it.
W4A16-AWQ scales up the channels that matter on training rows before it rounds (Lin et al. 2023, arXiv:2306.00978);
W4A16-GPTQ rounds column after column and lets the rest make up for the error (Frantar et al. 2022, arXiv:2210.17323).
FP8 needs no calibration; NVFP4 calibrates the scale of activations.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS, VLLM_TYPES
from qlora.recipe.load import load_params
from qlora.rows.chat import load_chat
from qlora.rows.loss_mask import Encoded
from qlora.rows.prepared import encode_rows, evenly
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import check_disk, new_folder
from qlora.weights import compressed, loading
from qlora.weights.architecture import skeleton
from qlora.weights.files import opened, shards, weights_bytes
from qlora.weights.made import check_made

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

MERGED = ARTIFACTS["merged"].folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", required=True, choices=VLLM_TYPES)
    artifact = ARTIFACTS[parser.parse_args().type]
    params = load_params()
    settings = params.vllm
    check_made(ARTIFACTS["merged"])
    model_shape = skeleton(MERGED)
    compressed.check(model_shape, [artifact.name], settings.group_size)
    check_disk(artifact.name, weights_bytes(MERGED) // 2, MERGED)  # embeddings stay in 16 bits
    chat = load_chat(MERGED)
    rows = list(encode_rows(evenly("train", settings.calibration_rows), chat, params.train.max_length))

    begin = time.monotonic()
    output = artifact.folder
    with new_folder(output) as folder:
        quantize(artifact.name, rows, chat.tokenizer, settings.group_size, folder)
        for path in MERGED.iterdir():  # tokenizer, template and settings as they were trained with, to the byte
            if path.suffix in {".json", ".model", ".jinja", ".txt"} and not path.name.startswith(("config.", "model.")):
                shutil.copyfile(path, folder / path.name)
        check(folder, model_shape, artifact.name, settings.group_size)
    summary(
        f"quantize-vllm {artifact.name}",
        {
            "file": f"{output}, {weights_bytes(output) / 1e9:.2f} GB",
            "of the merged model": f"{weights_bytes(output) / weights_bytes(MERGED):.0%}",
            "quantized tensors": len(compressed.linear_layers(model_shape)),
            "calibrated on": f"{len(rows)} training rows, {sum(len(row.input_ids) for row in rows):,} tokens",
            "seconds": f"{time.monotonic() - begin:.1f}",
        },
    )


def quantize(
    type_: str, rows: list[Encoded], tokenizer: PreTrainedTokenizerBase, group_size: int, folder: Path
) -> None:
    """Write the merged model into `folder`, quantized layer by layer on the GPU, or on the CPU where there is none.

    Args:
        type_: One of VLLM_TYPES.
        rows: What the layers' inputs are measured on, one row at a time: no padding has a say.
        tokenizer: Of the model.
        group_size: Weights that share a scale.
        folder: Where to.
    """
    os.environ |= {"LLM_COMPRESSOR_LOG_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # llm-compressor 0.14 pins the activations' memory for a GPU even where there is none, which torch refuses.
        IntermediatesCache.pin_memory = lambda *_: None
    # A zero point for each group, for GPTQ, too: without, its loss rises three times as much (docs/serving.md).
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "symmetric": False}
    layers = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": [compressed.HEAD]}
    recipe = {
        "W4A16-AWQ": lambda: [AWQModifier(), QuantizationModifier(**layers)],
        "W4A16-GPTQ": lambda: [GPTQModifier(**layers)],
        "FP8": lambda: [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=[compressed.HEAD])],
        "NVFP4": lambda: [QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=[compressed.HEAD])],
    }[type_]()
    attention = loading.attention_implementation(AutoConfig.from_pretrained(MERGED))
    model = AutoModelForCausalLM.from_pretrained(MERGED, dtype=torch.bfloat16, attn_implementation=attention)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "attention_mask": [1] * len(row.input_ids)} for row in rows]
        ),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(folder, save_compressed=True)


def check(folder: Path, model_shape: PreTrainedModel, type_: str, group_size: int) -> None:
    """Read `folder` back: every linear layer stored as `type_` with finite scales, all else as it was.

    Raises:
        Refusal: naming the first tensor that is missing, left over or of another shape.
    """
    expected = {}
    for name, tensor in model_shape.state_dict().items():
        expected[name] = tuple(tensor.shape)
    if model_shape.config.get_text_config().tie_word_embeddings:
        expected.pop(f"{compressed.HEAD}.weight", None)
    for name, layer in compressed.linear_layers(model_shape).items():
        del expected[f"{name}.weight"]
        expected |= compressed.stored(name, layer, type_, group_size)
    bits = {"FP8": ("weight", "F8_E4M3"), "NVFP4": ("weight_packed", "U8")}.get(type_, ("weight_packed", "I32"))
    quantized = {f"{name}.{bits[0]}" for name in compressed.linear_layers(model_shape)}
    found = {}
    for shard in shards(folder):
        with opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                found[name] = tuple(file.get_slice(name).get_shape())
                if name in quantized and file.get_slice(name).get_dtype() != bits[1]:
                    raise Refusal(f"{shard}: {name} is not {type_}")
                if name.endswith("_scale") and not file.get_tensor(name).float().isfinite().all():
                    raise Refusal(f"{shard}: {name} holds a scale that is no number")
    extra = {name for name in found if name.endswith(("weight_shape", "weight_zero_point"))}
    for name in sorted(expected.keys() | found.keys() - extra):
        if expected.get(name) != found.get(name):
            raise Refusal(
                f"{folder}: {name} should be {expected.get(name, 'absent')} and is {found.get(name, 'absent')}: "
                "llm-compressor does not store this architecture as vLLM reads it; set vllm.types to []"
            )


if __name__ == "__main__":
    run_stage(main)
