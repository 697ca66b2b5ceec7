"""A hub on the loopback interface that answers as the real one does, for one repository at one commit."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(folder: Path, name: str, gated: bool = False):
    """Serve `folder` as model or data set `name`; yields its address and the list of paths that were asked for.

    A gated repository shows its metadata to everybody and its files to nobody.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.split("?")[0]
            of_main = path.endswith((name, "/auth-check", "/revision/main"))
            if f"/{name}" not in path:
                self.answer(401, {"X-Error-Code": "RepoNotFound"})
            elif path.startswith("/api/") and COMMIT not in path and not of_main:
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            elif path.endswith("/auth-check"):
                self.answer(403 if gated else 200, {"X-Error-Code": "GatedRepo"} if gated else {})
            elif "/tree/" in path:
                self.answer(200, body=[entry(file) for file in folder.iterdir()])
            elif path.startswith("/api/"):
                siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in folder.iterdir()]
                licence = {"license": "apache-2.0"}
                facts = {"id": name, "sha": COMMIT, "gated": "manual" if gated else False, "cardData": licence}
                self.answer(200, body=facts | {"siblings": siblings, "tags": []})
            elif gated:
                self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            else:
                content = (folder / path.rpartition("/")[2]).read_bytes()
                self.answer(200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content)

        do_HEAD = do_GET

        def answer(self, status: int, headers: dict[str, str] | None = None, body: object = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    def entry(file: Path) -> dict:
        return {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
