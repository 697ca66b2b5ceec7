"""llama.cpp's real tools on a tiny random model with the embedded model's tokenizer."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from qlora.gguf import file, parity
from qlora.llama_cpp import scorer, tools
from qlora.llama_cpp.scorer import Server
from qlora.recipe.artifacts import BASE_RECORD, NEEDS_MATRIX
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows.chat import Chat, load_chat
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from stages import convert_gguf, quantize_gguf

import pytest
import torch
from gguf import GGUFReader
from repository import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

CONVERSATION = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "SELECT 1"}]
OTHER_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    """A Hugging Face folder: two random layers, the embedded model's tokenizer and template."""
    folder = tmp_path_factory.mktemp("merged")
    base = base_model.fetch(Model(id=EMBEDDED))
    for path in base.iterdir():
        if "token" in path.name or "template" in path.name:
            shutil.copy(path, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,  # K-quants work on blocks of 256
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # far from uniform probabilities
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    write_json(folder / BASE_RECORD, {"id": EMBEDDED})
    return folder


@pytest.fixture(scope="module")
def gguf(merged, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tools.convert(merged, path, "tiny")
    return path


@pytest.fixture(scope="module")
def chat(merged) -> Chat:
    return load_chat(merged)


@pytest.fixture(scope="module")
def server(gguf):
    with Server(gguf, context=512, slots=2) as server:
        yield server


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def overwrite(gguf: Path, key: str, value: int) -> None:
    """Change one number in the header of a GGUF file."""
    reader = GGUFReader(gguf, "r+")
    field = reader.get_field(key)
    field.parts[field.data[0]][0] = value
    reader.data.flush()


# Finding the tools


def test_missing_tools_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Refusal, match=r"run `make llama\.cpp`"):
        tools.find()


def test_only_the_folder_in_llama_cpp_dir_is_used_if_it_is_set(monkeypatch, tmp_path):
    found = tools.find()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(found.server.parent))
    assert tools.find() == found
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(Refusal, match=f"LLAMA_CPP_DIR .*{tmp_path}"):
        tools.find()


def test_tools_without_converter_name_what_brings_it(monkeypatch, tmp_path, merged):
    for path in tools.find().server.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tools.find().converter is None
    with pytest.raises(Refusal, match=r"run `make llama\.cpp`"):
        tools.convert(merged, tmp_path / "model.gguf", "tiny")


# Converting and quantizing


def test_tokenizer_is_checked_before_there_are_weights(merged, tmp_path):
    for path in merged.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    model = Model(id=str(tmp_path))
    parity.check_before_training(load_chat(tmp_path), tmp_path, model)
    # As a careless export from a GGUF: it tokenizes well in training, but the converter takes it for another kind.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.model.byte_fallback = True
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match=f"the tokenizer of {tmp_path}"):
        parity.check_before_training(load_chat(tmp_path), tmp_path, model)


def test_unknown_pre_tokenizer_is_refused(merged, tmp_path):
    shutil.copy(merged / "config.json", tmp_path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("q", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator(["select from where"], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    unknown = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="s", pad_token="e")
    unknown.chat_template = OTHER_TEMPLATE
    unknown.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match=r"convert_hf_to_gguf\.py .*LLAMA_CPP_DIR"):
        parity.check_before_training(load_chat(tmp_path), tmp_path, Model(id=str(tmp_path)))


def test_read_back(gguf, merged, chat):
    contents = file.check_converted(gguf, AutoConfig.from_pretrained(merged), chat.tokenizer)
    assert (contents.architecture, contents.layers, contents.width) == ("llama", 2, 256)
    assert contents.types["BF16"] > 0.99
    assert contents.eos == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_read_back_finds_another_template(gguf, merged):
    other = AutoTokenizer.from_pretrained(merged, chat_template=OTHER_TEMPLATE)
    with pytest.raises(Refusal, match=r"model\.gguf .*template"):
        file.check_converted(gguf, AutoConfig.from_pretrained(merged), other)


@pytest.mark.parametrize("kept", [0, 3, 1000, -100])
def test_truncated_file_is_refused(gguf, tmp_path, kept):
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[:kept])
    with pytest.raises(Refusal, match=rf"short\.gguf .*\({len(gguf.read_bytes()[:kept]):,} bytes"):
        file.read(short)


def test_quantized_file_differs_only_in_its_types(gguf, tmp_path):
    quantized = tmp_path / "model.gguf"
    tools.quantize(gguf, quantized, "Q4_K_M")
    contents = file.check_quantized(quantized, gguf, "Q4_K_M")
    with pytest.raises(Refusal, match=r"model\.gguf .*Q4_K_M.*Q8_0"):
        file.check_quantized(quantized, gguf, "Q8_0")
    assert {"Q4_K", "Q6_K"} <= contents.types.keys()
    assert quantized.stat().st_size < 0.5 * gguf.stat().st_size


