"""A model that judges: an OpenAI-compatible server on loopback grades and compares; replies are cached."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qlora.judging.model_grade import model_grade
from qlora.judging.preference import compare
from qlora.recipe.schema import JudgedBy, Preference
from qlora.runtime.console import Refusal

import pytest

ROWS = [
    {"id": f"f:{at}", "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    for at in range(3)
]


class Grader(BaseHTTPRequestHandler):
    """Grades "4" with 5 and other answers with 2, prefers "4", cannot judge "?", and is busy on its first request."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        parts = re.findall(r"### (.*)\n(.*)", body["messages"][1]["content"])
        answer = dict(parts).get("ANSWER TO GRADE")
        reply = {"4": "<think>GRADE: 1?</think>Right.\nGRADE: 5", "?": "I cannot tell."}.get(answer, "**Grade:** 2")
        if answer is None:  # two answers: 4 is better than 5, and what comes first is better than what is neither
            pair = [dict(parts)[name] for name in "AB"]
            reply = "none" if "?" in pair else f"BETTER: {'AB'[pair.index('4')] if '4' in pair else 'A'}"
            reply = "**Better: tie**" if pair == ["4", "4"] else reply
        content = {"choices": [{"message": {"content": reply}}]} if self.server.compatible else {"reply": reply}
        text = json.dumps(content).encode()
        self.send_response(503 if len(self.server.requests) == 1 else self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("QLORA_JUDGE_KEY", "secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Grader) as server:
        server.requests, server.status, server.compatible = [], 200, True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.settings = JudgedBy(name="model_grade", url=f"http://127.0.0.1:{server.server_port}/v1", model="large")
        yield server
        server.shutdown()


def test_answers_are_graded_once_and_a_reply_without_a_grade_judges_nothing(server, tmp_path):
    answers = ["4", "five", "<think>well</think>?"]
    records = model_grade(ROWS, answers, server.settings)
    assert [record["model_grade"] for record in records] == [1, 0.25, None]
    assert records[2]["outcome"] == "not judged"
    asked = len(server.requests)
    assert asked == 4  # one of them again: the server was busy
    assert {(path, key) for path, key, _ in server.requests} == {("/v1/chat/completions", "Bearer secret")}
    assert model_grade(ROWS, answers, server.settings) == records
    assert len(server.requests) == asked
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.txt"))
    other = server.settings.model_copy(update={"rubric": "Is it polite?"})
    model_grade(ROWS[:1], ["4"], other)
    assert len(server.requests) == asked + 1


def test_two_answers_are_compared_in_both_orders(server):
    rows = [ROWS[0]] * 5
    settings = Preference(url=server.settings.url, model="large", artifacts=["Q4_K_M"])
    found = compare(rows, ["five", "4", "4", "five", "?"], ["4", "five", "4", "six", "4"], settings)
    assert found["rows"] == [1, 0, 0.5, 0.5, None]  # of five and six it prefers what comes first
    assert found["preference"] == 0.5
    assert found["agreement"] == 0.75
    assert found["judged"] == 4


def test_a_server_that_cannot_grade_is_named(server):
    server.requests.append(None)
    server.status = 401
    with pytest.raises(Refusal, match=r"answers 401 to .*QLORA_JUDGE_KEY"):
        model_grade(ROWS, ["4"] * 3, server.settings)
    server.status, server.compatible = 200, False
    with pytest.raises(Refusal, match="no OpenAI-compatible server"):
        model_grade(ROWS, ["4"] * 3, server.settings)
    nowhere = server.settings.model_copy(update={"url": "http://127.0.0.1:9/v1"})
    with pytest.raises(Refusal, match=r"cannot be reached at http://127\.0\.0\.1:9/v1"):
        model_grade(ROWS, ["4"] * 3, nowhere)
