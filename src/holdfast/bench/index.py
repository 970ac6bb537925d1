"""What an engine of the index costs: `python -m holdfast.bench --only index FOLDER [SHARE [ADDRESS ...]]`.

The same load on each engine: transactions as a PUT of a small object commits them (its head is expected
absent, its bucket present; a head of 400 bytes and a row of its pack are put), lookups, pages of a listing.
The embedded engine lies on three folders; etcd runs with one member and with three, where its program is on
the path; whatever ADDRESS names is measured, too, and must be a database that may be written into. All on
one machine, with real syncs. Bounded in requests.
"""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Bug
from holdfast.base.randomness import SystemRandomness
from holdfast.index.etcd import open_etcd
from holdfast.index.etcd.members import EtcdMember, address_of, command_line
from holdfast.index.port import ABSENT, PRESENT, Committed, Expect, Index, Transaction
from holdfast.index.postgres import open_postgres
from holdfast.index.sqlite import DirectoryCopy, DirectoryMember, open_index

OBJECTS = 20_000
WIDTH = 64
HEAD = b"h" * 400
BUCKET_ROW = b"bucket/bench"
PAGE = 1000


class Engine(Struct):
    """An engine that runs. `folders` are where its bytes are, `copies` how often each is there."""

    name: str
    index: Index
    folders: tuple[Path, ...] = ()
    copies: int = 1


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[Engine]:
    places = [folder / f"disk{n}" for n in range(3)]
    for place in places:
        place.mkdir(parents=True)
    index = await open_index(
        members=[DirectoryMember(place.name, place / "index") for place in places],
        copies=[DirectoryCopy(place.name, place / "index") for place in places[:2]],
        clock=SystemClock(),
        randomness=SystemRandomness(),
    )
    try:
        yield Engine("embedded, 3 members", index, tuple(places), 3)
    finally:
        await index.close()


def _start(folder: Path, size: int, stack: ExitStack) -> tuple[EtcdMember, ...]:
    """Members of an etcd that end with `stack`."""
    folder.mkdir(parents=True)
    ports = _ports(2 * size)
    members = tuple(
        EtcdMember(f"e{n}", folder / f"e{n}", ports[2 * n], ports[2 * n + 1]) for n in range(size)
    )
    for member in members:
        log = stack.enter_context((folder / f"{member.name}.log").open("wb"))
        process = subprocess.Popen(command_line(member, members), stdout=log, stderr=log)  # noqa: S603
        stack.callback(process.wait)
        stack.callback(process.kill)
    return members


@asynccontextmanager
async def _etcd(folder: Path, size: int) -> AsyncIterator[Engine]:
    with ExitStack() as stack:
        members = _start(folder, size, stack)
        index = await open_etcd(address_of(members), clock=SystemClock(), randomness=SystemRandomness())
        try:
            folders = tuple(member.data / "member" / "snap" for member in members)
            yield Engine(f"etcd, {size} member{'s' * (size > 1)}", index, folders, size)
        finally:
            await index.close()


@asynccontextmanager
async def _named(address: str) -> AsyncIterator[Engine]:
    clock, randomness = SystemClock(), SystemRandomness()
    index: Index
    if address.startswith("etcd://"):
        index = await open_etcd(address, clock=clock, randomness=randomness)
    else:
        index = await open_postgres(address, clock=clock, randomness=randomness)
    try:
        yield Engine(address.partition(":")[0], index)
    finally:
        await index.close()


def _ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


class _Run:
    """The load on one engine."""

    def __init__(self, engine: Engine, share: float) -> None:
        self._index = engine.index
        self._engine = engine
        self._objects = max(PAGE, int(OBJECTS * share))
        self._clock = SystemClock()
        self._made = 0

    async def all(self, run: str) -> list[tuple[str, ...]]:
        """Every row of the table. `run` is part of each key, so that a database may be used again."""
        await self._index.commit([Transaction((), ((BUCKET_ROW, b""),))])
        alone = max(50, self._objects // 40)
        before = self._disk()
        rows = [
            await self._row("commit", alone, 1, lambda n: self._commit(f"{run}/a{n:08}")),
            await self._row("commit", self._objects, WIDTH, lambda n: self._commit(f"{run}/b{n:08}")),
            await self._row("lookup", 2 * alone, 1, lambda n: self._get(f"{run}/b{n:08}")),
            await self._row("lookup", self._objects, WIDTH, lambda n: self._get(f"{run}/b{n:08}")),
            await self._row("page of 1,000", 20, 1, lambda _: self._page(f"{run}/b")),
        ]
        if self._engine.folders:
            each = (self._disk() - before) / self._engine.copies / (alone + self._objects)
            rows.append((self._engine.name, "bytes on each member, an object", f"{each:,.0f}", "", "", ""))
        return rows

    def _disk(self) -> int:
        files = [path for folder in self._engine.folders for path in folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_blocks * 512 for path in files)

    async def _commit(self, name: str) -> None:
        head, pack = b"head/bench/" + name.encode(), b"share/" + name.encode()
        put = Transaction((Expect(head, ABSENT), Expect(BUCKET_ROW, PRESENT)), ((head, HEAD), (pack, b"")))
        (outcome,) = await self._index.commit([put])
        if not isinstance(outcome, Committed):
            raise Bug(f"The bench's commit was not decided as it should: {outcome}.")

    async def _get(self, name: str) -> None:
        (row,) = await self._index.get([b"head/bench/" + name.encode()])
        if row is None:
            raise Bug(f"The bench does not find {name}.")

    async def _page(self, start: str) -> None:
        first = b"head/bench/" + start.encode()
        if len(await self._index.scan(first, b"head/bench0", limit=PAGE)) != PAGE:
            raise Bug("The bench does not find its page.")

    async def _row(
        self, what: str, count: int, width: int, work: Callable[[int], Awaitable[None]]
    ) -> tuple[str, ...]:
        latencies: list[float] = []
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                began = self._clock.monotonic()
                await work(number)
                latencies.append(self._clock.monotonic() - began)

        began = self._clock.monotonic()
        await asyncio.gather(*(worker() for _ in range(width)))
        seconds = self._clock.monotonic() - began
        latencies.sort()
        return (
            self._engine.name,
            what,
            f"{count} / {width}",
            f"{count / seconds:,.0f}",
            f"{latencies[count // 2] * 1e3:.1f}",
            f"{latencies[count * 99 // 100] * 1e3:.1f}",
        )


async def measure_index(console: Console, folder: Path, share: float, addresses: list[str]) -> None:
    """Start each engine, run, print."""
    table = Table(title="the index: one engine after the other, on one machine")
    for column in ("engine", "what", "count / in flight", "a second", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in {"engine", "what"} else "right")
    engines = [_embedded(folder / "embedded"), *map(_named, addresses)]
    if shutil.which("etcd"):
        engines += [_etcd(folder / "etcd1", 1), _etcd(folder / "etcd3", 3)]
    for engine in engines:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(engine)
            console.print(f"{running.name} …")
            for row in await _Run(running, share).all(f"{os.getpid()}"):
                table.add_row(*row)
    console.print(table)