def test_a_file_of_another_model_is_no_quantization_of_it(gguf, tmp_path):
    other = tmp_path / "other.gguf"
    shutil.copy(gguf, other)
    overwrite(other, "tokenizer.ggml.eos_token_id", 7)
    with pytest.raises(Refusal, match=r"other\.gguf .*\beos$"):
        file.check_quantized(other, gguf, "BF16")


@pytest.mark.parametrize("type_", NEEDS_MATRIX)
def test_types_that_need_a_matrix_are_refused_by_the_tool_and_before_it(gguf, tmp_path, type_, monkeypatch):
    with pytest.raises(Refusal, match=r"quantize .*: llama-quantize ended with status (?s:.*)imatrix"):
        tools.quantize(gguf, tmp_path / "model.gguf", type_)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/bf16").mkdir(parents=True)
    (tmp_path / "models/bf16" / BASE_RECORD).write_text("{}")
    (tmp_path / "models/bf16/model.gguf").symlink_to(gguf)
    monkeypatch.setattr(sys, "argv", ["quantize_gguf", "--type", type_])
    with pytest.raises(Refusal, match=rf"{type_} .*gguf\.imatrix"):
        quantize_gguf.main()


def test_stages_from_merged_to_quantized(merged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/merged").symlink_to(merged)
    (tmp_path / "data/prepared").mkdir(parents=True)
    row = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "SELECT %d"}]}\n'
    (tmp_path / "data/prepared/train.jsonl").write_text("".join(row % (i, i) for i in range(60)))
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", tmp_path / "params.yaml")
    convert_gguf.main()
    assert sorted(path.name for path in (tmp_path / "models/bf16").iterdir()) == [
        "Modelfile",
        "base.json",
        "imatrix.gguf",
        "model.gguf",
    ]
    monkeypatch.setattr(sys, "argv", ["quantize_gguf", "--type", "IQ2_XXS"])
    quantize_gguf.main()
    assert (tmp_path / "models/IQ2_XXS/model.gguf").is_file()
    assert 'SYSTEM """Write one SQLite query' in (tmp_path / "models/IQ2_XXS/Modelfile").read_text()
    assert "importance matrix  used" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["quantize_gguf", "--type", "Q4_0-plain"])
    quantize_gguf.main()
    assert (tmp_path / "models/Q4_0-plain/model.gguf").is_file()
    assert "importance matrix  none" in capsys.readouterr().out


# Train and serve see the same ids


def other_chat(merged: Path, **changes) -> Chat:
    """The model's chat with another tokenizer of its own, to be changed."""
    return replace(load_chat(merged), tokenizer=AutoTokenizer.from_pretrained(merged, **changes))


def test_parity(server, chat):
    compared = parity.check(server, chat, [CONVERSATION] * 3)
    assert compared.texts >= 200
    assert compared.conversations >= 50
    assert compared.differing == []


def test_parity_finds_another_template(server, merged):
    other = other_chat(merged, chat_template=OTHER_TEMPLATE)
    with pytest.raises(Refusal, match=r"the conversation '\[user\] 0") as refusal:
        parity.check(server, other, [CONVERSATION])
    assert re.search(r"training: +\[\d(?s:.*)served: +\[\d", str(refusal.value))


def test_parity_finds_another_splitting(server, merged):
    other = other_chat(merged)
    other.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # digits in runs
    with pytest.raises(Refusal, match=r"does not read the (text|conversation) '"):
        parity.check(server, other, [])


def test_parity_finds_a_bos_that_training_never_saw(gguf, chat, tmp_path):
    other = tmp_path / "model.gguf"
    shutil.copy(gguf, other)
    overwrite(other, "tokenizer.ggml.add_bos_token", True)
    overwrite(other, "tokenizer.ggml.bos_token_id", 0)
    with (
        Server(other, context=256, slots=1) as server,
        pytest.raises(Refusal, match="the conversation '"),
    ):
        parity.check(server, chat, [CONVERSATION])


# Serving


