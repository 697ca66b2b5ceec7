"""Whatever stands in params.yaml or in a file of rows, it is read or refused in a short sentence."""

import contextlib
import json
from pathlib import Path

from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.index import group_of
from qlora.raw_rows.rejected import Rejected
from qlora.raw_rows.sources import open_source
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data
from qlora.runtime.console import Refusal

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import ROOT
from ruamel.yaml import YAML

RECIPE = YAML(typ="safe").load(ROOT / "recipes/smollm2-sql.yaml")
PATHS = [(section, key) for section, values in RECIPE.items() for key in values]
PATHS += [(section,) for section in RECIPE]
LONGEST = 600  # characters of a line, with examples
MOST_LINES = 25

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=30)
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["x" * 10_000, "\ud800", "\0", "~", "../..", "data/raw/x", "data/raw/../../x.csv", "a/b", "1e-5"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.sampled_from(["-", "r"]), inner)
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    (
        *("messages", "conversations", "text", "prompt", "question", "context", "answer", "input", "output"),
        *("instruction", "history", "system", "tools", "schema", "x", "", " answer "),
    )
)
words = st.sampled_from(
    (
        *("### Human: a ### Assistant: b", "[INST] a [/INST] b", "[INST]", "user", "SELECT a FROM t"),
        *("CREATE TABLE t (a INT)", "[" * 3000, "[[", "{", '"', "nan"),
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
    )
)
messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "from", "content", "value", "weight", "tool_calls", "reasoning", "name"]),
        st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"]) | words | values,
    ),
    max_size=4,
)
rows = st.lists(st.dictionaries(columns, words | messages | values, max_size=5), max_size=6)


def load(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(Refusal), short():
        load_params(path)


def read_rows(path: Path, content: bytes, task: str) -> None:
    path.write_bytes(content)
    data = Data(source=f"data/raw/{path.name}", task=task, dialect="sqlite")
    with contextlib.suppress(Refusal), short():
        source = open_source(data, data)
        for _, row in source.rows:
            with contextlib.suppress(Rejected), short():
                group_of("rows:1", row, conversation(row, source.layout, data), source.layout)


@contextlib.contextmanager
def short():
    """Each line of a sentence in the block is short, and there are few."""
    try:
        yield
    except (Refusal, Rejected) as error:
        lines = str(error).splitlines()
        if len(lines) > MOST_LINES or any(len(line) > LONGEST for line in lines):
            raise AssertionError(f"a long sentence: {str(error)[:2000]}") from error
        raise


def change(changed: list) -> dict:
    """The default recipe with values in other places."""
    params = json.loads(json.dumps(RECIPE))
    for path, value in changed:
        place = params
        for key in path[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[path[-1]] = value
    return params


def check_params(folder: Path, changed: list) -> None:
    load(folder / "params.yaml", json.dumps(change(changed)).encode())


def check_text(folder: Path, content: bytes) -> None:
    load(folder / "params.yaml", content)


def check_json_rows(folder: Path, found: list[dict], array: bool, task: str) -> None:
    text = json.dumps(found) if array else "\n".join(map(json.dumps, found))
    read_rows(folder / f"data/raw/x.{'json' if array else 'jsonl'}", text.encode(), task)


def check_bytes(folder: Path, ending: str, content: bytes, task: str) -> None:
    read_rows(folder / f"data/raw/x.{ending}", content, task)


def check_parquet(folder: Path, found: list[dict], task: str) -> None:
    buffer = pyarrow.BufferOutputStream()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(found), buffer)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return  # rows of several types, which Parquet cannot hold
    read_rows(folder / "data/raw/x.parquet", buffer.getvalue().to_pybytes(), task)


task = st.sampled_from(["chat", "text-to-sql"])
cells = (words | st.text(max_size=12) | st.sampled_from([",", '"', "\n", "\r", "a,b", "é"])).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
tables = st.lists(st.lists(cells | columns.map(str.encode), max_size=5).map(b",".join), max_size=5).map(b"\n".join)
texts = st.text(st.sampled_from("ab: -[]{}&*!?|>%@`'\"\n\t#,0.")).map(str.encode)
endings = st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"])
CHECKS = {
    "params": (check_params, (st.lists(st.tuples(st.sampled_from(PATHS), values), min_size=1, max_size=3),)),
    "yaml": (check_text, (st.binary(max_size=60) | texts,)),
    "json": (check_json_rows, (rows, st.booleans(), task)),
    "bytes": (check_bytes, (endings, tables | st.binary(max_size=99), task)),
    "parquet": (check_parquet, (rows, task)),
}


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("examples", [50, pytest.param(3000, marks=pytest.mark.slow)])
def test_nothing_ends_in_a_traceback(tmp_path, monkeypatch, kind, examples):
    check, strategies = CHECKS[kind]
    (tmp_path / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies))
    def run(arguments: tuple) -> None:
        check(tmp_path, *arguments)

    run()
