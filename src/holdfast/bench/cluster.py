"""What a cluster does, and where its time goes: `python -m holdfast.bench --only cluster FOLDER`.

`holdfast up` (three nodes, three members of etcd, two balancers) and the load generator, all on this
machine. First objects of 4 KiB, put and read through the balancers and straight at a node: how fast, and
the processor seconds that 1,000 requests cost each kind of process. Then faults under the same load, the
clients in a closed loop: a node killed, the leader of etcd killed, next to the same time without a fault.

Every run is bounded in requests and in seconds, all together takes less than two minutes.
"""

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator
from itertools import count, cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from holdfast.base.clock import Clock, SystemClock
from holdfast.bench.cluster_subject import KINDS, Cluster, cluster
from holdfast.bench.load import Outcome, Request, Sample, run_load, run_through
from holdfast.up.supervising import PartState

SIZE = 4096
BUCKET = "bench"
WIDTHS = (8, 32, 96)
PUTS, GETS = 6_000, 16_000
DISTINCT = 1_000
WARM_S, RUN_S = 1.0, 3.0
FAULT_S = 5.0
FAULT_AFTER_S = 1.0
FAULT_WIDTH = 4
"""Clients that put, and as many that get, at each balancer."""
FAULT_REQUESTS = 20_000
"""Of each kind at each balancer at most."""
TOLD_MAX = 3
"""Failures of a run."""
AIMS = {"PUT": 1_200, "GET": 2_500}
"""Requests a second through the balancers."""


class Bounded:
    """Requests until there are no more, or the time is over, which begins with the first. `given` counts."""

    def __init__(self, requests: Iterable[Request], seconds: float, clock: Clock) -> None:
        self._requests = iter(requests)
        self._seconds = seconds
        self._clock = clock
        self._end: float | None = None
        self.given = 0

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        now = self._clock.monotonic()
        if self._end is None:
            self._end = now + self._seconds
        if now >= self._end:
            raise StopIteration
        request = next(self._requests)
        self.given += 1
        return request


