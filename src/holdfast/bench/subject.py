"""The node under test: a process of its own, in a folder of its own, with faults on request.

Run as `python -m holdfast.bench.subject DATA [SLOT GET_MS PUT_MS | scrub]`: serves the embedded default
from DATA on a free port; with a slot, every read of that store takes GET_MS longer and every write PUT_MS;
with `scrub`, that chore always has something to do, at any rate. The wrapper sits below the measuring,
where a slow disk would.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from holdfast.base.clock import Clock, SystemClock
from holdfast.base.errors import Bug
from holdfast.base.randomness import SystemRandomness
from holdfast.bench.signing import Signer
from holdfast.node.config import ChoresSettings, Given, make_config
from holdfast.node.credentials import Credentials, find
from holdfast.node.running import run_node
from holdfast.node.runtime import read_runtime
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.port import Store

HOLDS_NAME = "loop-holds"
START_S = 30.0
STOP_S = 30.0


_watches: list[asyncio.Task[None]] = []


class Slow(Struct, frozen=True):
    """A store made slow on purpose; seconds that each call takes longer."""

    slot: str
    get_s: float
    put_s: float


class Subject(Struct, frozen=True):
    """A node that serves."""

    data: Path
    host: str
    port: int
    region: str
    credentials: Credentials
    pid: int

    def signer(self, clock: Clock) -> Signer:
        """Signs requests to it, as of now."""
        keys = self.credentials
        host = f"{self.host}:{self.port}"
        return Signer(host, keys.access_key_id, keys.secret_access_key, self.region, clock.wall())

    def resident_peak_bytes(self) -> int:
        """The most memory it ever held."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise Bug("the kernel does not say how much memory the node held")

    def longest_hold_s(self, begin: float, end: float) -> float:
        """How long the loop was held at most between two monotonic times."""
        holds = [line.split() for line in (self.data / HOLDS_NAME).read_text().splitlines()]
        return max((float(hold) for at, hold in holds if begin <= float(at) <= end), default=0.0)


@asynccontextmanager
async def subject(
    data: Path, clock: Clock, slow: Slow | None = None, *, scrub: bool = False
) -> AsyncIterator[Subject]:
    """Start a node on `data`, stop it at the end."""
    arguments = [sys.executable, "-m", "holdfast.bench.subject", str(data)]
    if slow is not None:
        arguments += [slow.slot, str(slow.get_s * 1e3), str(slow.put_s * 1e3)]
    elif scrub:
        arguments.append("scrub")
    process = await asyncio.create_subprocess_exec(*arguments)
    try:
        deadline = clock.monotonic() + START_S
        while (runtime := read_runtime(data)) is None or runtime.pid != process.pid:
            if process.returncode is not None or clock.monotonic() > deadline:
                raise Bug("the node under test did not start")
            await clock.sleep(0.05)
        credentials = find(data, {})
        assert credentials is not None
        host, port = runtime.endpoint.removeprefix("http://").rsplit(":", 1)
        yield Subject(data, host, int(port), runtime.region, credentials, process.pid)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _slowed(store: Store, slow: Slow, clock: Clock) -> Store:
    script = FaultScript(delay_s=(slow.get_s, slow.get_s), put_delay_s=(slow.put_s, slow.put_s))
    return FaultyStore(store, script, clock=clock, randomness=SystemRandomness())


def _watch_loop(data: Path, clock: Clock) -> None:
    """Note the longest hold of the loop in every tenth of a second, with the (system-wide) time of it.

    A timer of a millisecond is as late as the loop was held; what the scheduler and the interpreter lock
    add is in it, too.
    """

    async def watch() -> None:
        with (data / HOLDS_NAME).open("w", buffering=1) as file:
            while True:
                longest, end = 0.0, clock.monotonic() + 0.1
                while (before := clock.monotonic()) < end:
                    await clock.sleep(0.001)
                    longest = max(longest, clock.monotonic() - before - 0.001)
                file.write(f"{end} {longest}\n")

    _watches.append(asyncio.get_running_loop().create_task(watch()))


def main() -> None:
    """See above."""
    slow = None
    if len(sys.argv) == 5:
        slow = Slow(sys.argv[2], float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3)
    chores = ChoresSettings(scrub_pass_s=1.0, scrub_rate_bytes=0) if sys.argv[2:] == ["scrub"] else None
    data, clock = Path(sys.argv[1]), SystemClock()

    def wrap(slot: str, store: Store) -> Store:
        return _slowed(store, slow, clock) if slow is not None and slot == slow.slot else store

    run_node(
        make_config([Given(data=data, port=0, chores=chores)], data),
        os.environ,
        clock,
        SystemRandomness(),
        on_ready=lambda node: _watch_loop(data, clock),
        on_stopping=lambda: None,
        wrap=wrap,
    )


if __name__ == "__main__":
    main()
