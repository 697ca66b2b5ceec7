"""Read params.yaml, and report every problem at once, each with its path in the file and what to do."""

import reprlib
from pathlib import Path
from typing import get_args, get_origin

from qlora.recipe import checks
from qlora.recipe.schema import JudgedBy, Params, Part, Section, nearest
from qlora.runtime.console import Refusal

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

SHOWN = 80  # characters of a key or a value in a sentence
SENTENCE = 360  # characters of a sentence
MOST = 20  # problems that are shown
VALUES = reprlib.Repr()
VALUES.maxstring = VALUES.maxother = SHOWN


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check `path`.

    YAML 1.2 rules hold (ruamel.yaml), so `1e-05`, as `dvc exp run -S` writes it, is a number.

    Raises:
        Refusal: naming every problem, each with its path in the file and, for an unknown key, the nearest known one.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; copy a recipe: cp recipes/smollm2-sql.yaml {path}") from None
    except MarkedYAMLError as error:
        raise Refusal(f"{path}, line {error.problem_mark.line + 1}: not YAML ({error.problem})") from None
    except ReaderError as error:
        raise Refusal(f"{path}: not YAML ({error.reason} at position {error.position})") from None
    except OSError as error:
        raise Refusal(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # no such date, a number of thousands of digits, too deep
        raise Refusal(f"{path}: not YAML ({_shortened(str(error), SHOWN)})") from None
    if content is None:
        raise Refusal(f"{path} is empty; copy a recipe: cp recipes/smollm2-sql.yaml {path}")
    try:
        params = Params.model_validate(content)
        problems = list(checks.problems(params))
    except ValidationError as error:
        problems = [_sentence(problem) for problem in _by_key(error.errors())]
    sentences = [_shortened(problem, SENTENCE) for problem in problems]
    if len(sentences) == 1:
        raise Refusal(f"{path}: {sentences[0]}")
    if sentences:
        lines = [f"  - {sentence}" for sentence in sentences[:MOST]]
        more = [f"  - and {len(sentences) - MOST} more"] if len(sentences) > MOST else []
        raise Refusal("\n".join([f"{path} has {len(sentences)} problems:", *lines, *more]))
    return params


def _by_key(errors: list[dict]) -> list[dict]:
    """pydantic's error records, merged to one for each key; pydantic has one for each type that the key may have."""
    merged: dict[tuple, dict] = {}
    for error in errors:
        depth = _depth(error["loc"])
        key = error["loc"][:depth]
        if key in merged and depth < len(error["loc"]):
            merged[key]["msg"] += " or " + error["msg"].removeprefix("Input should be ")
        else:
            merged[key] = error | {"loc": error["loc"][:depth]}
    return list(merged.values())


def _depth(location: tuple) -> int:
    """How many parts of one of pydantic's paths are keys of the file; the parts behind them name types."""
    kind, depth = Params, 0
    while depth < len(location) and location[depth] != "[key]":
        if isinstance(kind, type) and issubclass(kind, Section):
            field = kind.model_fields.get(location[depth])
            kind = field and field.annotation
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif kind in (list[Part], list[JudgedBy]):
            (kind,) = get_args(kind)
        else:
            break
        depth += 1
    return depth


def _sentence(problem: dict) -> str:
    """One of pydantic's error records as a sentence that starts with the key's path."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(_shortened(part, SHOWN) for part in location) or "the whole"
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; {nearest(location[-1][:SHOWN], _known_keys(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: is missing"
    if problem["type"] == "model_type":
        return f"{path}: must hold keys with values (it is {_written(problem['input'])})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]} (it is {_written(problem['input'])})"


def _written(value: object) -> str:
    """A value as Python writes it, shortened."""
    try:
        return _shortened(VALUES.repr(value), SHOWN)
    except ValueError:
        return "a number of thousands of digits"


def _shortened(text: str, most: int) -> str:
    """`text`, without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 3 :]}"


def _known_keys(location: list[str]) -> list[str]:
    section = Params
    for name in location:
        section = get_args(section)[0] if name.isdigit() else section.model_fields[name].annotation
    return list(section.model_fields)
