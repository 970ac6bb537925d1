"""`make bench ARGS="--only chores"`: what chores do, and what clients feel of them.

    scrub     bytes a second and processor seconds a GB while clients are idle, next to plain uncached reads
              of the same files, one thread a store
    heal      a store's directory is replaced by an empty one: shard bytes written again a second, next to
              the limit: plainly reading k shards and writing one, the same bytes, on the same disk
    clients   p99 of small reads and writes, with no chore at work, and with scrub having more to do than
              there is time

Everything is bounded in bytes and time. Lines are printed as they come.
"""

import asyncio
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from rich.console import Console

from holdfast.base.clock import Clock, SystemClock
from holdfast.bench.baseline import write_synced
from holdfast.bench.load import Request, Sample, run_load
from holdfast.bench.subject import Subject, subject
from holdfast.node.chores_status import CHORES_PATH, ChoresStatus

KIB, MIB, GB = 1 << 10, 1 << 20, 1_000_000_000
BUCKET = "bench"
STORES = 6
K = 4
LARGE, LARGE_COUNT = 16 * MIB, 128
SMALL_COUNT = 2000
WIDTH = 4
SCRUB_S = 15.0
HEAL_S = 600.0
ASK_EVERY_S = 0.25

_TICKS = os.sysconf("SC_CLK_TCK")


class ChoresBench:
    """The runs against one node."""

    def __init__(self, node: Subject, clock: Clock, console: Console, share: float) -> None:
        self._node = node
        self._clock = clock
        self._console = console
        self._small = max(200, int(SMALL_COUNT * share))
        self._large = max(4, int(LARGE_COUNT * share))
        self._signer = node.signer(clock)

    async def run(self) -> None:
        """All of it, in order."""
        await self._load([Request(self._signer.head("PUT", f"/{BUCKET}"))], 1)
        # What moves or removes packs would change what the plain reads and writes are compared with.
        for chore in ("scrub", "compact", "rebalance", "audit"):
            await self._ask("pause", chore)
        body = os.urandom(LARGE)  # noqa: TID251 - contents, not chance
        heads = [self._signer.head("PUT", f"/{BUCKET}/large{n}", body=body) for n in range(self._large)]
        await self._load([Request(head, body) for head in heads], 2)
        # Before there are small packs, of which each costs as much as a megabyte: compaction ends them.
        await self._ask("resume", "scrub")
        await self._scrub()
        await self._heal()
        await self._clients()

    async def _clients(self) -> None:
        await self._small_requests("warm")
        alone = await self._small_requests("alone")
        await self._ask("resume", "scrub")
        await self._small_requests("learning")
        beside = await self._small_requests("beside")
        for what, one, other in zip(("GET", "PUT"), alone, beside, strict=True):
            ratio = other.quantile(0.99) / one.quantile(0.99)
            self._console.print(
                f"{what} 4 KiB, {WIDTH} in flight: p50 {one.quantile(0.5) * 1e3:.1f} and p99 "
                f"{one.quantile(0.99) * 1e3:.1f} ms alone; p50 {other.quantile(0.5) * 1e3:.1f} and p99 "
                f"{other.quantile(0.99) * 1e3:.1f} ms with scrub at work: p99 {ratio:.2f}x"
            )

    async def _small_requests(self, prefix: str) -> tuple[Sample, Sample]:
        """Reads and writes of 4 KiB."""
        body = os.urandom(4 * KIB)  # noqa: TID251 - contents, not chance
        names = [f"/{BUCKET}/{prefix}{number}" for number in range(self._small)]
        put = await self._load([Request(self._signer.head("PUT", n, body=body), body) for n in names], WIDTH)
        gets = [Request(self._signer.head("GET", name), answer_bytes=len(body)) for name in names]
        return await self._load(gets, WIDTH), put

    async def _scrub(self) -> None:
        await self._clock.sleep(2.0)  # until clients are gone for the throttle, too
        before, cpu, began = (await self._ask()).scrub.bytes_read, self._cpu_s(), self._clock.monotonic()
        await self._clock.sleep(SCRUB_S)
        read = (await self._ask()).scrub.bytes_read - before
        seconds, cpu = self._clock.monotonic() - began, self._cpu_s() - cpu
        hold = self._node.longest_hold_s(began, began + seconds)
        await self._ask("pause", "scrub")
        plain = read_plain([self._slot(number) for number in range(STORES)], SCRUB_S / 2, self._clock)
        self._console.print(
            f"scrub, clients idle: {read / seconds / 1e6:,.0f} MB/s, {read / seconds / plain:.0%} of plain "
            f"uncached reads ({plain / 1e6:,.0f} MB/s); {cpu / read * GB:.2f} core-seconds a GB; longest "
            f"hold of the loop {hold * 1e3:.1f} ms"
        )

    async def _heal(self) -> None:
        wanted = 0.95 * sum(file.stat().st_size for file in _files(self._slot(4)))
        limit = heal_plain([self._slot(number) for number in range(K)], self._node.data, self._clock)
        before = (await self._ask()).heal.bytes_written
        shutil.rmtree(self._slot(4))
        self._slot(4).mkdir()
        deadline = self._clock.monotonic() + HEAL_S
        first = last = self._clock.monotonic()
        written = 0
        while self._clock.monotonic() < deadline:
            await self._clock.sleep(ASK_EVERY_S)
            status = await self._ask()
            now = status.heal.bytes_written - before
            if now > 0 and written == 0:
                first = self._clock.monotonic() - ASK_EVERY_S
            if now > written:
                written, last = now, self._clock.monotonic()
            if written >= wanted:
                break
        rate = written / max(last - first, ASK_EVERY_S)
        self._console.print(
            f"heal of a lost store, clients idle: {written / MIB:,.0f} MiB of shards at "
            f"{rate / 1e6:,.0f} MB/s, {rate / limit:.0%} of the limit ({limit / 1e6:,.0f} MB/s: read {K}, "
            "write 1)"
        )
        proven = self._clock.monotonic()
        while (await self._ask()).heal.unproven and self._clock.monotonic() < deadline:
            await self._clock.sleep(ASK_EVERY_S)
        later = self._clock.monotonic() - proven
        self._console.print(f"and all of it proven by reading every shard {later:.1f} s later")

    def _slot(self, number: int) -> Path:
        return self._node.data / f"disk{number + 1}"

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._node.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    async def _load(self, requests: list[Request], width: int) -> Sample:
        return await run_load(self._node.host, self._node.port, requests, width, self._clock)

    async def _ask(self, action: str = "", chore: str = "") -> ChoresStatus:
        query = (("action", action), ("chore", chore)) if action else ()
        head = self._signer.head("POST" if action else "GET", CHORES_PATH, query)
        reader, writer = await asyncio.open_connection(self._node.host, self._node.port)
        try:
            writer.write(head)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = answer.index(b"content-length:") + 15
            body = await reader.readexactly(int(answer[at:].split(b"\r", 1)[0]))
        finally:
            writer.close()
        return msgspec.json.decode(body, type=ChoresStatus)


