"""`make bench`: what a node does, in health, with two stores gone, with one store slow.

Prints, for 4 KiB, 1 MiB and 64 MiB objects: requests a second, bytes a second, p50, p99, p99.9, and the
node's peak memory. Every run is bounded in requests; the load generator runs on the same machine and
says so. What is compared is measured in one run, side by side: the plain writes of `baseline` next to
the PUTs, the degraded reads next to the healthy ones. `--only chores` runs `holdfast.bench.chores` alone,
`--only peer` runs `holdfast.bench.peer`, `--only index` runs `holdfast.bench.index`, `--only cluster` runs
`holdfast.bench.cluster`.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from holdfast.base.clock import Clock, SystemClock
from holdfast.bench.baseline import write_plain
from holdfast.bench.chores import measure_chores
from holdfast.bench.cluster import measure_cluster
from holdfast.bench.index import measure_index
from holdfast.bench.load import Request, Sample, run_load
from holdfast.bench.peer import measure_peer
from holdfast.bench.subject import Slow, Subject, subject

KIB, MIB = 1 << 10, 1 << 20
BUCKET = "bench"
SLOW_SLOT = "disk3"


class Size(Struct, frozen=True):
    """One kind of object and how much of it is sent."""

    name: str
    size: int
    puts: int
    gets: int
    width: int


SIZES = (
    Size("4 KiB", 4 * KIB, 10_000, 30_000, 64),
    Size("1 MiB", MIB, 200, 600, 8),
    Size("64 MiB", 64 * MIB, 8, 16, 2),
)
LISTED = 100_000
WARM_S = 4.0
PARTS = ("chores", "peer", "index", "cluster")


class Bench:
    """The runs against one node, and the table they fill."""

    def __init__(self, node: Subject, clock: Clock, table: Table, state: str, share: float) -> None:
        self.node = node
        self._clock = clock
        self._table = table
        self._state = state
        self._share = share
        self._signer = node.signer(clock)

    async def create_bucket(self) -> None:
        """The bucket of all runs."""
        await self._run([Request(self._signer.head("PUT", f"/{BUCKET}"))], 1)

    async def put(self, size: Size, prefix: str) -> Sample:
        """New objects under `prefix`."""
        body = os.urandom(size.size)  # noqa: TID251 - contents, not chance
        count = max(1, int(size.puts * self._share))
        heads = [self._signer.head("PUT", f"/{BUCKET}/{prefix}{n}", body=body) for n in range(count)]
        requests = [Request(head, body) for head in heads]
        return self._row(f"PUT {size.name}", size, await self._run(requests, size.width))

    async def get(self, size: Size, prefix: str) -> Sample:
        """The objects that `put` made under `prefix`, each in turn."""
        there = max(1, int(size.puts * self._share))
        heads = [self._signer.head("GET", f"/{BUCKET}/{prefix}{number}") for number in range(there)]
        count = max(1, int(size.gets * self._share))
        requests = [Request(heads[number % there], answer_bytes=size.size) for number in range(count)]
        # Warm in both senses: the page cache filled, and slow stores given the time to be noticed.
        end = self._clock.monotonic() + WARM_S
        while self._clock.monotonic() < end:
            await self._run(requests[: max(1, count // 10)], size.width)
        return self._row(f"GET {size.name}", size, await self._run(requests, size.width))

    async def base_latency(self) -> tuple[float, float]:
        """Median seconds of a 4 KiB GET and PUT alone: what "20 times slower" is 20 times of."""
        body = os.urandom(4 * KIB)  # noqa: TID251 - contents, not chance
        puts = [Request(self._signer.head("PUT", f"/{BUCKET}/base{n}", body=body), body) for n in range(50)]
        gets = [Request(self._signer.head("GET", f"/{BUCKET}/base{n}"), answer_bytes=4096) for n in range(50)]
        put = await self._run(puts, 1)
        return (await self._run(gets, 1)).quantile(0.5), put.quantile(0.5)

    async def large(self, mebibytes: int) -> None:
        """One object of so many MiB, both ways, its body not signed over."""
        size = Size(f"{mebibytes // 1024} GiB", mebibytes * MIB, 1, 1, 1)
        body = os.urandom(MIB)  # noqa: TID251 - contents, not chance
        head = self._signer.head("PUT", f"/{BUCKET}/large", body=body, times=mebibytes)
        put = await self._run([Request(head, body, mebibytes)], 1)
        self._row(f"PUT {size.name}", size, put)
        get = Request(self._signer.head("GET", f"/{BUCKET}/large"), answer_bytes=size.size)
        self._row(f"GET {size.name}", size, await self._run([get], 1))

    async def listing(self, keys: int) -> float:
        """Keys a second over a bucket's whole listing, 1,000 a page; the keys are made first."""
        await self._run([Request(self._signer.head("PUT", "/listed"))], 1)
        puts = [
            Request(self._signer.head("PUT", f"/listed/{number:08d}", body=b"x"), b"x")
            for number in range(keys)
        ]
        await self._run(puts, 64)
        began = self._clock.monotonic()
        for start in range(0, keys, 1000):
            query: tuple[tuple[str, str], ...] = (("list-type", "2"),)
            if start:
                query += (("start-after", f"{start - 1:08d}"),)
            await self._run([Request(self._signer.head("GET", "/listed", query))], 1)
        return keys / (self._clock.monotonic() - began)

    async def _run(self, requests: list[Request], width: int) -> Sample:
        return await run_load(self.node.host, self.node.port, requests, width, self._clock)

    def _row(self, what: str, size: Size, sample: Sample) -> Sample:
        self._table.add_row(
            self._state,
            what,
            f"{len(sample.latencies)} / {size.width}",
            f"{sample.rate:,.0f}",
            f"{sample.bytes_per_s / 1e6:,.0f}",
            *(f"{sample.quantile(fraction) * 1e3:,.1f}" for fraction in (0.5, 0.99, 0.999)),
        )
        return sample


