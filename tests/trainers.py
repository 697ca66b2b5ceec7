"""What tests of training share: trl's settings for a few steps, random rows, random models in NF4, and the check that
compiled layers compute what plain ones do."""

import random
from pathlib import Path

from qlora.kernels import compiled_layers
from qlora.recipe.schema import Quantization
from qlora.rows.loss_mask import IGNORED, Encoded
from qlora.weights import loading

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WIDTHS_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
WIDTHS_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_key_value_heads": 40}
WIDTHS_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
# Model and adapter of the runs whose memory was measured.
SHAPES: dict[str, tuple[PreTrainedConfig, dict]] = {
    "llama3-8b": (
        LlamaConfig(vocab_size=128256, num_hidden_layers=32, **WIDTHS_7B),
        {"r": 16, "target_modules": ALL},
    ),
    "mistral-7b": (
        MistralConfig(vocab_size=32000, num_hidden_layers=32, **WIDTHS_7B),
        {"r": 64, "target_modules": ALL[:5]},
    ),
    "llama2-13b": (
        LlamaConfig(vocab_size=32000, num_hidden_layers=40, **WIDTHS_13B),
        {"r": 16, "target_modules": ALL},
    ),
    "smollm2-135m": (
        LlamaConfig(vocab_size=49152, num_hidden_layers=30, tie_word_embeddings=True, **WIDTHS_135M),
        {"r": 16, "target_modules": ALL},
    ),
}


def few_steps(steps: int, accumulation: int, **others) -> SFTConfig:
    """trl's settings for so many optimizer steps of `accumulation` packs each, on the CPU."""
    return SFTConfig(
        output_dir="trained",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        train_sampling_strategy="sequential",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        padding_free=True,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **others,
    )


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens only: the trainer asks it for the pad token."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")


def random_rows(count: int, vocabulary: int) -> list[Encoded]:
    """Rows of 40 to 200 random tokens; the last quarter of each is supervised."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, vocabulary) for _ in range(draw.randrange(40, 200))]
        masked = len(ids) * 3 // 4
        rows.append(Encoded(ids, [IGNORED] * masked + ids[masked:]))
    return rows


def nf4_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose linear layers but the head are in double-quantized NF4 and compute in float32, on the CPU.

    The same at every call. Its weights were bfloat16 before they were quantized; all others are float32.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            quantized = Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, device="meta"
            )
            weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized)
            quantized.weight = weight._quantize(torch.device("cpu"))
            model.set_submodule(name, quantized)
        else:
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.float()
    model.is_loaded_in_4bit = True  # PEFT asks for it
    return model


def check_compiled_layers(folder: Path, ids: torch.Tensor, recomputed_layers: int) -> None:
    """Assert that compiled layers of the model in `folder` give the loss and the gradients of plain ones.

    Args:
        folder: The model.
        ids: A pack of two rows, of shape (1, 96).
        recomputed_layers: Compiled layers with activation checkpointing.
    """
    positions = torch.cat([torch.arange(40), torch.arange(56)])[None]
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(loading.load_base(folder, Quantization(compute_dtype="float32")), lora)
        if compiled:
            compiled_layers.speed_up(model, recomputed_layers=recomputed_layers, backend="eager")
        loss = model.train()(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