def test_scores_are_those_of_transformers(server, merged, chat, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there; loopback needs no proxy
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    prompt = chat.prompt_ids(CONVERSATION[:1])
    # An end-of-turn id in the middle, too, as in a conversation of several turns.
    answer = chat.ids("SELECT name FROM t<|im_end|>\n<|im_start|>user\nWhy? 😀<|im_end|>")
    scored = server.score(prompt + answer, range(len(prompt), len(prompt + answer)), 8)
    logprobs = [token.logprob for token in scored]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
    difference = torch.tensor(logprobs) - expected
    assert len(scored) == len(answer)
    # llama.cpp multiplies bfloat16 weights with activations rounded to bfloat16 (8 bits).
    assert difference.abs().max() < 0.02 * expected.abs().max()
    assert difference.mean().abs() < 0.005 * expected.abs().mean()


def test_an_answer_is_what_its_scores_call_most_probable(server, chat):
    prompt = chat.prompt_ids(CONVERSATION[:1])
    completion = server.complete(prompt, 12)
    assert len(completion.tokens) == 12
    assert not completion.stopped
    assert completion.text == chat.tokenizer.decode(completion.tokens)
    scored = server.score(prompt + completion.tokens, range(len(prompt), len(prompt) + 12), 1)
    same = [token.top[0][0] == id_ for token, id_ in zip(scored, completion.tokens, strict=True)]
    assert sum(same) >= 11  # a near-tie may fall the other way
    with ThreadPoolExecutor(2) as pool:
        assert len({tuple(answer.tokens) for answer in pool.map(lambda _: server.complete(prompt, 4), range(4))}) == 1


def test_scores_of_several_ids_a_request_are_those_of_one_id_a_request(server, chat, monkeypatch):
    prompt = chat.prompt_ids(CONVERSATION[:1])
    answer = server.complete(prompt, 12, count=8)
    ids = prompt + answer.tokens
    ids[len(prompt) + 5] = chat.tokenizer.convert_tokens_to_ids("SELECT")  # from here on, an answer to another prompt
    positions = range(len(prompt), len(ids))
    together = server.score(ids, positions, 8, answer)
    monkeypatch.setattr(scorer, "AHEAD", 0)  # generates nothing, so every id is asked for by a bias
    one_by_one = server.score(ids, positions, 8)
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in one_by_one], abs=0.01)
    assert [one.top[0][0] for one in together] == [one.top[0][0] for one in one_by_one]


def test_too_long_a_prompt_is_refused(server):
    with pytest.raises(Refusal, match=r"/completion .*600"):
        server.complete([5] * 600, 4)


def test_a_server_that_cannot_start_shows_its_log(gguf, tmp_path):
    broken = tmp_path / "model.gguf"
    broken.write_bytes(gguf.read_bytes()[:-1000])
    with (
        pytest.raises(Refusal, match=r"(?s)llama-server ended with status 1 .*model\.gguf.*log:\n.*tensor"),
        Server(broken, context=64, slots=1),
    ):
        pass


def test_scoring_works_with_a_key_that_is_set_for_serving(gguf, monkeypatch):
    monkeypatch.setenv("LLAMA_API_KEY", "a-key")
    with Server(gguf, context=64, slots=1) as server:
        assert server.tokenize("x")


def test_the_shells_variables_do_not_change_what_is_scored(gguf, monkeypatch, capfd):
    """llama.cpp takes each option from a variable, too; a prefix would make the server answer elsewhere."""
    with Server(gguf, context=256, slots=1) as server:
        ids = server.tokenize("SELECT name FROM singers WHERE age > 30 ORDER BY age")
        expected = server.score(ids, range(1, len(ids)), 5)
    variables = {"LLAMA_ARG_CACHE_TYPE_K": "q4_0", "LLAMA_ARG_API_PREFIX": "/other", "LLAMA_ARG_ROPE_SCALE": "4"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tools.clean_environment.cache_clear()
    with Server(gguf, context=256, slots=1) as server:
        assert server.score(ids, range(1, len(ids)), 5) == expected
    said = capfd.readouterr().err
    assert all(name in said for name in variables)
    tools.clean_environment.cache_clear()


def test_a_server_that_dies_is_named(gguf):
    with Server(gguf, context=64, slots=1) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(Refusal, match="llama-server ended with status -9"):
            server.tokenize("x")


def test_the_server_is_gone_after_an_exception(gguf):
    server = Server(gguf, context=64, slots=1)
    with pytest.raises(ZeroDivisionError), server:
        assert alive(server.pid) / 0
    assert not alive(server.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_is_gone_when_its_stage_is_killed(gguf, sent):
    program = f"""
import time
from pathlib import Path
from qlora.llama_cpp.scorer import Server
from qlora.runtime.console import run_stage

def main():
    with Server(Path({str(gguf)!r}), context=64, slots=1) as server:
        print(server.pid, flush=True)
        time.sleep(60)

run_stage(main)
"""
    stage = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(stage.stdout.readline())
    assert alive(pid)
    stage.send_signal(sent)
    stage.wait(timeout=20)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
