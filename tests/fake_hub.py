"""A hub on the loopback interface that answers like the real one, for one repository at one commit."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(folder: Path, name: str, gated: bool = False, breaks: int = 0, short: bool = False):
    """Serve `folder` as model or data set `name`; yield the server's address and the list of requests.

    Args:
        folder: The repository's files.
        name: OWNER/NAME.
        gated: Show the metadata to everybody and the files to nobody.
        breaks: So many downloads of weights lose the connection half way.
        short: Downloads of weights end half way, as if that were the whole file.

    A request is its path, followed by its Range and Authorization headers if it has them.
    """
    asked: list[str] = []
    breaks_left = [breaks]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            marks = [self.headers[name] for name in ("Range", "Authorization") if self.headers[name]]
            asked.append(" ".join([self.path, *marks]))
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
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                weights = path.endswith(".safetensors") and self.command == "GET"
                if weights and short:
                    content = content[: len(content) // 2]
                if begin:
                    headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                broken = weights and breaks_left[0] > 0
                breaks_left[0] -= broken
                self.answer(206 if begin else 200, headers, content[begin:], broken)

        do_HEAD = do_GET

        def answer(
            self, status: int, headers: dict[str, str] | None = None, body: object = None, broken: bool = False
        ) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if broken else content)

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
