"""Run a llama-server for the length of a `with` block, and send it requests."""

import errno
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qlora.llama_cpp import tools
from qlora.runtime.console import Refusal
from qlora.runtime.machine import start


@dataclass(frozen=True)
class Running:
    """A llama-server that serves the GGUF `model` at `url`; its output goes to `log` unless that is None."""

    model: Path
    url: str
    process: subprocess.Popen
    log: IO[bytes] | None

    def check_alive(self) -> None:
        """Raise Refusal if it has ended, with the end of its log if it has one."""
        if self.process.poll() is None:
            return
        said = "it says why above"
        if self.log:
            self.log.seek(0)
            said = f"the end of its log:\n{tools.last_lines(self.log.read().decode(errors='replace'))}"
        raise Refusal(f"llama-server ended with status {self.process.returncode} while serving {self.model}; {said}")

    def is_ready(self) -> bool:
        try:
            with self.ask("GET", "/health", timeout=10) as response:
                return response.status == 200 and self.process.poll() is None
        except OSError:
            return False

    @contextmanager
    def ask(
        self, method: str, path: str, body: dict | None = None, timeout: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield its response. llama-server wants the key in LLAMA_API_KEY if that is set."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('LLAMA_API_KEY', '')}"}
        # http.client, unlike most clients, never asks a proxy.
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            yield connection.getresponse()
        finally:
            connection.close()


@contextmanager
def run(
    model: Path,
    settings: Mapping[str, object],
    options: Sequence[object] = (),
    host: str | None = None,
    port: int = 0,
    log: IO[bytes] | None = None,
    own_session: bool = False,
) -> Iterator[Running]:
    """Run a llama-server for the length of a `with` block, ready to answer.

    Args:
        model: A GGUF file.
        settings: llama-server's options that take a value, with their values.
        options: Further options, as on a command line.
        host: The address to listen on; by default this machine's own.
        port: 0 takes a free one.
        log: A file for its output, which by default goes to standard output and error.
        own_session: Keep Ctrl-C from the server; this process stops it. Otherwise Ctrl-C ends both at once, so no
            thread waits for an answer.

    Raises:
        Refusal: if the port is taken, or the server ends before it is ready.
    """
    host = host or loopback()
    port = free_port(host, port)
    settings = {"--model": model, "--host": host, "--port": port, **settings}
    command = [tools.find().server, *(part for pair in settings.items() for part in pair), *options]
    process = start(
        [str(part) for part in command],
        tools.clean_environment(),
        stdout=log,
        stderr=log and subprocess.STDOUT,
        start_new_session=own_session,
    )
    try:
        reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        server = Running(model, url(reach, port), process, log)
        while not server.is_ready():
            server.check_alive()
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def loopback() -> str:
    """This machine's own address: 127.0.0.1, or ::1 where it has IPv6 alone."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return "::1"
    return "127.0.0.1"


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises Refusal if it is taken, or if this machine has no such address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener.getsockname()[1]
    except OSError as error:
        what = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise Refusal(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --{what}") from None
