"""The base model's parameters as its files hold them: one tensor each, or experts as several tensors or in MXFP4."""

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from qlora.weights import experts, tower
from qlora.weights.files import opened, shards
from qlora.weights.tower import Source

import torch
from transformers.core_model_loading import dot_natural_key


@dataclass(frozen=True)
class Parameter:
    """A parameter of the trained model.

    Attributes:
        name: In the trained model.
        shape: In the trained model.
        sources: The tensors in the files that it is made from.
        is_transposed: Whether its matrices are (in, out), as in some layers of experts.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    is_transposed: bool = False

    @property
    def is_itself(self) -> bool:
        """Whether a tensor in the files is the parameter."""
        return self.sources[0].converter is None

    @property
    def key(self) -> str:
        """The tensor's name in the files, if that is the parameter; else the parameter's own."""
        return self.sources[0].file_name if self.is_itself else self.name

    @property
    def written(self) -> dict[str, str]:
        """The merged model's tensors, by the tensor of the base that each stands for.

        They are named alike, but experts in MXFP4, codes and scales, become one tensor in 16 bits.
        """
        if any(source.file_name.endswith("_blocks") for source in self.sources):
            (codes,) = (source.file_name for source in self.sources if source.file_name.endswith("_blocks"))
            return {codes: codes.removesuffix("_blocks")}
        return {source.file_name: source.file_name for source in self.sources}

    def join(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The parameter, made from the tensors in the files as transformers does."""
        if self.is_itself:
            return tensors[self.key]
        converter = deepcopy(self.sources[0].converter)
        for source in sorted(self.sources, key=lambda source: dot_natural_key(source.file_name)):
            converter.add_tensor(source.whole_name, source.file_name, source.pattern, tensors[source.file_name])
        whole = self.sources[0].whole
        (value,) = converter.convert(self.sources[0].whole_name, model=whole, config=whole.config).values()
        return (value[0] if isinstance(value, list) else value).detach()

    def split(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors to write, made from the parameter: the reverse of `join`."""
        written = sorted(self.written.values(), key=dot_natural_key)
        if len(written) == 1 and (self.is_itself or len(self.sources) > 1):
            return {written[0]: value}
        source = self.sources[0]
        reverse = source.converter.reverse_transform()
        name, pattern = reverse.rename_source_key(source.whole_name)
        reverse.add_tensor(name, source.whole_name, pattern, value)
        parts = reverse.convert(name, model=source.whole, config=source.whole.config)
        # Their order is that of the files' names, which may have another prefix (of a tower in a multimodal model).
        in_order = [parts[name] for name in sorted(parts, key=dot_natural_key)]
        return {name: part[0] if isinstance(part, list) else part for name, part in zip(written, in_order, strict=True)}


def of_folder(folder: Path) -> dict[str, Parameter]:
    """The parameters of the model in `folder`, by name."""
    skeleton = tower.on_meta(tower.config_of(folder))
    transposed = {
        f"{name}.{weight}"
        for name, module in experts.of_model(skeleton).items()
        if module.is_transposed
        for weight in experts.weights_of(module)
    }
    state, sources = skeleton.state_dict(), {}
    for source in tower.sources(folder):
        sources.setdefault(source.name, []).append(source)
    return {
        name: Parameter(name, tuple(state[name].shape), tuple(found), name in transposed)
        for name, found in sources.items()
    }


class Reader:
    """Reads tensors of a folder by name, from files that stay open. A context."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "Reader":
        self.stack = ExitStack()
        files = [self.stack.enter_context(opened(shard)) for shard in shards(self.folder)]
        self.file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def read(self, parameter: Parameter, device: str = "cpu") -> torch.Tensor:
        """The parameter's value."""
        names = [source.file_name for source in parameter.sources]
        return parameter.join({name: self.file_of[name].get_tensor(name).to(device) for name in names})