class ClusterBench:
    """The runs against one cluster, and the two tables that they fill."""

    def __init__(self, subject: Cluster, clock: Clock, share: float) -> None:
        self._subject = subject
        self._clock = clock
        self._share = share
        self._body = os.urandom(SIZE)  # noqa: TID251 - contents, not chance
        self._balancers = [part.endpoint for part in subject.parts("b")]
        self._signers = {part.endpoint: subject.signer(part.endpoint) for part in subject.parts("")}
        self._there: list[str] = []
        self.told: list[str] = []
        self.speeds = _table(
            f"4 KiB objects; aims through Envoy: PUT {AIMS['PUT']:,}/s, GET {AIMS['GET']:,}/s",
            ("request", "way"),
            ("in flight", "count", "requests/s", "p50 ms", "p99 ms", "p99.9 ms"),
            tuple(f"{kind} s/1,000" for kind in KINDS),
        )
        self.faults = _table(
            f"{2 * FAULT_WIDTH * len(self._balancers)} clients in a closed loop through Envoy, "
            f"{FAULT_S:.0f} s each",
            ("what",),
            ("GETs", "PUTs", "failed", "longest GET s", "longest PUT s"),
        )

    async def run(self, console: Console) -> None:
        """All of it."""
        first = self._balancers[0]
        make = Request(self._signers[first].head("PUT", f"/{BUCKET}"))
        await run_load(*_address(first), [make], 1, self._clock)
        node = self._subject.parts("n")[0].endpoint
        console.print("warming up ...")
        await self._both("warm", self._balancers, 8, WARM_S, told=False)
        for way, endpoints in (("Envoy", self._balancers), ("a node", [node])):
            for width in WIDTHS:
                console.print(f"{way}, {width} in flight ...")
                await self._both(way, endpoints, width, RUN_S, told=True)
        for what, find in (
            ("nothing", None),
            ("a node is killed", self._some_node),
            ("the leader of etcd is killed", self._subject.leader),
        ):
            console.print(f"{what} ...")
            await self._fault(what, await find() if find else None)

    async def _some_node(self) -> PartState:
        return self._subject.parts("n")[-1]

    async def _both(self, way: str, endpoints: list[str], width: int, seconds: float, *, told: bool) -> None:
        """PUTs of new objects, then GETs of them."""
        prefix = f"{way.replace(' ', '-')}-{width}"
        puts: dict[str, Bounded] = {}
        for endpoint in endpoints:
            requests = [
                self._put(endpoint, f"{prefix}-{urlsplit(endpoint).port}-{number}")
                for number in range(self._counted(PUTS) // len(endpoints))
            ]
            puts[endpoint] = Bounded(requests, seconds, self._clock)
        await self._measured("PUT", way, puts, width, told=told)
        # All that were sent were put: anything else ends the run.
        self._there = [
            f"{prefix}-{urlsplit(endpoint).port}-{number}"
            for endpoint, sent in puts.items()
            for number in range(min(DISTINCT, sent.given))
        ]
        gets = {
            endpoint: Bounded(
                islice(cycle(self._gets(endpoint)), self._counted(GETS) // len(endpoints)),
                seconds,
                self._clock,
            )
            for endpoint in endpoints
        }
        await self._measured("GET", way, gets, width, told=told)

    async def _measured(
        self, what: str, way: str, requests: dict[str, Bounded], width: int, *, told: bool
    ) -> None:
        """At each endpoint its own requests, all at once, so many in flight over all."""
        before = self._subject.cpu_s()
        began = self._clock.monotonic()
        samples = await asyncio.gather(
            *(
                run_load(*_address(endpoint), sent, width // len(requests), self._clock)
                for endpoint, sent in requests.items()
            )
        )
        seconds, after = self._clock.monotonic() - began, self._subject.cpu_s()
        latencies = sorted(latency for sample in samples for latency in sample.latencies)
        sample = Sample(seconds, tuple(latencies), sum(sample.bytes_moved for sample in samples))
        if told:
            self.speeds.add_row(
                what,
                way,
                str(width),
                f"{len(latencies):,}",
                f"{sample.rate:,.0f}",
                *(f"{sample.quantile(fraction) * 1e3:,.1f}" for fraction in (0.5, 0.99, 0.999)),
                *(f"{(after[kind] - before[kind]) / len(latencies) * 1e3:.2f}" for kind in KINDS),
            )

    async def _fault(self, what: str, part: PartState | None) -> None:
        """The load, with a part killed a second after its begin; returns when that part is back."""
        puts, gets = Outcome(), Outcome()
        async with asyncio.TaskGroup() as group:
            for endpoint in self._balancers:
                prefix = f"{what.replace(' ', '-')}-{urlsplit(endpoint).port}"
                most = self._counted(FAULT_REQUESTS)
                new = (self._put(endpoint, f"{prefix}-{number}") for number in islice(count(), most))
                old = islice(cycle(self._gets(endpoint)), most)
                for requests, outcome in ((new, puts), (old, gets)):
                    bounded = Bounded(requests, FAULT_S, self._clock)
                    for _ in range(FAULT_WIDTH):
                        group.create_task(run_through(*_address(endpoint), bounded, outcome, self._clock))
            await self._clock.sleep(FAULT_AFTER_S)
            if part is not None:
                os.kill(part.pid, signal.SIGKILL)
        failures = gets.failures + puts.failures
        self.faults.add_row(
            what,
            f"{len(gets.latencies):,}",
            f"{len(puts.latencies):,}",
            str(len(failures)),
            f"{max(gets.latencies, default=0.0):.2f}",
            f"{max(puts.latencies, default=0.0):.2f}",
        )
        self.told += [f"{what}: {failure}" for failure in failures[:TOLD_MAX]]
        if part is not None:
            await self._subject.until_back(part)

    def _put(self, endpoint: str, key: str) -> Request:
        head = self._signers[endpoint].head("PUT", f"/{BUCKET}/{key}", body=self._body)
        return Request(head, self._body)

    def _gets(self, endpoint: str) -> list[Request]:
        """Of each object that is there."""
        signer = self._signers[endpoint]
        return [Request(signer.head("GET", f"/{BUCKET}/{key}"), answer_bytes=SIZE) for key in self._there]

    def _counted(self, full: int) -> int:
        return max(len(self._balancers), int(full * self._share))


async def measure_cluster(console: Console, folder: Path, share: float) -> None:
    """Start a cluster, run, print."""
    clock = SystemClock()
    began = clock.monotonic()
    console.print("starting a cluster ...")
    async with cluster(folder / "cluster", clock) as subject:
        bench = ClusterBench(subject, clock, share)
        await bench.run(console)
    console.print(bench.speeds)
    console.print(bench.faults)
    for sentence in bench.told:
        console.print(sentence, markup=False)
    console.print(
        f"load after: {os.getloadavg()[0]:.1f}, much of it of this; all in {clock.monotonic() - began:.0f} s"
    )


def _address(endpoint: str) -> tuple[str, int]:
    where = urlsplit(endpoint)
    assert where.hostname is not None
    assert where.port is not None
    return where.hostname, where.port


def _table(title: str, *columns: tuple[str, ...]) -> Table:
    """The first group of columns are words, the others numbers."""
    table = Table(title=title)
    for number, group in enumerate(columns):
        for column in group:
            table.add_column(column, justify="right" if number else "left")
    return table
