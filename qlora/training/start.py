"""What a run starts from: the base model as training holds it, and an earlier adapter (lora.start_from)."""

import json
from collections.abc import Mapping
from pathlib import Path

from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD
from qlora.recipe.schema import ADAPTERS, Lora, Params
from qlora.runtime.console import Refusal
from qlora.runtime.inputs import read_json
from qlora.runtime.machine import available_memory
from qlora.source import hub
from qlora.training.device import Device
from qlora.training.gpu import attention
from qlora.training.memory import MemoryPlan
from qlora.weights import adapter_names, experts, loading, quantized
from qlora.weights.quantized import Quantized

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from transformers import PreTrainedModel

SCALING = {"r": "r", "lora_alpha": "alpha", "use_rslora": "use_rslora"}  # PEFT's field -> that of lora
Weights = dict[str, torch.Tensor]


def load_model(params: Params, base: Path, plan: MemoryPlan, here: Device) -> tuple[PreTrainedModel, Quantized]:
    """The base model as training holds it, and what is in 4 bits.

    On a CPU with enough memory it is dequantized once, not in each pass.
    """
    model = loading.load_base(base, params.quantization, attention(plan), sharded=here.sharded)
    in_4_bits = quantized.of_model(model, params.quantization)
    fits = loading.plain_bytes(base, torch.bfloat16) < available_memory() // here.count - plan.peak
    if not here.is_gpu and params.train.memory != "low" and fits:
        loading.dequantize(model)  # the same numbers, a twelfth sooner
    return model, in_4_bits


def earlier_adapter(lora: Lora, config: LoraConfig, skeleton: PreTrainedModel, base: Path) -> Weights:
    """The weights of the adapter that lora.start_from names, as PEFT names them in a file; none without one.

    Args:
        lora: The recipe's section.
        config: Of the adapter that will be trained.
        skeleton: The model without weights; it gets that adapter.
        base: The base model's folder.

    Raises:
        Refusal: if it cannot be read, or has another rank, scale, modules or base model.
    """
    if lora.start_from is None:
        return {}
    folder = locate(lora.start_from)
    try:
        found = json.loads((folder / adapter_names.CONFIG).read_text(encoding="utf-8"))
        weights = adapter_names.read(folder, base)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:100]
        raise _refusal(lora, f"cannot be read ({reason}): name a folder that holds what PEFT saved") from None
    _check_base(lora, folder)
    if found.get("peft_type") != "LORA" or found.get("use_dora") or found.get("modules_to_save"):
        raise _refusal(lora, "is not plain LoRA (it is another method, DoRA, or has modules_to_save): take another")
    for theirs, ours in SCALING.items():
        value, wanted = found.get(theirs), getattr(lora, ours)
        if value != wanted:
            value, wanted = (str(one).removesuffix(".0").lower() for one in (value, wanted))
            raise _refusal(lora, f"was trained with {ours} {value}, and lora.{ours} is {wanted}: set it to {value}")
    with experts.shown_to_peft(skeleton):
        expected = get_peft_model_state_dict(get_peft_model(skeleton, config), save_embedding_layers=False)
    _check_modules(lora, weights, expected)
    return weights


def locate(name: str) -> Path:
    """The folder of the adapter `name`: under data/adapters, or of the hub's owner/name@commit in its cache."""
    if name.startswith(ADAPTERS):
        return Path(name)
    repository, _, commit = name.partition("@")
    return hub.download("adapter", repository, commit, [adapter_names.CONFIG, adapter_names.WEIGHTS, BASE_RECORD])


def start_from(model: PeftModel, weights: Weights) -> None:
    """Give the new adapter of `model` the weights of an earlier one, if there are any."""
    for name, parameter in model.named_parameters():
        if weights and parameter.requires_grad:
            parameter.data.copy_(weights[name.replace(".default.", ".")])


def _check_base(lora: Lora, folder: Path) -> None:
    """Raise Refusal if the adapter's own record names other weights than the base model's."""
    if not (folder / BASE_RECORD).is_file():
        print(f"lora.start_from: {lora.start_from} does not record which base model it is of", flush=True)
        return
    records = [read_json(path / BASE_RECORD, "fetch-base") for path in (folder, ARTIFACTS["base"].folder)]
    theirs, ours = (
        {file["sha256"] for name, file in record["files"].items() if name.endswith(".safetensors")}
        for record in records
    )
    if theirs != ours:
        named = " at ".join(filter(None, (records[0]["id"], records[0].get("revision"))))
        raise _refusal(lora, f"was trained on other weights, those of {named}: set model.id and model.revision to that")


def _check_modules(lora: Lora, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise Refusal unless the adapter has the tensors that the one to be trained has."""
    theirs, ours = ({name.split(".lora_")[0].split(".")[-1] for name in names} for names in (found, expected))
    if theirs != ours:
        raise _refusal(
            lora,
            f"adapts {', '.join(sorted(theirs))}, and lora.target_modules stands for {', '.join(sorted(ours))}: "
            f"set that to [{', '.join(sorted(theirs))}]",
        )
    for name in sorted(found.keys() ^ expected.keys()) or (
        name for name in expected if found[name].shape != expected[name].shape
    ):
        raise _refusal(lora, f"does not fit this model at {name}: it is of another base model")


def _refusal(lora: Lora, problem: str) -> Refusal:
    return Refusal(f"lora.start_from: {lora.start_from} {problem}")
