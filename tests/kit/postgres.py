"""A PostgreSQL server of the test's own, in a folder of its own, on a free port of 127.0.0.1.

Real: initdb, a real data directory, real syncs. PostgreSQL refuses to run as root, so that root runs it as
`postgres`, the user that Debian's package makes. A missing server fails the test that needs it.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from tests.kit.keeper import leave
from tests.kit.ports import free_ports

START_S = 120.0
_ROOT = os.geteuid() == 0
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "wal_level": "replica",
    "log_min_messages": "warning",
    "dynamic_shared_memory_type": "mmap",  # in its folder, and gone with it, also after a crash
}


class PostgresServer:
    """One server. `kill` is a crash; `start` after it recovers."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, database: str = "postgres") -> str:
        return f"postgres://holdfast@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process that all others are children of."""
        assert self._process is not None
        return self._process.pid

    def start(self, **settings: str) -> None:
        """Run it and wait until it answers."""
        options = _SETTINGS | settings | {"port": str(self.port), "unix_socket_directories": ""}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _as_owner([_program("postgres"), "-D", str(self.folder / "data"), *arguments]),
                stdout=log,
                stderr=log,
            )
        ready = [_program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if subprocess.run([*ready, "-t", "1"], check=False).returncode == 0:
                return
            threading.Event().wait(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        """Every process of it, at once, as a power cut of the process."""
        if self._process is not None:
            for pid in _family(self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """At once, but taking along what it has of the machine's shared memory, as a crash does not."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
        self.kill()

    def pause(self) -> None:
        """It hangs: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        for pid in _family(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def run(self, sql: str, database: str = "postgres") -> str:
        """What psql says."""
        answer = subprocess.run(
            [_program("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql, self.address(database)],
            check=True,
            capture_output=True,
            text=True,
        )
        return answer.stdout.strip()

    def wait_until(self, sql: str) -> None:
        """Ask until it says true."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.run(f"SELECT ({sql}), pg_sleep(0.1)").startswith("t"):
                return
        raise AssertionError(f"it never came true that {sql}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that dies with the block."""
    with _folder() as server:
        data = str(server.folder / "data")
        make = [_program("initdb"), "-D", data, "-U", "holdfast", "--auth=trust", "--no-sync"]
        _run(_as_owner([*make, "--encoding=UTF8", "--locale=C"]))
        server.start()
        yield server


@contextmanager
def postgres_standby(primary: PostgresServer, name: str) -> Iterator[PostgresServer]:
    """A server that follows `primary` under `name`, and dies with the block."""
    with _folder() as server:
        data = str(server.folder / "data")
        source = f"host=127.0.0.1 port={primary.port} user=holdfast application_name={name}"
        copy = [_program("pg_basebackup"), "-D", data, "-d", source, "-R", "-c", "fast", "-X", "stream"]
        _run(_as_owner([*copy, "--no-sync"]))
        server.start()
        yield server


@contextmanager
def _folder() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    leave(folder)
    if _ROOT:
        shutil.chown(folder, "postgres", "postgres")
    server = PostgresServer(folder, *free_ports(1))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


@cache
def running_server() -> PostgresServer:
    """One server for all tests of this process, begun by the first that asks; it dies with the process."""
    stack = ExitStack()
    server = stack.enter_context(postgres_server())
    atexit.register(stack.close)
    return server


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    program = shutil.which(name) if not found else str(found[-1])
    assert program is not None, f"{name} is missing: install postgresql (`.ci/tools` does)"
    return program


def _as_owner(command: list[str]) -> list[str]:
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command] if _ROOT else command
    )


def _family(root: int) -> list[int]:
    """A process and its children, which are all that a server has."""
    children = Path(f"/proc/{root}/task/{root}/children")
    with suppress(FileNotFoundError):
        return [root, *(int(pid) for pid in children.read_text().split())]
    return [root]
