"""Real balancers as real processes: `holdfast balance` on a free port, gone with the test, Envoy too."""

import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from holdfast.balance.settings import DIRECTORY_DEFAULT
from holdfast.balance.status import read_status
from tests.kit.process import PROGRAM, clean_environment, die_with_parent, is_running, wait_until

SECRET = "what-the-nodes-know-it-by"
_READY = re.compile(r"takes requests at (https?://\S+)")


class BalancerProcess:
    """`holdfast balance` in `home`, before `nodes`. `lines` are more lines of its file. A context manager."""

    def __init__(
        self,
        home: Path,
        nodes: Sequence[str],
        lines: Sequence[str] = (),
        port: int = 0,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        *,
        seeds: Sequence[str] = (),
    ) -> None:
        self.home = home
        self._prefix = prefix
        home.mkdir(exist_ok=True)
        self._lines = [f'listen = "{host}:{port}"', "threads = 1", "notice = 0", *lines]
        if not any(line.startswith("secret") for line in lines):
            self._lines.append(f'secret = "{SECRET}"')
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._said: list[str] = []
        self.endpoint = ""
        self.know(nodes, seeds)

    def know(self, nodes: Sequence[str], seeds: Sequence[str] = ()) -> None:
        """Write its file: these are the nodes from now on, or those who tell of them."""
        named = ", ".join(node if node.startswith("{") else f'"{node}"' for node in nodes)
        top = [line for line in self._lines if not line.startswith("[")]
        tables = [line for line in self._lines if line.startswith("[")]
        asked = [f"seeds = {list(seeds)}"] if seeds else []
        text = "\n".join([f"nodes = [{named}]", *asked, *top, *tables]) + "\n"
        (self.home / "balance.toml").write_text(text)

    def __enter__(self) -> "BalancerProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            log = self.home / "holdfast-balance" / "envoy.log"
            told = log.read_text() if log.is_file() else ""
            print(f"--- what the balancer in {self.home} said ---\n{self.output}\n{told}")  # noqa: T201

    @property
    def output(self) -> str:
        """All that it said."""
        return "".join(self._said)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def envoys(self) -> list[int]:
        """The Envoy processes it has."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(word) for word in children.read_text().split()]

    def start(self) -> None:
        """Start and return when it takes requests."""
        self._said.clear()
        self._process = subprocess.Popen(
            [*self._prefix, PROGRAM, "balance"],
            cwd=self.home,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line)
            if found := _READY.search(line):
                self.endpoint = found[1]
                break
        else:
            code = self._process.wait(timeout=30)
            raise AssertionError(f"the balancer ended with {code} instead of balancing:\n{self.output}")
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._said.extend(self._process.stdout)

    def stop(self) -> int:
        """As Ctrl-C would; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._end()

    def kill(self) -> None:
        """End it at once, and Envoy with it."""
        if self._process is None:
            return
        envoys = self.envoys if self._process.poll() is None else []
        self._process.kill()
        self._end()
        for pid in envoys:
            wait_until(f"Envoy {pid} to end with its balancer", lambda pid=pid: not is_running(pid))

    def _end(self) -> int:
        process = self._process
        assert process is not None
        code = process.wait(timeout=60)
        if self._reader is not None:
            self._reader.join(timeout=5)
        if process.stdout is not None:
            process.stdout.close()
        self._process = self._reader = None
        return code

    def status(self) -> Any:
        """What `holdfast balance status --json` prints, without starting a program for it."""
        return msgspec.to_builtins(read_status(self.home / DIRECTORY_DEFAULT, tls=False))
