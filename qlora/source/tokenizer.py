"""The base model's tokenizer and chat template as they are trained and served.

They are the repository's own, with what would differ from day to day, or between transformers and llama.cpp, settled
once. `merge` ships the result, so every program that reads models/merged gets the ids that training had.
"""

import json
import shutil
from pathlib import Path

from qlora.recipe.schema import Model, nearest
from qlora.rows import template
from qlora.rows.chat import MARKS, Chat, Messages, Unusable, load_chat, load_tokenizer
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json, write_text

from transformers import AutoTokenizer, PreTrainedTokenizerFast

QUESTION = [{"role": "user", "content": MARKS[0]}]
THINKING = "enable_thinking"  # the argument that llama-server sets to true, and transformers does not set
TEMPLATE = "chat_template.jinja"
FILES = {".json", ".model", ".jinja", ".txt"}
LEFT_OUT = {"chat_template.json", "model.safetensors.index.json"}  # another copy of the template; the weights' list
STRIPPING = ("phi-3", "phi3")  # names by which llama.cpp knows that special tokens take the white space behind them
STRIPPING_NEEDS = {"<s>", "</s>", "<unk>", "<|endoftext|>"}  # tokens that it then looks for


def settled(folder: Path, model: Model) -> tuple[Chat, list[str]]:
    """The tokenizer and template in `folder`, settled, and a sentence on each change.

    The template "plain" renders documents.

    Raises:
        Refusal: as `load_chat`, or if the template lacks an argument of model.chat_template_kwargs.
    """
    given = model.chat_template if _is_text(model.chat_template) else template.read(model.chat_template)
    chat, changes = load_chat(folder, given), []
    if given:
        changes.append("plain text" if model.chat_template == "plain" else "it is model.chat_template")

    def change(changed: str, why: str) -> None:
        if changed != chat.tokenizer.chat_template:
            chat.tokenizer.chat_template = changed
            changes.append(why)

    own = chat.tokenizer.chat_template
    for name, value in model.chat_template_kwargs.items():
        if not template.mentions(own, name):
            known = template.arguments(own)
            advice = nearest(name, known) if known else "it takes none, so leave model.chat_template_kwargs out"
            raise Refusal(f"model.chat_template_kwargs: the template of {model.id} has no argument {name}; {advice}")
        change(template.with_arguments(chat.tokenizer.chat_template, {name: value}), f"{name} is {value}")
    change(template.with_date(chat.tokenizer.chat_template, model.date), f"its date stays {model.date}")
    if THINKING not in model.chat_template_kwargs and not _thinks_by_default(chat):
        change(template.with_arguments(chat.tokenizer.chat_template, {THINKING: False}), f"{THINKING} is False")
    if _adds_bos(chat) and not _rendered(chat).startswith(chat.tokenizer.bos_token):
        change(template.with_bos(chat.tokenizer.chat_template), "it begins with the BOS that the tokenizer adds")
    return chat, changes


def recorded_template(model: Model) -> str | None:
    """model.chat_template for models/base/base.json: a name, or the text of the file, which later stages read there."""
    return model.chat_template if model.chat_template in template.TEMPLATES else template.read(model.chat_template)


def _is_text(name: str | None) -> bool:
    return "{" in (name or "")


def _rendered(chat: Chat, messages: Messages = QUESTION) -> str:
    try:
        return chat.render(messages, prompt=True)
    except Unusable as error:
        raise Refusal(f"{chat.tokenizer.name_or_path}: {error}") from None


def _thinks_by_default(chat: Chat) -> bool:
    """Whether the template renders the same with enable_thinking=true and without it."""
    given = {"tokenize": False, "add_generation_prompt": True, THINKING: True}
    return _rendered(chat) == chat.tokenizer.apply_chat_template(QUESTION, **given)


def _adds_bos(chat: Chat) -> bool:
    """Whether the tokenizer puts a BOS before a text, as llama-server then does with every prompt."""
    bos = chat.tokenizer.bos_token_id
    return bos is not None and chat.tokenizer("a")["input_ids"][:1] == [bos]


def check_system_prompt(chat: Chat, system_prompt: str | None) -> None:
    """Raise Refusal if the template refuses the recipe's system prompt, or leaves it out."""
    if not system_prompt:
        return
    try:
        if system_prompt.strip() in chat.render([{"role": "system", "content": system_prompt}, *QUESTION], prompt=True):
            return
        reason = "leaves it out"
    except Unusable as error:
        reason = f"refuses it ({str(error).removeprefix('chat template: ')})"
    raise Refusal(
        f"data.system_prompt: this model's chat template knows no system message and {reason}; set data.system_prompt "
        "to null (for text-to-SQL its text can open data.user_prompt)"
    )


def name_of(model: Model, folder: Path, chat: Chat) -> str:
    """The name that a GGUF gets: llama.cpp reads from it whether special tokens take the white space behind them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = Path(model.id).name
    if model.is_local:  # a folder may have any name
        name = Path(config.get("_name_or_path") or "").name or Path(model.id).resolve().name
    strips = chat.strips_behind_special and chat.tokenizer.get_vocab().keys() >= STRIPPING_NEEDS
    return f"{name} (phi3)" if strips and not any(known in name.lower() for known in STRIPPING) else name


def save(chat: Chat, folder: Path, output: Path) -> None:
    """Write all files of the model in `folder` but its weights to `output`, with `chat` as tokenizer and template."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix in FILES and path.name not in LEFT_OUT:
            shutil.copyfile(path, output / path.name)
    if not (output / "tokenizer.json").is_file():
        chat.tokenizer.backend_tokenizer.save(str(output / "tokenizer.json"))
    write_text(output / TEMPLATE, chat.tokenizer.chat_template)
    own = _read(output / "tokenizer_config.json")
    settings = {key: value for key, value in own.items() if key not in ("chat_template", "auto_map")}
    if (prefix := _space_prefix(chat)) is not None:  # without these llama.cpp takes both as true
        settings = {"add_bos_token": _adds_bos(chat)} | settings | {"add_prefix_space": prefix}
    if settings != own:
        write_json(output / "tokenizer_config.json", settings)
    if type(load_tokenizer(output, AutoTokenizer)) is not PreTrainedTokenizerFast:  # others do not read tokenizer.json
        write_json(output / "tokenizer_config.json", settings | {"tokenizer_class": PreTrainedTokenizerFast.__name__})
    generation = _read(output / "generation_config.json")
    ends = generation.get("eos_token_id", [])
    if set(chat.stops) != set(ends if isinstance(ends, list) else [ends]):  # vLLM and transformers stop at these
        write_json(output / "generation_config.json", generation | {"eos_token_id": chat.stops})


def _space_prefix(chat: Chat) -> bool | None:
    """add_prefix_space as llama.cpp's converter reads it: whether each text between special tokens gets a space mark.

    None for tokenizers that do not mark spaces. Metaspace's "first" is for the start of a text, which is the BOS.
    """
    backend = chat.tokenizer.backend_tokenizer
    parts = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    parts = [inner for part in parts for inner in part.get("normalizers", part.get("pretokenizers", [part]))]
    if not any("\u2581" in json.dumps(part, ensure_ascii=False) for part in parts):
        return None
    return any(part["type"] == "Prepend" or part.get("prepend_scheme") == "always" for part in parts)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
