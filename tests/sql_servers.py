"""Real database servers on loopback for tests: a PostgreSQL and a MariaDB with small memory, in a folder of their own.

`apt-get install postgresql mariadb-server` provides both. If the tests run as root, the servers run as nobody.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def folder_of_another() -> Iterator[tuple[Path, dict]]:
    """A folder for a server, and the arguments with which `subprocess` runs it as a user that is not root."""
    folder = Path(tempfile.mkdtemp(prefix="sql-server-"))
    identity = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        yield (
            folder,
            {**identity, "cwd": folder, "env": {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}},
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: subprocess.Popen, port: int, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def program(*names: str) -> str:
    """The path of the first of these programs that this machine has; skips the test without one."""
    places = os.pathsep.join(
        [os.environ["PATH"], "/usr/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    )
    found = next(filter(None, (shutil.which(name, path=places) for name in names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed (apt-get install postgresql mariadb-server)")
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a new PostgreSQL server."""
    pytest.importorskip("psycopg", reason="the drivers are not installed (make sql-engines)")
    initdb, serve, port = program("initdb"), program("postgres"), free_port()
    with folder_of_another() as (folder, how):
        data, password = folder / "data", folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        initialize = [
            initdb,
            "-D",
            data,
            "-U",
            "admin",
            "-A",
            "scram-sha-256",
            "--pwfile",
            password,
            "-E",
            "UTF8",
            "-N",
        ]
        subprocess.run(initialize, **how, check=True, capture_output=True)
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "16MB",
            "fsync": "off", "max_connections": 20,
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        yield from _serving(
            [serve, "-D", data, *options], how, port, folder, f"postgresql://admin:secret@127.0.0.1:{port}/postgres"
        )


@contextmanager
def mysql() -> Iterator[str]:
    """The address of a new MariaDB server."""
    pytest.importorskip("pymysql", reason="the drivers are not installed (make sql-engines)")
    install, serve, port = program("mariadb-install-db", "mysql_install_db"), program("mariadbd", "mysqld"), free_port()
    with folder_of_another() as (folder, how):
        data = folder / "data"
        initialize = [
            install,
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
        subprocess.run(initialize, **how, check=True, capture_output=True)
        settings = {
            "datadir": data, "socket": folder / "socket", "port": port, "bind-address": "127.0.0.1",
            "innodb-buffer-pool-size": "8M", "innodb-flush-log-at-trx-commit": 0, "pid-file": folder / "pid",
        }  # fmt: skip
        options = ["--no-defaults", "--skip-name-resolve", *(f"--{key}={value}" for key, value in settings.items())]
        yield from _serving([serve, *options], how, port, folder, f"mysql://root@127.0.0.1:{port}")


def _serving(command: list, how: dict, port: int, folder: Path, address: str) -> Iterator[str]:
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, **how, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(server, port, log)
        yield address
    finally:
        server.terminate()
        server.wait(SECONDS)