async def _measure(console: Console, folder: Path, share: float) -> None:
    clock = SystemClock()
    table = Table(title="one node, rs-4-2 on six directories of one device; load from the same machine")
    for column in (
        "state",
        "request",
        "count / in flight",
        "requests/s",
        "MB/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
    ):
        table.add_column(column, justify="left" if column in ("state", "request") else "right")
    facts: list[str] = []
    data = folder / "node"
    async with subject(data, clock) as node:
        bench = Bench(node, clock, table, "healthy", share)
        await bench.create_bucket()
        base = await bench.base_latency()
        healthy = await _healthy(console, bench, folder, clock, facts)
        await _gone(console, Bench(node, clock, table, "two stores gone", share), healthy, facts)
        facts.append(f"peak memory of the node so far: {node.resident_peak_bytes() / MIB:,.0f} MiB")
    shutil.rmtree(data)
    slow = Slow(SLOW_SLOT, 20 * base[0], 20 * base[1])
    async with subject(data, clock, slow) as node:
        state = f"{SLOW_SLOT} +{slow.get_s * 1e3:.0f}/+{slow.put_s * 1e3:.0f} ms"
        await _slow(console, Bench(node, clock, table, state, share), healthy, facts)
    shutil.rmtree(data)
    async with subject(data, clock) as node:
        bench = Bench(node, clock, table, "healthy", share)
        await bench.create_bucket()
        console.print("one large object …")
        await bench.large(max(1, int(5 * share)) * 1024)
        facts.append(
            f"peak memory of a node that took and gave {max(1, int(5 * share))} GiB in one object: "
            f"{node.resident_peak_bytes() / MIB:,.0f} MiB"
        )
        console.print("listing …")
        keys = int(LISTED * share) // 1000 * 1000
        facts.append(f"listing {keys:,} keys, 1,000 a page: {await bench.listing(keys):,.0f} keys/s")
    console.print(table)
    for fact in facts:
        console.print(fact)


async def _healthy(
    console: Console, bench: Bench, folder: Path, clock: Clock, facts: list[str]
) -> dict[str, Sample]:
    healthy: dict[str, Sample] = {}
    for size in SIZES:
        console.print(f"healthy, {size.name} …")
        began = clock.monotonic()
        put = await bench.put(size, f"{size.size}-")
        if size.size == 64 * MIB:
            facts.append(_beside_plain(put, folder, clock))
        healthy[size.name] = await bench.get(size, f"{size.size}-")
        if size.size == 64 * MIB:
            hold = bench.node.longest_hold_s(began, clock.monotonic())
            facts.append(f"longest hold of the loop during 64 MiB PUT and GET: {hold * 1e3:.1f} ms")
    return healthy


async def _gone(console: Console, bench: Bench, healthy: dict[str, Sample], facts: list[str]) -> None:
    for slot in ("disk5", "disk6"):
        shutil.rmtree(bench.node.data / slot)
    for size in SIZES:
        console.print(f"two stores gone, {size.name} …")
        sample = await bench.get(size, f"{size.size}-")
        facts.append(
            f"GET {size.name}, two stores gone: {sample.rate / healthy[size.name].rate:.0%} of healthy"
        )
        await bench.put(size, f"gone-{size.size}-")


async def _slow(console: Console, bench: Bench, healthy: dict[str, Sample], facts: list[str]) -> None:
    await bench.create_bucket()
    for size in SIZES:
        console.print(f"one store slow, {size.name} …")
        await bench.put(size, f"{size.size}-")
        sample = await bench.get(size, f"{size.size}-")
        ratio = sample.quantile(0.99) / healthy[size.name].quantile(0.99)
        facts.append(f"GET {size.name}, one store slow: p99 {ratio:.1f}x healthy")


def _beside_plain(put: Sample, folder: Path, clock: Clock) -> str:
    """PUTs against plain synced writes of the same shard bytes, right after them."""
    folders = [folder / f"plain-{number}" for number in range(6)]
    for each in folders:
        each.mkdir(exist_ok=True)
    rounds = 4 * len(put.latencies)
    seconds = write_plain(folders, 4 * MIB, rounds, clock)
    plain = rounds * 16 * MIB / seconds
    return (
        f"PUT 64 MiB: {put.bytes_per_s / plain:.0%} of plain synced writes of the same shard bytes "
        f"({plain / 1e6:,.0f} MB/s of object bytes)"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="holdfast.bench", description="What a node does. All if not told otherwise."
    )
    parser.add_argument("--only", choices=PARTS, default="", help="that part alone")
    parser.add_argument("folder", nargs="?", type=Path, default=Path.cwd(), help="where to work")
    parser.add_argument("share", nargs="?", type=float, default=1.0, help="of the full counts: 0.5 is half")
    parser.add_argument("engines", nargs="*", help="more engines of the index to compare: postgres://...")
    return parser.parse_args()


def main() -> None:
    """See `--help`."""
    console = Console(width=150)
    given = _arguments()
    only, parent, share = given.only, given.folder, given.share
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load before: {load:.1f}; working in {parent}")
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=parent))
    try:
        if not only:
            uvloop.run(_measure(console, folder, share))
        if only in {"", "chores"}:
            uvloop.run(measure_chores(console, folder, share))
        if only in {"", "peer"}:
            uvloop.run(measure_peer(console, share))
        if only in {"", "index"}:
            uvloop.run(measure_index(console, folder, share, given.engines))
        if only in {"", "cluster"}:
            uvloop.run(measure_cluster(console, folder, share))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
