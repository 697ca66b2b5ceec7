"""Serving and asking, with the embedded base model behind the real llama-server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora.llama_cpp import server as llama_server
from qlora.llama_cpp import tools as llama_cpp
from qlora.raw_rows.conversations import conversation
from qlora.raw_rows.layouts import Layout
from qlora.recipe.artifacts import BASE_RECORD
from qlora.recipe.load import load_params
from qlora.recipe.schema import EMBEDDED, Model
from qlora.rows.chat import load_chat
from qlora.runtime.console import Refusal
from qlora.runtime.outputs import write_json
from qlora.source import base_model
from stages import evaluate
from tools import ask, serve, serving, web_ui

import openai
import pytest
from conftest import Workspace, chromium, refused
from repository import ROOT

QUESTION = [{"role": "user", "content": "CREATE TABLE users (id INTEGER, name TEXT)\n\nHow many users are there?"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workspace:
    """A folder in which the embedded model, converted, stands where the pipeline would put the bf16 GGUF."""
    path = tmp_path_factory.mktemp("place")
    for name in ("qlora", "stages", "tools"):
        (path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", path / "params.yaml")
    base = base_model.fetch(Model(id=EMBEDDED))
    for name in ("base", "bf16"):
        write_json(path / "models" / name / BASE_RECORD, base_model.describe(Model(id=EMBEDDED), base))
    place = Workspace(path)
    place.set({"evaluate.max_new_tokens": 24})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        (path / "models/bf16/model.gguf").symlink_to(serving.find_gguf("base", load_params()))
    return place


@contextmanager
def serving_process(place: Workspace, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`python -m tools.serve` on a free port: its URL and its process."""
    command = [sys.executable, "-m", "tools.serve", "--artifact", "bf16", "--port", "0", "--context", "512", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    process = subprocess.Popen(command, cwd=place.path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        printed = ""
        while "Ctrl-C" not in printed and (line := process.stdout.readline()):
            printed += line
        yield re.search(r"http://\S+:\d+", printed)[0], process
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def url(place) -> Iterator[str]:
    with serving_process(place) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def run(monkeypatch, stage, *arguments: str) -> None:
    """The stage's own `main` in this process, which has imported transformers already."""
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# What the official client sees


def test_chat_streams_what_it_answers(client):
    whole = client.chat.completions.create(model="bf16", messages=QUESTION, max_tokens=24)
    pieces = client.chat.completions.create(model="bf16", messages=QUESTION, max_tokens=24, stream=True)
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert len(texts) > 3
    assert "".join(texts) == whole.choices[0].message.content  # greedy without being asked, as `evaluate` is
    assert whole.usage.completion_tokens <= 24


def test_an_answer_ends_at_the_models_stop_token_or_at_the_clients(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count: one, two, three"}]
    answer = client.chat.completions.create(model="bf16", messages=messages, max_tokens=200).choices[0]
    assert answer.finish_reason == "stop"
    assert "<|im_end|>" not in answer.message.content
    word = answer.message.content.split()[2]
    cut = client.chat.completions.create(model="bf16", messages=messages, max_tokens=200, stop=[word]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == answer.message.content[: answer.message.content.index(word)]


def test_an_answer_says_which_model_gave_it_whatever_name_was_asked_for(client):
    assert [model.id for model in client.models.list()] == ["bf16"]
    answer = client.chat.completions.create(model="gpt-5", messages=QUESTION, max_tokens=1)
    assert answer.model == "bf16"


def test_too_long_a_prompt_is_refused_with_both_lengths(client):
    messages = [{"role": "user", "content": "word " * 600}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"exceeds the available context size \(512 tokens\)"):
            client.chat.completions.create(model="bf16", messages=messages, stream=stream)


def test_health_and_metrics(url, client):
    assert json.loads(get(f"{url}/health")[1]) == {"status": "ok"}
    client.chat.completions.create(model="bf16", messages=QUESTION, max_tokens=2)
    assert re.search(r"llamacpp:tokens_predicted_total [1-9]", get(f"{url}/metrics")[1])
    assert get(f"{url}/health", Origin="https://elsewhere.example")[0] == 200


@pytest.mark.parametrize("system", [None, "Another one."])
def test_the_recipes_system_prompt_goes_before_a_conversation_that_has_none(url, place, system):
    data = load_params(place.path / "params.yaml").data
    own = [{"role": "system", "content": system}] if system else []
    chat = load_chat(base_model.fetch(Model(id=EMBEDDED)))
    expected = own or [{"role": "system", "content": data.system_prompt}]
    body = json.dumps({"messages": [*own, *QUESTION]}).encode()
    with urllib.request.urlopen(f"{url}/apply-template", body) as response:
        assert json.load(response)["prompt"] == chat.render([*expected, *QUESTION], prompt=True)


def test_a_system_prompt_of_any_characters_is_rendered_as_it_is(place, monkeypatch):
    monkeypatch.chdir(place.path)
    prompt = 'it\'s "quoted" \\n {{ braces }} {% raw %}\n\tline 2 </s> é 日本 😀 %}'
    params, gguf = load_params(), Path("models/bf16/model.gguf")
    params = params.model_copy(update={"data": params.data.model_copy(update={"system_prompt": prompt})})
    chat = load_chat(base_model.fetch(Model(id=EMBEDDED)))
    expected = chat.render([{"role": "system", "content": prompt}, *QUESTION], prompt=True)
    room = serving.room(gguf, params, context=512, slots=1)
    with serving.serve("bf16", gguf, params, room) as server:
        body = json.dumps({"messages": QUESTION}).encode()
        with urllib.request.urlopen(f"{server.url}/apply-template", body) as response:
            assert json.load(response)["prompt"] == expected


def test_served_answers_are_those_that_evaluate_scored_to_the_row(tiny_model, tmp_path, monkeypatch):
    # Short answers of random weights, without the ties at which an answer hangs on what is computed beside it.
    monkeypatch.chdir(tmp_path)
    for name in ("qlora", "stages", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/smollm2-sql.yaml", "params.yaml")
    Workspace(tmp_path).set({"evaluate.max_new_tokens": 8})
    record = {"id": str(tiny_model), "revision": None, "files": {}}
    write_json(Path("models/bf16") / BASE_RECORD, record)
    llama_cpp.convert(tiny_model, Path("models/bf16/model.gguf"), "tiny")
    data = load_params().data
    with (ROOT / "data/raw/text2sql.jsonl").open() as lines:
        raw = [json.loads(next(lines)) for _ in range(8)]
    layout = Layout("text-to-sql", {part: part for part in ("question", "context", "answer")})
    test_rows = [row | {"id": str(at), "messages": conversation(row, layout, data)} for at, row in enumerate(raw)]
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test_rows))
    run(monkeypatch, evaluate, "--artifact", "bf16")
    predictions = Path("results/answers/bf16.jsonl").read_text().splitlines()
    with serving_process(Workspace(tmp_path)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for row, prediction in zip(test_rows, map(json.loads, predictions), strict=True):
            # Without the system message: the server knows it.
            question = row["messages"][1:-1]
            served = client.chat.completions.create(model="bf16", messages=question, max_tokens=8).choices[0]
            assert served.message.content == prediction["answer"]
            assert (served.finish_reason == "stop") == prediction["stopped"]


# Who may ask, and how it ends


def test_others_are_not_let_in_without_a_key(place):
    with serving_process(place, "--host", "0.0.0.0", LLAMA_API_KEY="a-key") as (url, process):
        assert get(f"{url}/health")[0] == 200
        for path in ("/v1/models", "/metrics", "/props", "/slots"):
            assert get(f"{url}{path}")[0] == 401
            assert get(f"{url}{path}", Authorization="Bearer a-key")[0] == 200
        (server,) = children(process.pid)
        assert "a-key" not in Path(f"/proc/{server}/cmdline").read_text()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_server_and_starts_again(place, sent):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with serving_process(place, "--port", port) as (url, process):
        (server,) = children(process.pid)
        assert "--port" in refused(place.tool("serve", "--artifact", "bf16", "--port", port))
        process.send_signal(sent)
        assert process.wait(timeout=15) == (0 if sent != signal.SIGKILL else -signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{server}").exists()
    if sent == signal.SIGKILL:
        with serving_process(place, "--port", port) as (again, _):
            assert again == url
            assert get(f"{url}/health")[0] == 200


IPV6_ALONE = "ip link set lo up && ip addr del 127.0.0.1/8 dev lo"
CAN_BE = subprocess.run(["unshare", "-rn", "sh", "-c", IPV6_ALONE], capture_output=True).returncode == 0


@pytest.mark.skipif(not CAN_BE, reason="this machine does not let a user make a network of its own")
def test_a_loopback_of_ipv6_alone_and_a_proxy_do_not_matter(place):
    ask = f"{sys.executable} -m tools.ask 'How many?' --artifact bf16 --max-tokens 4 --schema -"
    command = ["unshare", "-rn", "sh", "-c", f"{IPV6_ALONE} && echo 'CREATE TABLE t (n INT)' | {ask}"]
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(command, cwd=place.path, env=os.environ | proxies, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_an_address_that_this_machine_lacks_is_named():
    with pytest.raises(Refusal, match=r"on 192\.0\.2\.1.*choose another --host"):
        llama_server.free_port("192.0.2.1", 0)


def test_what_cannot_be_served_is_refused(place, monkeypatch):
    monkeypatch.chdir(place.path)
    for arguments, sentence in (
        (["--artifact", "adapter"], "merged"),
        (["--artifact", "Q5"], "base, merged, bf16"),
        ([], "dvc repro quantize-gguf@Q4_K_M"),
        (["--artifact", "merged", "--port", "0", "--nonsense"], "llama-server ended with status 1"),
        (["--host", "nowhere"], "must be an IP address"),
        (["--host", "0.0.0.0"], "set LLAMA_API_KEY"),
    ):
        with pytest.raises(Refusal, match=sentence):
            run(monkeypatch, serve, *arguments)


# How much fits


@pytest.mark.parametrize(
    ("free", "context", "slots"),
    [(64e9, 8192, 8), (2 * 3 * 8192 * 23040, 8192, 3), (2 * 1000 * 23040, 1000, 1)],
)
def test_slots_and_then_context_shrink_to_the_memory(place, monkeypatch, free, context, slots):
    monkeypatch.chdir(place.path)
    gguf, params = Path("models/bf16/model.gguf"), load_params()
    monkeypatch.setattr(serving, "_free_memory", lambda: int(free) + gguf.stat().st_size)
    room = serving.room(gguf, params)
    assert (room.context, room.slots) == (context, slots)
    assert room.kv_bytes == context * slots * 23040  # 30 layers, 3 heads of 64 for keys and for values, 2 bytes


def test_too_little_memory_is_refused(place, monkeypatch):
    monkeypatch.chdir(place.path)
    monkeypatch.setattr(serving, "_free_memory", lambda: 280_000_000)
    gguf, params = Path("models/bf16/model.gguf"), load_params()
    with pytest.raises(Refusal, match="serve a smaller type"):
        serving.room(gguf, params)
    monkeypatch.setattr(serving, "_free_memory", lambda: 1_000_000_000)
    assert serving.room(gguf, params, context=64, slots=1).context == 64  # who asks for little gets it
    with pytest.raises(Refusal, match=r"4 x 8,000 tokens of context need 0\.7 GB"):
        serving.room(gguf, params, context=8000, slots=4)


# One question


def test_ask_prints_the_answer_and_nothing_else(place, monkeypatch, capfd):
    monkeypatch.chdir(place.path)
    Path("schema.sql").write_text("CREATE TABLE users (id INTEGER, name TEXT)")
    answers = []
    for artifact in ("bf16", "base"):
        run(monkeypatch, ask, "How many users?", "--schema", "schema.sql", "--artifact", artifact, "--max-tokens", "8")
        answers.append(capfd.readouterr().out)
    assert answers[0].strip()
    assert answers[1].split()[:3] == answers[0].split()[:3]  # llama.cpp's answer and transformers' may part at a tie


def test_ask_refuses_what_it_cannot_ask(place, monkeypatch):
    monkeypatch.chdir(place.path)
    Path("schema.sql").write_text("CREATE TABLE users (id INTEGER, name TEXT)")
    Path("empty.sql").write_text("\n")
    for arguments, sentence in (
        ([], "--schema FILE"),
        (["--schema", "none.sql"], "none.sql"),
        (["--schema", "empty.sql"], "'context'"),
        (["--schema", "schema.sql", "--artifact", "Q5"], "base, adapter, merged"),
        (["--schema", "schema.sql", "--artifact", "merged"], "dvc repro merge"),
        (["--schema", "schema.sql"], "dvc repro quantize-gguf@Q4_K_M"),
    ):
        with pytest.raises(Refusal, match=sentence):
            run(monkeypatch, ask, "How many?", *arguments)
    chatting = load_params(ROOT / "recipes/mistral-7b-guanaco.yaml").data
    with pytest.raises(Refusal, match="--schema"):
        ask.read_schema(Path("schema.sql"), chatting)
    assert ask.messages(chatting, "Why?")[-1] == {"role": "user", "content": "Why?"}


# In a browser


def test_the_web_ui_answers(url, client, tmp_path):
    if not web_ui.folder().is_dir():
        pytest.skip("the web UI is not built (make ui)")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(url)
        page.locator("textarea").first.fill(QUESTION[0]["content"])
        page.get_by_role("button", name="Send").click()
        answer = client.chat.completions.create(model="bf16", messages=QUESTION, max_tokens=9).choices[0].message
        page.get_by_text(re.compile(re.escape(" ".join(answer.content.split()[:3])))).first.wait_for(timeout=60_000)
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            page.wait_for_timeout(500)
            page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + f"/ui-{width}.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
