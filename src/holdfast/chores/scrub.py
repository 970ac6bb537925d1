"""Scrub: every shard of every store is read from the medium, oldest reading first, again and again.

A range of pack ids at a time, or a few that are overdue (`chores.scrub_times`), each pack by the `Verifier`,
which reads all its shards and compares them with each other; a few packs side by side while no client is
there, one otherwise. A pass is spread evenly over its time; where something was not read for longer than
that, one range follows the other, at most at the rate that was set. What is wrong goes to heal. Shards that
no row names are the business of `FindStrays`.

What must hold: a range counts as read at a store only when all its packs were read and the store answered for
each of its shards. Where the reading is, is written down now and then, expecting the lease, so that
a restart goes on from there.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, StoreId
from holdfast.chores.chore import Progress
from holdfast.chores.scrub_times import (
    NEVER,
    RANGES,
    At,
    StoreTimes,
    is_due,
    look,
    range_keys,
)
from holdfast.index.port import Expect, Index, Row, Transaction, prefix_end
from holdfast.packs.errors import PackGone
from holdfast.packs.rows import KnownPack, decode_row
from holdfast.packs.verifying import PackReport, Verifier
from holdfast.stores.port import Store

PASS_S = 7 * 86_400.0
RATE_BYTES = 200 << 20

FORMAT = 1
PAGE = 64
WIDTH = 4
STEP_S = 0.5
SAVE_EVERY_S = 60.0
INTERVAL_MAX_S = 60.0
SILENT_S = 3600.0
"""For so long a store that did not answer has no say in what is read next."""

_AT = b"scrub/at"
_STORE = b"scrub/store/"

_encoder = msgspec.msgpack.Encoder()
_at_decoder = msgspec.msgpack.Decoder(At)
_times_decoder = msgspec.msgpack.Decoder(StoreTimes)


class Scrub:
    """Reads all. `pass_s` is how long one reading of everything may take, `rate_bytes` the most that is read
    a second (0 for no limit). `found` is told of packs that are not as they should be; `bytes_stored` is what
    all shards together weigh, for the time left; `fence` are expectations that hold while the lease is ours.
    At stores that are `unread` it is only seen that shards are there: reading them costs money."""

    name = "scrub"

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        known: Callable[[], Iterable[StoreId]],
        index: Index,
        verifier: Verifier,
        clock: Clock,
        found: Callable[[PackReport], None],
        *,
        pass_s: float = PASS_S,
        rate_bytes: int = RATE_BYTES,
        is_idle: Callable[[], bool] = lambda: True,
        bytes_stored: Callable[[], int] = lambda: 0,
        fence: Callable[[], tuple[Expect, ...]] = tuple,
        unread: Callable[[], Collection[StoreId]] = tuple,
    ) -> None:
        self._stores = stores
        self._known = known
        self._index = index
        self._verifier = verifier
        self._clock = clock
        self._found = found
        self._pass_s = pass_s
        self._rate_bytes = rate_bytes
        self._is_idle = is_idle
        self._bytes_stored = bytes_stored
        self._fence = fence
        self._unread = unread
        self._loaded = False
        self._times: dict[StoreId, list[int]] = {}
        self._at: At | None = None
        self._rows: list[Row] = []
        self._began: float | None = None
        self._saved_at = 0.0
        self._unsaved = False
        self._free_at = 0.0
        self._silent: set[StoreId] = set()
        self._silent_until: dict[StoreId, float] = {}
        self._oldest_at: float = NEVER
        self._overdue = 0
        self.packs_read = 0
        self.bytes_read = 0
        self.faults_found = 0

    @property
    def interval_s(self) -> float:
        """Often enough for the shortest of passes."""
        return min(INTERVAL_MAX_S, self._pass_s / RANGES)

    @property
    def oldest_age_s(self) -> float | None:
        """How long ago the shard that was read longest ago was read; None while one never was."""
        if self._oldest_at == NEVER:
            return None
        return max(0.0, self._clock.wall() - self._oldest_at)

    def took_over(self) -> None:
        """Another node may have read on: what it wrote down counts."""
        if self._loaded:
            self._loaded, self._unsaved = False, False
            self._times, self._at, self._rows = {}, None, []

    def progress(self) -> Progress:
        """What was read since the start; the total is what is overdue."""
        total = None
        if self._overdue:
            total = self.bytes_read + self._overdue * self._bytes_stored() // RANGES
        detail = "a first reading of everything is under way" if self._oldest_at == NEVER else ""
        return Progress(self.bytes_read, total, "bytes", detail)

    async def step(self) -> bool:
        """Read a few packs; False when nothing is due."""
        if not self._loaded:
            await self._load()
        await self._welcome()
        if self._at is None and not self._begin():
            await self._save(at_least_s=SAVE_EVERY_S / 6)
            return False
        assert self._at is not None
        if not self._rows and not await self._turn_page(self._at):
            self._finish(self._at)
            await self._save(at_least_s=SAVE_EVERY_S / 6)
            return True
        began = max(self._clock.monotonic(), self._free_at)
        size = await self._read_some(self._at)
        self._unsaved = True
        await self._save(at_least_s=SAVE_EVERY_S)
        if self._rate_bytes:
            self._free_at = began + size / self._rate_bytes
            await self._clock.sleep(max(0.0, self._free_at - self._clock.monotonic()))
        return True

    async def _read_some(self, at: At) -> int:
        """Packs of this page: one, or, as long as no client is there and the step is young, one after the
        other in each of `WIDTH` places. Returns the bytes that were read."""
        until = self._clock.monotonic() + STEP_S
        enough = self._rate_bytes * STEP_S if self._rate_bytes else float("inf")
        page, taken, size = self._rows, 0, 0

        async def read_on() -> None:
            nonlocal taken, size
            while taken < len(page):
                if taken and (not self._is_idle() or self._clock.monotonic() >= until or size >= enough):
                    break
                row, taken = page[taken], taken + 1
                report = await self._read(row)
                if report is not None:
                    size += report.bytes_read
                    self._judge(at, report)

        readers = [asyncio.create_task(read_on()) for _ in range(WIDTH)]
        # Unless all that were taken are read, the page is looked up again.
        self._rows = []
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
        self._rows = page[taken:]
        at.after = page[taken - 1].key.removeprefix(b"pack/").decode()
        return size

    async def _read(self, row: Row) -> PackReport | None:
        pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
        try:
            known = KnownPack(pack, decode_row(row.value), row.revision)
            return await self._verifier.verify(known, self._unread())
        except PackGone:
            return None

    def _judge(self, at: At, report: PackReport) -> None:
        self.packs_read += 1
        self.bytes_read += report.bytes_read
        self._silent |= {fault.store for fault in report.faults if fault.in_doubt and fault.store is not None}
        at.covered = [store for store in at.covered if store in self._stores and store not in self._silent]
        wrong = [fault for fault in report.faults if not fault.in_doubt]
        if wrong:
            self.faults_found += len(wrong)
            self._found(report)

    # Which range

    def _begin(self) -> bool:
        """Begin with another range, if one is due."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        here = [store for store in self._stores if self._silent_until.get(store, 0.0) <= now]
        since = None if self._began is None else now - self._began
        found = look(self._times, here, wall, self._pass_s)
        known = set(self._known())
        # In health these are the same, and this is asked 256 times a pass.
        of_all = found if known == set(here) else look(self._times, known, wall, self._pass_s)
        there = set(self._stores)
        of_there = of_all if known == there else look(self._times, there, wall, self._pass_s)
        self._oldest_at = NEVER if of_all.oldest_s == float("inf") else wall - of_all.oldest_s
        self._overdue = of_there.overdue
        if not here or not is_due(found.oldest_s, since, self._pass_s):
            return False
        self._began = now
        self._at = At(FORMAT, found.range, "", int(wall), list(self._stores), found.together)
        return True

    async def _turn_page(self, at: At) -> bool:
        start, end = range_keys(at.range, at.together)
        if at.after:
            start = b"pack/" + at.after.encode() + b"\0"
        self._rows = [row for row in await self._index.scan(start, end, limit=PAGE) if isinstance(row, Row)]
        return bool(self._rows)

    def _finish(self, at: At) -> None:
        for store in at.covered:
            if store in self._stores and store in self._times:
                read = range(at.range, min(at.range + at.together, RANGES))
                self._times[store][read.start : read.stop] = [at.began] * len(read)
        for store in self._silent:
            # Else its old time would have the same range read over and over.
            self._silent_until[store] = self._clock.monotonic() + SILENT_S
        self._silent.clear()
        self._at = None
        self._unsaved = True

    # What is written down

    async def _load(self) -> None:
        found = await self._index.scan(b"scrub/", prefix_end(b"scrub/"), limit=100_000)
        for row in found:
            assert isinstance(row, Row)
            if row.key == _AT:
                self._at = _at_decoder.decode(row.value)
            else:
                times = _times_decoder.decode(row.value).read_at
                self._times[StoreId(row.key.removeprefix(_STORE).decode())] = times
        if self._at is not None and self._at.range >= RANGES:
            self._at = None  # nothing was being read
        self._loaded = True
        self._saved_at = self._clock.monotonic()

    async def _welcome(self) -> None:
        """Know every store. What a new one holds among known ones is younger than it is itself, and so is
        all that is to come where there is nothing yet."""
        new = [store for store in self._known() if store not in self._times]
        since = int(self._clock.wall())
        if new and not self._times and await self._index.scan(b"pack/", prefix_end(b"pack/"), limit=1):
            since = NEVER
        for store in new:
            self._times[store] = [since] * RANGES
            self._unsaved = True
        gone = self._times.keys() - set(self._known())
        if gone:
            for store in gone:
                del self._times[store]
                self._silent_until.pop(store, None)
            rows = tuple(_STORE + store.encode() for store in sorted(gone))
            await self._index.commit([Transaction(self._fence(), (), rows)])
        if new:
            # At once: a node that crashes before would not know that they are new.
            await self._save(at_least_s=0.0)

    async def _save(self, *, at_least_s: float) -> None:
        """Write down where the reading is, if that is not on record and was not done lately."""
        now = self._clock.monotonic()
        if not self._unsaved or now - self._saved_at < at_least_s:
            return
        at = self._at or At(FORMAT, RANGES, "", 0, [])
        puts = [(_AT, _encoder.encode(at))]
        puts += [
            (_STORE + store.encode(), _encoder.encode(StoreTimes(FORMAT, read_at)))
            for store, read_at in self._times.items()
        ]
        # A conflict says that the lease is gone; the runner learns that by itself, and the next step stops.
        await self._index.commit([Transaction(self._fence(), tuple(puts))])
        self._saved_at, self._unsaved = now, False
