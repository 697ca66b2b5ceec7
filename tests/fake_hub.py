"""Hubs on the loopback interface that answer like the real one: for one repository at one commit, and for uploads."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Repository:
    """What the hub has under a name: who sees it, and the files of its last commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class UploadHub:
    """The state of a hub that takes uploads.

    Attributes:
        url: Its address.
        repositories: OWNER/NAME -> what it has.
        blobs: SHA-256 -> content of a large file, which is in no repository until a commit names it.
        asked: Method and path of each request.
        stalls: Whether uploads of large files stop half way and never end.
        stalled: Set as soon as one has.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def upload_hub(token: str, owner: str) -> Iterator[UploadHub]:
    """A hub on which `token` may write to the repositories of `owner`."""
    hub = UploadHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.handle_request()

        do_POST = do_PUT = do_GET

        def handle_request(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            path, length = self.path.split("?")[0], int(self.headers["Content-Length"] or 0)
            if path.startswith("/blob/"):
                if hub.stalls:
                    self.rfile.read(length // 2)
                    hub.stalled.set()
                    while self.rfile.read(1) and hub.stalls:  # what is on its way, until the client goes
                        time.sleep(0.01)
                    return
                content = self.rfile.read(length)
                assert hashlib.sha256(content).hexdigest() == path.removeprefix("/blob/")
                hub.blobs[path.removeprefix("/blob/")] = content
                self.answer(200)
                return
            body = self.rfile.read(length)
            name = "/".join(path.removeprefix("/api/models/").removeprefix("/").split("/")[:2]).removesuffix(".git")
            if self.headers["Authorization"] != f"Bearer {token}":
                self.answer(401, {"error": "Invalid username or password."})
            elif path == "/api/whoami-v2":
                self.answer(200, {"name": owner, "type": "user"})
            elif path == "/api/repos/create":
                given = json.loads(body)
                name = f"{given.get('organization') or owner}/{given['name']}"
                if not name.startswith(f"{owner}/"):
                    self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
                elif name in hub.repositories:
                    self.answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
                else:
                    hub.repositories[name] = Repository(given.get("private") or given.get("visibility") == "private")
                    self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": "1"})
            elif path.endswith("/preupload/main"):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".gguf", ".safetensors")) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                for one in objects:
                    if one["oid"] not in hub.blobs:
                        one["actions"] = {"upload": {"href": f"{hub.url}/blob/{one['oid']}"}}
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif path.endswith("/commit/main"):
                repository = hub.repositories[name]
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        repository.files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        repository.files[value["path"]] = hub.blobs[value["oid"]]
                repository.commits += 1
                self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            elif path.endswith("/settings"):
                hub.repositories[name].private = json.loads(body)["visibility"] == "private"
                self.answer(200, {})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif name not in hub.repositories:
                self.answer(404, {"error": "Repository not found"})
            else:
                found = hub.repositories[name]
                self.answer(200, {"id": name, "sha": COMMIT, "private": found.private, "siblings": [], "tags": []})

        def answer(self, status: int, body: dict | None = None) -> None:
            content = json.dumps(body or {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
