"""An etcd of the test's own: one member or several, each a process on free ports of 127.0.0.1.

Real: etcd's own program, its own consensus and files, started as Holdfast starts it. The files are in memory
where the system has such a place, because what a sync costs is measured elsewhere. A missing program fails
the test that needs it.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

from holdfast.index.etcd.members import EtcdMember, command_line
from tests.kit.keeper import leave
from tests.kit.ports import free_ports
from tests.kit.process import die_with_parent

_PATIENCE_S = 60.0
_MEMORY = Path("/dev/shm")
_namespaces = count()


class EtcdProcess:
    """One member. `kill` is a crash; `start` after it recovers."""

    def __init__(
        self,
        member: EtcdMember,
        members: tuple[EtcdMember, ...],
        folder: Path,
        prefix: Sequence[str] = (),
    ) -> None:
        self.member = member
        self.options: tuple[str, ...] = ()
        self._prefix = prefix
        self._members = members
        self._log = folder / f"{member.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run it, and go on at once."""
        command = command_line(self.member, self._members, program=_program())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *command, *self.options],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent if self._prefix else None,
            )

    def wait_until_it_serves(self) -> None:
        """Until a majority agrees with it."""
        until = time.monotonic() + _PATIENCE_S
        while not self.serves():
            assert self.runs(), self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.02)

    def kill(self) -> None:
        """At once, as a power cut of the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It hangs: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def serves(self) -> bool:
        """Whether it says that a majority agrees with it."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"{self.member.client_url}/health", timeout=2) as answer,
        ):
            return b'"true"' in answer.read()
        return False

    def leads(self) -> bool:
        """Whether it says that it is the leader."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"{self.member.client_url}/metrics", timeout=2) as answer,
        ):
            return b"\netcd_server_is_leader 1" in answer.read()
        return False

    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace")


class EtcdCluster:
    """All members."""

    def __init__(self, folder: Path, size: int) -> None:
        ports = free_ports(2 * size)
        self.members = tuple(
            EtcdMember(f"member{n}", folder / f"member{n}", ports[2 * n], ports[2 * n + 1])
            for n in range(size)
        )
        self.processes = [EtcdProcess(member, self.members, folder) for member in self.members]

    def address(self, namespace: str = "") -> str:
        """The address of an index in a namespace that no other test has."""
        hosts = ",".join(f"127.0.0.1:{member.client_port}" for member in self.members)
        return f"etcd://{hosts}/{namespace or f'test{next(_namespaces)}'}"

    def start(self) -> None:
        """All of them."""
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.wait_until_it_serves()

    def leader(self) -> EtcdProcess:
        """Whoever leads."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            for process in self.processes:
                if process.runs() and process.leads():
                    return process
            time.sleep(0.02)
        raise AssertionError("nobody leads")

    def followers(self) -> list[EtcdProcess]:
        """All others."""
        leader = self.leader()
        return [process for process in self.processes if process is not leader]

    def kill(self) -> None:
        """All of them."""
        for process in self.processes:
            process.kill()


@contextmanager
def etcd_cluster(size: int = 1, *options: str) -> Iterator[EtcdCluster]:
    """A cluster that dies with the block."""
    folder = Path(
        tempfile.mkdtemp(prefix="holdfast-etcd-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
    )
    leave(folder)
    cluster = EtcdCluster(folder, size)
    try:
        for process in cluster.processes:
            process.options = options
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)


@cache
def running_etcd() -> EtcdCluster:
    """One member for all tests of this process, begun by the first that asks; it dies with the process."""
    stack = ExitStack()
    cluster = stack.enter_context(etcd_cluster())
    atexit.register(stack.close)
    return cluster


def _program() -> str:
    program = shutil.which("etcd")
    assert program is not None, "etcd is missing: install etcd-server (`.ci/tools` does)"
    return program
