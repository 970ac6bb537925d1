"""Starts the parts, stage by stage, and starts again what ends.

What must hold: a stage begins when the one before is up; while all is being started, a part that ends three
times is the end of it, with its last words; afterwards it is started again, later and later if it keeps
ending; and nothing is left running when we end, whatever way that is.
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from holdfast.balance.process import end_with_parent, last_line
from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.up.layout import STAGES, Part
from holdfast.wire.asking import get

START_S = 120.0
STOP_S = 45.0
STARTS_MAX = 3
AGAIN_S = 1.0
ASK_EVERY_S = 0.1
ASK_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 10.0
CALM_S = 10.0
STATE_NAME = "parts.json"


class PartState(Struct, frozen=True):
    """One line of `parts.json`: what runs, for whoever wants to look, or to send it a signal."""

    name: str
    stage: str
    endpoint: str
    pid: int
    starts: int


def find_etcd() -> str:
    """The program. Raises InvalidInput when it is not installed."""
    found = shutil.which("etcd")
    if found is None:
        raise InvalidInput(
            "etcd, which keeps the index of a cluster, is not installed:",
            hint="on Debian or Ubuntu say `apt-get install etcd-server`; else put etcd on the path.",
        )
    return found


class Supervisor:
    """Runs the parts of one cluster. `tell` is told what happens, `progress` how much of a stage is up."""

    def __init__(
        self,
        parts: Sequence[Part],
        home: Path,
        clock: Clock,
        tell: Callable[[str], None],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._parts = parts
        self._home = home
        self._clock = clock
        self._tell = tell
        self._progress = progress
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._starts: dict[str, int] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def run(self, stopping: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Until `stopping`. Raises Unavailable when a part does not come up."""
        waiting = asyncio.create_task(stopping.wait())
        try:
            starting = asyncio.create_task(self._start_all())
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return
            starting.result()
            self._keepers = [asyncio.create_task(self._keep(part)) for part in self._parts]
            on_ready()
            await asyncio.wait({waiting, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()  # only our own mistake ends one
        finally:
            waiting.cancel()
            await self._stop_all()

    async def _start_all(self) -> None:
        for stage, name in enumerate(STAGES):
            chosen = [part for part in self._parts if part.stage == stage]
            self._progress(name, 0, len(chosen))
            for part in chosen:
                await self._start(part)
            coming = asyncio.as_completed([self._wait_until_up(part) for part in chosen])
            for up, finished in enumerate(coming, start=1):
                await finished
                self._progress(name, up, len(chosen))

    async def _start(self, part: Part) -> None:
        with self._log(part).open("ab") as log:
            self._processes[part.name] = await asyncio.create_subprocess_exec(
                *(_program() if part.holdfast else ()),
                *part.command,
                cwd=part.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._starts[part.name] = self._starts.get(part.name, 0) + 1
        self._write_state()

    async def _wait_until_up(self, part: Part) -> None:
        deadline = self._clock.monotonic() + START_S
        while not await _answers(part.ready_url):
            process = self._processes[part.name]
            ended = process.returncode is not None
            if ended and self._starts[part.name] < STARTS_MAX:
                # Its port may have been a passing connection's.
                await self._clock.sleep(AGAIN_S)
                await self._start(part)
            elif ended or self._clock.monotonic() > deadline:
                how = "does not come up" if process.returncode is None else f"ended ({process.returncode})"
                raise Unavailable(
                    f"{part.name} {how}: {last_line(self._log(part)) or 'it said nothing'}",
                    hint=f"See {self._log(part)}.",
                )
            await self._clock.sleep(ASK_EVERY_S)

    async def _keep(self, part: Part) -> None:
        wait_s = BACKOFF_FIRST_S
        while True:
            began = self._clock.monotonic()
            code = await self._processes[part.name].wait()
            if self._clock.monotonic() - began > CALM_S:
                wait_s = BACKOFF_FIRST_S
            self._tell(f"{part.name} ended ({code}) and is started again.")
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_LAST_S)
            await self._start(part)

    async def _stop_all(self) -> None:
        """The last stage first, so that each finds what it needs until its end."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for stage in reversed(range(len(STAGES))):
            left = [
                self._processes[part.name]
                for part in self._parts
                if part.stage == stage and part.name in self._processes
            ]
            for process in left:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await asyncio.gather(*(process.wait() for process in left))
            await self._kill(left)
        (self._home / STATE_NAME).unlink(missing_ok=True)

    async def _kill(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        for process in processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*(process.wait() for process in processes))

    def kill_all(self) -> None:
        """At once, without a word."""
        for process in self._processes.values():
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()

    def _log(self, part: Part) -> Path:
        return self._home / "logs" / f"{part.name}.log"

    def _write_state(self) -> None:
        found = [
            PartState(
                part.name,
                STAGES[part.stage],
                part.endpoint,
                self._processes[part.name].pid,
                self._starts[part.name],
            )
            for part in self._parts
            if part.name in self._processes
        ]
        temporary = self._home / f".{STATE_NAME}.new"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        temporary.replace(self._home / STATE_NAME)


def read_state(home: Path) -> list[PartState]:
    """What runs in a folder."""
    return msgspec.json.decode((home / STATE_NAME).read_bytes(), type=list[PartState])


def _program() -> tuple[str, ...]:
    beside = Path(sys.executable).with_name("holdfast")
    if os.access(beside, os.X_OK):
        return (str(beside),)
    return (sys.executable, "-c", "from holdfast.cli.main import main; main()")


async def _answers(url: str) -> bool:
    """Whether it answers with 200."""
    try:
        return (await get(url, timeout_s=ASK_TIMEOUT_S)).status == 200
    except Unavailable:
        return False
