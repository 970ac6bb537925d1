"""Real nodes as real processes: started on a free port, killed with the test, whatever happens.

A `NodeProcess` is `holdfast serve` with a folder of its own. Its output is kept, so that a failing test shows
what the node said. If the test run itself is killed, the kernel kills the node.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore.config import Config as BotoConfig

from holdfast.base.clock import SystemClock
from holdfast.cli.client import NodeClient
from holdfast.node.config import Given, make_config
from holdfast.node.credentials import Credentials, find
from holdfast.node.status import Status
from tests.kit import earlier as history

PROGRAM = Path(sys.executable).with_name("holdfast")
CLIENTS = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin"
REGION = "us-east-1"

_ENDPOINT = re.compile(r"serves S3 at (http://\S+)")
_LAST_LINE = "Ctrl-C"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child, before it becomes another program: be killed when the parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of it until its parent looks."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][:1]
    except FileNotFoundError:
        return False
    return state != "Z"


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without anybody's credentials and S3 settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HOLDFAST_", "S3_"))
    }
    return kept | {"NO_COLOR": "1", "COLUMNS": "200"} | dict(extra or {})


def without_privileges() -> list[str]:
    """What to put before a command so that file permissions count for it, even when root runs tests."""
    return ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []


def run_holdfast(
    *arguments: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 180,
    privileged: bool = True,
) -> subprocess.CompletedProcess[str]:
    """One command of the program, run to its end."""
    prefix = [] if privileged else without_privileges()
    return subprocess.run(
        [*prefix, PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class NodeProcess:
    """`holdfast serve` in `home`, with its data in `home/holdfast-data`. Use as a context manager."""

    def __init__(
        self,
        home: Path,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        prefix: Sequence[str] = (),
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        self.home = home
        self.data = home / "holdfast-data"
        self._arguments = [str(argument) for argument in arguments]
        self._environment = dict(environment or {})
        self._port = port
        self._prefix = [*prefix, *program]
        self._of_today = self._prefix
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self.endpoint = ""

    def __enter__(self) -> "NodeProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            print(f"--- what the node in {self.home} said ---\n{self.output}")  # noqa: T201

    @property
    def output(self) -> str:
        """All that it said, on both channels."""
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.endpoint).port
        assert port is not None
        return port

    def start(self) -> None:
        """Start and return when it takes requests."""
        self._lines.clear()
        self._process = subprocess.Popen(
            [*self._prefix, "serve", "--port", str(self._port), *self._arguments],
            cwd=self.home,
            env=clean_environment(self._environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if found := _ENDPOINT.search(line):
                self.endpoint = found[1]
            if line.startswith(_LAST_LINE):
                break
        else:
            code = self._process.wait(timeout=120)
            raise AssertionError(f"the node ended with {code} instead of serving:\n{self.output}")
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def be_given(self, environment: Mapping[str, str]) -> None:
        """From its next start on, have these variables, too."""
        self._environment |= environment

    def be(self, earlier: Path | None) -> None:
        """From its next start on, run the source that `tests.kit.earlier` unpacked; None: today's."""
        self._environment.pop("PYTHONPATH", None)
        self._prefix = self._of_today
        if earlier is not None:
            self._environment["PYTHONPATH"] = str(earlier)
            self._prefix = list(history.PROGRAM)

    def _drain(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 120) -> int:
        """Wait for its end; the exit code."""
        process = self._process
        assert process is not None
        code = process.wait(timeout=timeout_s)
        if self._reader is not None:
            self._reader.join(timeout=60)
        if process.stdout is not None:
            process.stdout.close()
        self._process = self._reader = None
        return code

    def stop(self) -> int:
        """As Ctrl-C would; the exit code."""
        self.signal(signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """As a power cut would, but for what the kernel holds."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    @property
    def credentials(self) -> Credentials:
        """What it serves under."""
        found = find(self.data, self._environment)
        assert found is not None
        return found

    def client_environment(self) -> dict[str, str]:
        """What a client needs to know, as environment variables that all AWS tools understand."""
        return {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_access_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def s3(self, **settings: Any) -> Any:
        """A boto3 client that tries everything once."""
        settings.setdefault("retries", {"total_max_attempts": 1})
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.credentials.access_key_id,
            aws_secret_access_key=self.credentials.secret_access_key,
            region_name=REGION,
            config=BotoConfig(**settings),
        )

    def run(
        self, *command: str | Path, timeout_s: float = 300, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client that must succeed; programs of `.venv-clients` come first on the path."""
        extra = {"PATH": f"{CLIENTS}:{os.environ['PATH']}"}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.home,
            env=clean_environment(self.client_environment() | extra | dict(environment or {})),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        shown = " ".join(str(part) for part in command)
        assert done.returncode == 0, f"{shown} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def status(self) -> Status:
        """What `holdfast status --json` prints, without starting a program for it."""
        client = NodeClient(make_config([Given(data=self.data)], self.home), SystemClock())
        return msgspec.json.decode(client.ask("/-/status"), type=Status)

    def holdfast(self, *arguments: str | Path, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """A command of the program for this node."""
        return run_holdfast(*arguments, cwd=self.home, environment=self._environment, timeout_s=timeout_s)


def wait_until(
    what: str, holds: Callable[[], bool], timeout_s: float = 120, *, look_every_s: float = 0.2
) -> None:
    """Ask until it holds: a real process cannot be waited for in any other way."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        threading.Event().wait(look_every_s)


def delete_store(path: Path) -> None:
    """As `rm -rf`, said again when the node put something into a folder that was just being emptied."""

    def gone() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    wait_until(f"{path} to go", gone, look_every_s=0.01)
