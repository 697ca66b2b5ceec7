"""An artifact is there and whole, or whoever reads it names the damaged file and how to get it back."""

import shutil
import sys
from pathlib import Path

from qlora.recipe.artifacts import ADAPTER_GGUF, BASE_RECORD, MODELS, find
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from qlora.weights import files, made
from stages import convert_adapter, convert_gguf, evaluate, merge, quantize_gguf, quantize_vllm
from tools import ask, demo, publish, serve, serve_vllm

import numpy as np
import pytest
from conftest import Workspace, write_gguf
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import save_file

WEIGHTS = "model.safetensors"


@pytest.fixture
def artifacts(workspace: Workspace, monkeypatch) -> Path:
    """The folder models, with artifacts that look whole."""
    monkeypatch.chdir(workspace.path)
    record = base_model.describe(base_model.Model(id="./tiny"), Path("tiny"))
    for name in ("merged", "FP8"):
        shutil.copytree("tiny", MODELS / name)
    for name in ("base", "adapter", "merged", "FP8", ADAPTER_GGUF, "bf16", "Q8_0"):
        write_json(MODELS / name / BASE_RECORD, record)
    for name in (ADAPTER_GGUF, "bf16", "Q8_0"):
        write_gguf(find(name).gguf)
    write_json(MODELS / "adapter/adapter_config.json", {"r": 2})
    save_file({"lora_A": np.ones((2, 64))}, MODELS / "adapter/adapter_model.safetensors")
    Path("schema.sql").write_text("CREATE TABLE users (id INTEGER)")
    return MODELS


def refusal_of(program, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program.__name__, *arguments])
        with pytest.raises(Refusal) as refusal:
            program.main()
    return str(refusal.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    """As a loss of power leaves a file."""
    path.write_bytes(bytes(path.stat().st_size))


READERS = {
    "adapter": [
        (merge, []),
        (convert_adapter, []),
        (evaluate, ["--artifact", "adapter"]),
        (ask, ["?", "--schema", "schema.sql", "--artifact", "adapter"]),
        (serve_vllm, ["--artifact", "adapter"]),
        (publish, ["--type", "adapter", "--to", "me/sql"]),
    ],
    "merged": [
        (convert_gguf, []),
        (quantize_vllm, ["--type", "FP8"]),
        (evaluate, ["--artifact", "merged"]),
        (ask, ["?", "--schema", "schema.sql", "--artifact", "merged"]),
        (serve_vllm, []),
    ],
    "FP8": [(evaluate, ["--artifact", "FP8"]), (serve_vllm, ["--artifact", "FP8"])],
    "bf16": [(quantize_gguf, ["--type", "Q8_0"]), (serve, ["--artifact", "merged"])],
    "Q8_0": [
        (evaluate, ["--artifact", "Q8_0"]),
        (serve, []),
        (demo, ["--artifact", "Q8_0"]),
        (ask, ["?", "--schema", "schema.sql"]),
        (publish, ["--type", "Q8_0", "--to", "me/sql"]),
    ],
    ADAPTER_GGUF: [(evaluate, ["--artifact", ADAPTER_GGUF]), (serve, ["--artifact", ADAPTER_GGUF])],
}
MAIN_FILE = {"adapter": "adapter_model.safetensors", "merged": WEIGHTS, "FP8": WEIGHTS}


@pytest.mark.parametrize(
    ("name", "program", "arguments"),
    [(name, *reader) for name, readers in READERS.items() for reader in readers],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else None,
)
def test_whoever_reads_a_damaged_artifact_names_the_file_and_what_brings_it_back(artifacts, name, program, arguments):
    if program is demo and demo.gradio is None:
        pytest.skip("gradio is not installed")
    for path in (artifacts / name / MAIN_FILE.get(name, "model.gguf"), artifacts / name / BASE_RECORD):
        whole = path.read_bytes()
        for damage in (cut, empty, zero):
            damage(path)
            sentence = refusal_of(program, *arguments)
            assert sentence.startswith(f"{path} is damaged (")
            assert f"`dvc checkout --force {path}`" in sentence
            assert sentence.endswith(f"`dvc repro --force --single-item {find(name).stage}` makes it again")
            assert len(sentence) < 400
            path.write_bytes(whole)
        path.unlink()
        assert refusal_of(program, *arguments).startswith(f"{path} is missing; run `dvc repro {find(name).stage}`")
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_settings_of_a_model_are_checked_as_its_weights_are(artifacts, name):
    cut(artifacts / "merged" / name)
    assert refusal_of(convert_gguf).startswith(f"models/merged/{name} is damaged (")


def test_a_shard_that_is_missing_is_named(artifacts):
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (artifacts / "merged" / WEIGHTS).rename(artifacts / "merged" / names[0])
    write_json(artifacts / "merged" / files.INDEX, {"weight_map": dict(zip("ab", names, strict=True))})
    assert refusal_of(convert_gguf).startswith(f"models/merged/{names[1]} is missing; run `dvc repro merge`")
    cut(artifacts / "merged" / files.INDEX)
    assert refusal_of(convert_gguf).startswith(f"models/merged/{files.INDEX} is damaged (")


def test_what_params_yaml_has_to_list_is_said(artifacts):
    sentence = refusal_of(evaluate, "--artifact", "Q2_K")
    assert sentence.startswith("models/Q2_K is not there; run `dvc repro quantize-gguf@Q2_K`")
    assert "gguf.types" in sentence


# Where a file ends


def gguf_of_every_type(path: Path, alignment: int | None) -> None:
    writer = GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for number, add in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool")):
        getattr(writer, f"add_{add}")(f"whole.{number}", 1)
    writer.add_float32("a.float", 0.5)
    writer.add_float64("a.double", 0.5)
    writer.add_string("a.text", "größer")
    writer.add_array("words", ["one", "two", "three"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("first", np.ones((4, 32), np.float32))
    writer.add_tensor("second", np.ones(7, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [None, 64])
def test_a_gguf_ends_where_its_header_says(tmp_path, alignment):
    path = tmp_path / "model.gguf"
    gguf_of_every_type(path, alignment)
    whole = path.read_bytes()
    end = max(int(tensor.data_offset + tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    assert made.gguf_end(whole) == end
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert made.is_whole(path) == (length >= end)  # what follows the last tensor is padding


def test_weights_end_where_their_header_says(tmp_path):
    path = tmp_path / WEIGHTS
    save_file({"first": np.ones((4, 8), np.float32), "second": np.ones(3)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not made.is_whole(path)
    path.write_bytes(whole)
    assert made.is_whole(path)


def test_random_bytes_are_no_file_of_weights(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(200):
        for name, start in (("x.gguf", b"GGUF\3\0\0\0"), (WEIGHTS, b""), ("x.json", b"")):
            (tmp_path / name).write_bytes(start + draw.bytes(number * 10))
            assert not made.is_whole(tmp_path / name)
