"""The base model as a GGUF, converted once into a per-user cache: to serve it, alone or with an adapter."""

import hashlib
import tempfile
from pathlib import Path

from qlora.llama_cpp import tools
from qlora.recipe.artifacts import BASE_RECORD
from qlora.runtime import machine
from qlora.source import base_model
from qlora.weights.files import INDEX, shards
from qlora.weights.made import is_whole


def converted(record_folder: Path) -> Path:
    """The bf16 GGUF of the base model that `record_folder`/base.json describes.

    Raises:
        Refusal: if there is no record, or the model cannot be had or converted.
    """
    record = record_folder / BASE_RECORD
    model = base_model.recorded(record_folder)
    from qlora.source import tokenizer  # transformers takes seconds to import

    cache = machine.cache_folder("gguf")
    gguf = cache / f"{hashlib.sha256(record.read_bytes()).hexdigest()[:16]}.gguf"
    if not is_whole(gguf):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            folder = base_model.locate(record_folder)
            chat, shipped = base_model.load_chat(record_folder), Path(work) / "model"
            shipped.mkdir()
            tokenizer.save(chat, folder, shipped)
            for path in (*shards(folder), *folder.glob(INDEX)):
                (shipped / path.name).symlink_to(path.resolve())
            tools.convert(shipped, Path(work) / "model.gguf", tokenizer.name_of(model, folder, chat))
            (Path(work) / "model.gguf").rename(gguf)
    return gguf
