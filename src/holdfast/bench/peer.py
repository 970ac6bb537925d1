"""What the peer protocol costs: `python -m holdfast.bench --only peer`.

The peer is a process of its own (`python -m holdfast.bench.peer`), which exports a store in memory, so that
what is measured is the protocol; the caller is this one. Prints requests a second, latencies, and the
processor time that a request costs on each side. Bounded in requests.
"""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from holdfast.base.clock import Clock, SystemClock
from holdfast.base.errors import Bug
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SystemRandomness
from holdfast.stores.memory import MemoryStore
from holdfast.stores.peer import PeerClient, PeerIdentity, PeerServer, PeerStore
from holdfast.stores.port import Range

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = "holdfast-bench"
STORE = StoreId("bench")
SECRET = b"not a secret: this is a bench"
TIMEOUT_S = 60.0
START_S = 30.0
_KEPT = 16


async def _serve() -> None:
    """The peer: says its port on the standard output, serves until it is told to end."""
    clock, randomness = SystemClock(), SystemRandomness()
    store = MemoryStore(STORE, clock=clock, randomness=randomness)
    for name, size in (("4k", 4 * KIB), ("1m", MIB)):
        await store.put(name, [randomness.token(size)], timeout_s=TIMEOUT_S)
    identity = PeerIdentity(CLUSTER, "bench-peer")
    server = PeerServer({STORE: store}, identity, SECRET, clock, randomness, port=0)
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await ended.wait()
    await server.stop(1.0)


class _Run:
    """Runs against one peer."""

    def __init__(self, store: PeerStore, pid: int, clock: Clock) -> None:
        self._store = store
        self._pid = pid
        self._clock = clock
        self._puts = 0
        self._contents = SystemRandomness().token(4 * KIB), SystemRandomness().token(MIB)

    async def _put(self, content: bytes) -> None:
        """A put, and the removal of an older one, so that memory stays bounded; both are counted as one."""
        number, self._puts = self._puts, self._puts + 1
        await self._store.put(f"put-{number}", [content], timeout_s=TIMEOUT_S)
        if number >= _KEPT:
            await self._store.delete(f"put-{number - _KEPT}", timeout_s=TIMEOUT_S)

    async def all(self, share: float) -> list[tuple[str, ...]]:
        """Every run, as rows of the table."""
        small, large = self._contents
        return [
            await self._row("GET 4 KiB", int(20_000 * share), 1, "4k", 4 * KIB),
            await self._row("GET 4 KiB", int(20_000 * share), 16, "4k", 4 * KIB),
            await self._row("PUT and DELETE 4 KiB", int(5_000 * share), 16, small, 4 * KIB),
            await self._row("GET 1 MiB", int(1_000 * share), 4, "1m", MIB),
            await self._row("PUT and DELETE 1 MiB", int(500 * share), 4, large, MIB),
        ]

    async def _row(self, what: str, count: int, width: int, blob: str | bytes, size: int) -> tuple[str, ...]:
        """GETs of the blob of that name, or PUTs of that content."""
        latencies: list[float] = []
        left = count

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                began = self._clock.monotonic()
                if isinstance(blob, str):
                    await self._store.get(blob, [Range(0, size)], timeout_s=TIMEOUT_S)
                else:
                    await self._put(blob)
                latencies.append(self._clock.monotonic() - began)

        mine, theirs, began = _own_cpu_s(), _cpu_s(self._pid), self._clock.monotonic()
        await asyncio.gather(*(worker() for _ in range(width)))
        seconds = self._clock.monotonic() - began
        mine, theirs = _own_cpu_s() - mine, _cpu_s(self._pid) - theirs
        latencies.sort()
        done = len(latencies)
        return (
            what,
            f"{done} / {width}",
            f"{done / seconds:,.0f}",
            f"{done * size / seconds / 1e6:,.0f}",
            f"{latencies[done // 2] * 1e3:.2f}",
            f"{latencies[done * 99 // 100] * 1e3:.2f}",
            f"{mine / done * 1e6:,.0f}",
            f"{theirs / done * 1e6:,.0f}",
        )


async def measure_peer(console: Console, share: float) -> None:
    """Start a peer, run, print."""
    clock = SystemClock()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "holdfast.bench.peer", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            said = await process.stdout.readline()
        if not said:
            raise Bug("The peer of the bench did not start.")
        identity = PeerIdentity(CLUSTER, "bench-caller")
        randomness = SystemRandomness()
        client = PeerClient(f"127.0.0.1:{int(said)}", "bench-peer", identity, SECRET, randomness)
        table = Table(title="a store of a peer, over loopback; both on the same machine")
        for column in ("request", "count / in flight", "requests/s", "MB/s", "p50 ms", "p99 ms"):
            table.add_column(column, justify="left" if column == "request" else "right")
        table.add_column("us caller", justify="right")
        table.add_column("us peer", justify="right")
        run = _Run(PeerStore(STORE, client), process.pid, clock)
        await run.all(share / 4)  # to be warm
        for row in await run.all(share):
            table.add_row(*row)
        await client.close()
        console.print(table)
    finally:
        process.terminate()
        await process.wait()


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_s(pid: int) -> float:
    """Processor time of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    uvloop.run(_serve())
