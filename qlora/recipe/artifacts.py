"""The artifacts that the pipeline makes and scores, in one table, and the types of GGUF and vLLM files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MODELS = Path("models")
ADAPTER_GGUF = "adapter-gguf"  # the adapter for llama-server, which applies it to the base model's GGUF
BASE_RECORD = "base.json"  # in each artifact's folder: which base model it was made from
PROJECTOR = "mmproj.gguf"  # beside the GGUF of a multimodal model: its vision tower

# llama-quantize's names; without F16 and BF16, as models/bf16 is not quantized. MXFP4_MOE is for experts, as gpt-oss
# ships them: all else is Q8_0.
# fmt: off
GGUF_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_XS", "IQ4_NL",
    "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)
# fmt: on
# llama-quantize refuses to make these without an importance matrix.
NEEDS_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S")
PLAIN = "-plain"  # Q4_K_M-plain is Q4_K_M without the importance matrix, to measure what that is worth
FIT = re.compile(r"fit-(\d+(?:\.\d+)?)(bpw|MB|GB)")  # a GGUF of this size, its tensors' types chosen by measurement
# Bits of weights and activations: 4 and 16; 8 and 8; 4 and 4, which only Blackwell GPUs multiply in 4 bits.
VLLM_TYPES = ("W4A16-AWQ", "W4A16-GPTQ", "FP8", "NVFP4")
# Stage -> the key that lists what it makes.
LISTED_IN = {"quantize-gguf": "gguf.types", "convert-adapter": "gguf.adapters", "quantize-vllm": "vllm.types"}


@dataclass(frozen=True)
class Artifact:
    """One artifact of the pipeline.

    Attributes:
        name: As in evaluate.artifacts.
        stage: The DVC stage that makes it.
        made_from: The artifact it is made from; None for the base model.
        answered_by: What answers for it when it is scored: transformers, or llama.cpp for a GGUF.
    """

    name: str
    stage: str
    made_from: str | None
    answered_by: Literal["transformers", "llama.cpp"]

    @property
    def folder(self) -> Path:
        return MODELS / self.name

    @property
    def gguf(self) -> Path:
        """The GGUF file; only of an artifact that llama.cpp answers for."""
        return self.folder / "model.gguf"

    @property
    def listed_in(self) -> str | None:
        """The key of params.yaml whose list has to name it; None if it is always made."""
        return LISTED_IN.get(self.stage.partition("@")[0])


ARTIFACTS = {
    artifact.name: artifact
    for artifact in (
        Artifact("base", "fetch-base", None, "transformers"),
        Artifact("adapter", "quantize-load-train", "base", "transformers"),
        Artifact(ADAPTER_GGUF, f"convert-adapter@{ADAPTER_GGUF}", "adapter", "llama.cpp"),
        Artifact("merged", "merge", "adapter", "transformers"),
        Artifact("bf16", "convert-gguf", "merged", "llama.cpp"),
        *(Artifact(name, f"quantize-vllm@{name}", "merged", "transformers") for name in VLLM_TYPES),
        *(
            Artifact(name, f"quantize-gguf@{name}", "bf16", "llama.cpp")
            for type_ in GGUF_TYPES
            for name in (type_, type_ + PLAIN)
        ),
    )
}


def find(name: str) -> Artifact | None:
    """The artifact of this name; None if there is none. Sizes (`FIT`) are too many for the table."""
    fitted = Artifact(name, f"quantize-gguf@{name}", "bf16", "llama.cpp") if FIT.fullmatch(name) else None
    return ARTIFACTS.get(name, fitted)


def predecessor(name: str, scored: Sequence[str]) -> str | None:
    """The nearest artifact in `scored` that `name` was made from, directly or not; None if there is none."""
    before = find(name).made_from
    while before is not None and before not in scored:
        before = ARTIFACTS[before].made_from
    return before
