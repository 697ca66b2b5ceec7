"""Read params.yaml, and report every problem at once, each with its path in the file and what to do."""

from pathlib import Path
from typing import get_origin

from qlora.recipe import checks
from qlora.recipe.schema import Params, Section, nearest
from qlora.runtime.console import Refusal

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError


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
    try:
        params = Params.model_validate(content)
        problems = list(checks.problems(params))
    except ValidationError as error:
        problems = [_sentence(problem) for problem in _by_key(error.errors())]
    if len(problems) == 1:
        raise Refusal(f"{path}: {problems[0]}")
    if problems:
        raise Refusal(f"{path} has {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return params


def _by_key(errors: list[dict]) -> list[dict]:
    """pydantic's error records, merged to one for each key; pydantic has one for each type that the key may have."""
    merged: dict[tuple, dict] = {}
    for error in errors:
        section, depth = Params, 0
        while depth < len(error["loc"]) and isinstance(section, type) and issubclass(section, Section):
            field = section.model_fields.get(error["loc"][depth])
            section, depth = field and field.annotation, depth + 1
        if get_origin(section) is dict:  # the rest of the path is keys, not types
            depth = len(error["loc"])
        key = error["loc"][:depth] if depth else ("", len(merged))
        if key in merged and depth < len(error["loc"]):
            merged[key]["msg"] += " or " + error["msg"].removeprefix("Input should be ")
        else:
            merged[key] = error | {"loc": error["loc"][:depth]}
    return list(merged.values())


def _sentence(problem: dict) -> str:
    """One of pydantic's error records as a sentence that starts with the key's path."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(part for part in location if part.isidentifier() or part.isdigit()) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; {nearest(location[-1], _known_keys(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]} (it is {problem['input']!r})"


def _known_keys(location: list[str]) -> list[str]:
    section = Params
    for name in location:
        section = section.model_fields[name].annotation
    return list(section.model_fields)
