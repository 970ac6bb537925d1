"""A process under a supervisor of the test's own, which hears what it tells as systemd would.

It dies with the test. What it prints is kept for when the test fails.
"""

import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.kit.process import clean_environment, die_with_parent

PATIENCE_S = 90.0


class Supervised:
    """A command that runs while the context does, and the socket at which it is heard."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        watchdog_s: float = 0.0,
    ) -> None:
        self._command = list(map(str, command))
        self._log = folder / f"{Path(self._command[0]).name}-{id(self)}.log"
        path = folder / f"notify-{id(self)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE_S)
        wanted = {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else {}
        self._environment = {"NOTIFY_SOCKET": str(path), **wanted, **dict(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Supervised":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=clean_environment(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._socket.close()
        if error is not None:
            print(f"--- what {self._command} said ---\n{self.output}")  # noqa: T201

    @property
    def output(self) -> str:
        """All that it printed."""
        return self._log.read_text()

    def hear(self, words: str) -> None:
        """Wait until it says so. Fails after `PATIENCE_S`."""
        while self._socket.recv(4096).decode() != words:
            pass

    def stop(self) -> int:
        """As a supervisor does; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        return self._process.wait(timeout=PATIENCE_S)