def _files(folder: Path) -> list[Path]:
    """The large shards of a store: what small ones cost is not the disk's to say."""
    files = sorted(path for path in (folder / "shards").rglob("*") if path.is_file())
    return [path for path in files if path.stat().st_size >= MIB]


def read_plain(folders: list[Path], seconds_max: float, clock: Clock) -> float:
    """Bytes a second of reading the files of all folders round the page cache, a thread a folder."""
    end = clock.monotonic() + seconds_max
    began = clock.monotonic()
    with ThreadPoolExecutor(len(folders)) as pool:
        sizes = list(pool.map(lambda folder: sum(_read_files(_files(folder), end, clock)), folders))
    return sum(sizes) / (clock.monotonic() - began)


def heal_plain(sources: list[Path], folder: Path, clock: Clock) -> float:
    """Shard bytes a second of reading a file from each of `sources` at once and writing one, synced."""
    target = folder / "plain-heal"
    target.mkdir()
    lists = [_files(source) for source in sources]
    rounds = list(zip(*lists, strict=False))
    written = 0
    began = clock.monotonic()
    with ThreadPoolExecutor(2 * len(sources)) as pool:

        def one(number: int) -> int:
            size = min(path.stat().st_size for path in rounds[number])
            with ThreadPoolExecutor(len(sources)) as readers:
                list(readers.map(lambda path: sum(_read_files([path], began + 1e9, clock)), rounds[number]))
            return write_synced(target / str(number), size)

        written = sum(pool.map(one, range(len(rounds))))
    seconds = clock.monotonic() - began
    shutil.rmtree(target)
    return written / seconds


def _read_files(files: list[Path], end: float, clock: Clock) -> list[int]:
    sizes: list[int] = []
    with mmap.mmap(-1, MIB) as buffer:
        for path in files:
            if clock.monotonic() > end:
                break
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            except FileNotFoundError:
                continue  # of a pack that died meanwhile
            try:
                while (count := os.readv(descriptor, [buffer])) > 0:
                    sizes.append(count)
            finally:
                os.close(descriptor)
    return sizes


async def measure_chores(console: Console, folder: Path, share: float) -> None:
    """Start a node whose scrub always has something to do, and run everything."""
    clock = SystemClock()
    async with subject(folder / "chores", clock, scrub=True) as node:
        await ChoresBench(node, clock, console, share).run()
