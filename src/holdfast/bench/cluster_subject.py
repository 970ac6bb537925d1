"""The cluster under test: `holdfast up` as a process of its own, in a folder of its own.

What must hold: it ends with us, whatever way that is, and nothing of it is left running. What runs is asked
of its `parts.json`, since a part that was killed comes back as another process.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from holdfast.balance.process import end_with_parent
from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, Unavailable
from holdfast.bench.signing import Signer
from holdfast.node.config import REGION_DEFAULT
from holdfast.node.credentials import from_secret
from holdfast.up.folder import SECRET_NAME
from holdfast.up.supervising import PartState, read_state
from holdfast.wire.asking import Got, get

START_S = 60.0
STOP_S = 60.0
PATIENCE_S = 30.0
ASK_TIMEOUT_S = 2.0
ASK_EVERY_S = 0.1
READY = "Ctrl-C stops"

KINDS = ("nodes", "etcd", "Envoy", "load")
"""Of processes; `load` is this one, and what keeps the others running is not counted."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Cluster(Struct, frozen=True):
    """A cluster that serves."""

    home: Path
    clock: Clock

    def parts(self, prefix: str) -> list[PartState]:
        """What runs now: nodes are called n1, n2, ..., members of etcd e1, ..., balancers b1, ..."""
        return [part for part in read_state(self.home) if part.name.startswith(prefix)]

    def signer(self, endpoint: str) -> Signer:
        """Signs requests that are sent to this endpoint, as of now."""
        keys = from_secret((self.home / SECRET_NAME).read_bytes().strip())
        host = urlsplit(endpoint).netloc
        return Signer(host, keys.access_key_id, keys.secret_access_key, REGION_DEFAULT, self.clock.wall())

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, of each kind of process."""
        envoys = [child for part in self.parts("b") for child in _children(part.pid)]
        return {
            "nodes": sum(_cpu_s(part.pid) for part in self.parts("n")),
            "etcd": sum(_cpu_s(part.pid) for part in self.parts("e")),
            "Envoy": sum(_cpu_s(pid) for pid in envoys),
            "load": _cpu_s(os.getpid()),
        }

    async def leader(self) -> PartState:
        """The member of etcd that leads. Raises Bug when nobody does."""
        end = self.clock.monotonic() + PATIENCE_S
        while self.clock.monotonic() < end:
            for part in self.parts("e"):
                if b"\netcd_server_is_leader 1" in (await _fetch(f"{part.endpoint}/metrics")).body:
                    return part
            await self.clock.sleep(ASK_EVERY_S)
        raise Bug("No member of etcd says that it leads.")

    async def until_back(self, killed: PartState) -> None:
        """Until a part that was killed serves again. Raises Bug when it does not."""
        path = "/health" if killed.name.startswith("e") else "/-/ready"
        end = self.clock.monotonic() + PATIENCE_S
        while self.clock.monotonic() < end:
            now = self.parts(killed.name)[0]
            if now.starts > killed.starts and (await _fetch(f"{now.endpoint}{path}")).status == 200:
                return
            await self.clock.sleep(ASK_EVERY_S)
        raise Bug(f"{killed.name} did not come back.")


@asynccontextmanager
async def cluster(home: Path, clock: Clock) -> AsyncIterator[Cluster]:
    """Start one, stop it at the end."""
    home.mkdir(parents=True)  # noqa: ASYNC240 - once, before anything runs
    program = (sys.executable, "-c", "from holdfast.cli.main import main; main()")
    with (home / "up.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *program,
            *("up", "--dir", str(home), "--port", "0"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # so that a Ctrl-C reaches us alone, and it hears of it once
            preexec_fn=end_with_parent,
        )
    reading: asyncio.Task[None] | None = None
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            async for line in process.stdout:
                if line.startswith(READY.encode()):
                    break
            else:
                raise Bug(f"the cluster did not start: {(home / 'up.log').read_text()[-2000:]}")
        reading = asyncio.create_task(_drain(process.stdout))
        yield Cluster(home, clock)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()  # and the kernel kills its parts with it
            await process.wait()
        if reading is not None:
            await reading


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


async def _fetch(url: str) -> Got:
    """An answer; status 0 where there is none."""
    try:
        return await get(url, timeout_s=ASK_TIMEOUT_S)
    except Unavailable:
        return Got(0, b"")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
