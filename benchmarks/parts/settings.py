"""The trainer's settings in training benchmarks, and a tokenizer for rows that are token ids already."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens only: the trainer asks it for the pad token."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")


def settings(micro_batch: int, accumulation: int, steps: int, **others) -> SFTConfig:
    """trl's settings for a few steps.

    Args:
        micro_batch: Examples of a micro-batch.
        accumulation: Micro-batches of a step.
        steps: Optimizer steps.
        others: Further arguments of SFTConfig.
    """
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
        lr_scheduler_type="linear",  # transformers' default, as the next two are; Unsloth has others
        warmup_steps=0,
        weight_decay=0.0,
        bf16=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it waits for the GPU after each micro-batch
        save_strategy="no",
        report_to="none",
        **others,
    )
