"""Large bodies on their way into packs.

A body is cut into packs as it streams. While it goes on arriving, earlier packs are being written and
the digests computed. Memory is taken as bytes arrive; where there is none left, what has arrived so far is
written as a pack of its own. So a client that sends slowly, or stops, holds next to nothing of what others
wait for, and nobody who waits for memory holds any. What must hold: memory is bounded by the node's budget,
whatever the size of the body; the last pack is begun only when every digest is known and right and the
others are durable, because its manifest carries the record of the whole, which names them (itself by an
empty pack id: a manifest does not know what its pack will be called); a body that fails leaves packs that
no row names (they are orphans, which their collector finds), and no task behind.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from msgspec import Struct

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.index.port import Transaction
from holdfast.objects.digests import RunningDigests, Sums, check_expected, sum_whole
from holdfast.objects.errors import IncompleteBody
from holdfast.objects.model import Body
from holdfast.objects.turns import ByteBudget
from holdfast.packs.model import (
    PACK_BYTES_MAX,
    Extent,
    ManifestEntry,
    PackStorage,
    Receipt,
    Written,
)
from holdfast.scheme import Scheme

TAIL_BYTES = 2 << 20
HELD_BYTES = 512 << 10
"""Memory is taken in pieces of this size. It is also the least that is written before its pack is full."""
_GRAIN = 1 << 20


class Label(Struct, frozen=True):
    """What manifests say of each piece of a body."""

    bucket: str
    key: str
    version: str
    part: int = 0
    conditional: bool = False

    def entry(self, extent: Extent, piece: int = 0, record: bytes = b"") -> ManifestEntry:
        """The entry of one piece."""
        return ManifestEntry(
            self.bucket,
            self.key,
            self.version,
            extent.offset,
            extent.length,
            self.part,
            piece,
            record,
            conditional=self.conditional,
        )


class Received(Struct, frozen=True):
    """A body that is durable, and not in the index yet."""

    size: int
    extents: tuple[Extent, ...]
    sums: Sums
    receipt: Receipt
    written: tuple[Written, ...]
    """Held until it is decided: who holds a pack may still make it."""

    def transactions(self) -> tuple[Transaction, ...]:
        """What makes its packs known; ask right before it is committed. Raises Unavailable when stores took
        so much with them while the body was arriving that it could not be read any more."""
        found: list[Transaction] = []
        try:
            for one in self.written:
                found += one.transactions if one.as_it_is is None else one.as_it_is()
        except Unavailable:
            for one in self.written:
                one.abandon()
            raise
        return tuple(found)


Complete = Callable[[tuple[Extent, ...], Sums], bytes]
"""Makes the record for the last pack's manifest."""


def cut(length: int) -> list[int]:
    """Sizes of the packs for a body of `length` bytes: as few as possible, about even. Where several
    are needed, a short one comes last: its manifest names the others, so it is written alone."""
    assert length > 0
    if length <= PACK_BYTES_MAX:
        return [length]
    length -= TAIL_BYTES
    count = -(-length // PACK_BYTES_MAX)
    even = -(-length // count)
    size = min(-(-even // _GRAIN) * _GRAIN, PACK_BYTES_MAX)
    whole, rest = divmod(length, size)
    return [*[size] * whole, *([rest] if rest else []), TAIL_BYTES]


def weakest(receipts: Sequence[Receipt]) -> Receipt:
    """What can be said of several packs together: at each level what the weakest survives."""
    least = min(receipts, key=lambda receipt: receipt.shards_durable - receipt.scheme.k)
    levels = [level for level in least.survives if all(level in receipt.survives for receipt in receipts)]
    return Receipt(
        least.scheme,
        least.shards_durable,
        least.shards_total,
        {level: min(receipt.survives[level] for receipt in receipts) for level in levels},
        any(receipt.debt for receipt in receipts),
    )


async def receive_small(body: Body, algorithms: Sequence[ChecksumAlgorithm]) -> tuple[Buffer, Sums]:
    """All of a small body, and its digests, checked. Raises IncompleteBody, BadDigest, and whatever the
    body raises."""
    buffers: list[Buffer] = []
    size = 0
    length = body.length
    async for buffer in body:
        buffers.append(buffer)
        size += len(buffer)
        if size > length:
            break
    _check_length(size, length)
    data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
    sums = sum_whole(data, algorithms)
    check_expected(sums, body.expected())
    return data, sums


def _check_length(size: int, length: int) -> None:
    if size < length:
        raise IncompleteBody(
            f"The body ended after {size} of {length} bytes.", hint="Send all of it, or the right length."
        )
    if size > length:
        raise IncompleteBody(
            f"The body is longer than the {length} bytes announced.", hint="Send the right length."
        )


class Receiver:
    """Receives large bodies."""

    def __init__(
        self, packs: PackStorage, clock: Clock, pool: Executor | None, budget: ByteBudget, inflight_packs: int
    ) -> None:
        self._packs = packs
        self._clock = clock
        self._pool = pool
        self._budget = budget
        self._inflight_packs = inflight_packs

    async def receive(
        self,
        body: Body,
        scheme: Scheme,
        algorithms: Sequence[ChecksumAlgorithm],
        label: Label,
        complete: Complete,
    ) -> Received:
        """Receive all of `body`, which is not empty. Raises IncompleteBody, BadDigest, TooBusy,
        Unavailable, and whatever the body raises."""
        digests = RunningDigests(algorithms, self._pool, self._clock)
        run = _Run(self._packs, self._budget, scheme, label, cut(body.length), self._inflight_packs)
        try:
            await self._stream(body, run, digests)
            sums = await digests.finish()
            check_expected(sums, body.expected())
            written = await run.finish(lambda extents: complete(extents, sums))
        finally:
            await run.close()
        return Received(
            body.length,
            tuple(one.extent for one in written),
            sums,
            weakest([one.receipt for one in written]),
            tuple(written),
        )

    async def _stream(self, body: Body, run: "_Run", digests: RunningDigests) -> None:
        left = body.length
        run.waits_for_client = True
        async for buffer in body:
            run.waits_for_client = False
            left -= len(buffer)
            if left < 0:
                break
            await digests.feed(buffer)
            await run.add(buffer)
            run.waits_for_client = True
        run.waits_for_client = False
        _check_length(body.length - left, body.length)


class _Run:
    """One body's packs: the one that is filling, and those under way."""

    def __init__(
        self,
        packs: PackStorage,
        budget: ByteBudget,
        scheme: Scheme,
        label: Label,
        sizes: list[int],
        inflight_packs: int,
    ) -> None:
        self._packs = packs
        self._budget = budget
        self._scheme = scheme
        self._label = label
        self._sizes = sizes
        self._inflight_packs = inflight_packs
        self._tasks: list[asyncio.Task[Written]] = []
        self._filling: list[Buffer] = []
        self._filled = 0
        self._held = 0
        self.waits_for_client = False
        budget.asked[self] = self._do_without

    async def add(self, buffer: Buffer) -> None:
        """The next bytes; starts writing each pack but the last as it becomes full."""
        rest = memoryview(buffer)
        while len(rest):
            count = await self._hold(len(rest))
            self._filling.append(rest[:count])
            self._filled += count
            rest = rest[count:]
            if not self._room and len(self._tasks) < len(self._sizes) - 1:
                await self._wait_for_room()
                self._launch()

    @property
    def _room(self) -> int:
        """What the pack that is filling still wants."""
        return self._sizes[len(self._tasks)] - self._filled

    async def _hold(self, wanted: int) -> int:
        """Have memory for the next bytes of the pack that is filling; for how many of those `wanted`."""
        if self._held == self._filled and not self._budget.take_now(min(HELD_BYTES, self._room)):
            if self._filled:
                await self._wait_for_room()
                self._launch_early()
            await self._budget.take(min(HELD_BYTES, self._room))
            self._held += min(HELD_BYTES, self._room)
        elif self._held == self._filled:
            self._held += min(HELD_BYTES, self._room)
        return min(wanted, self._held - self._filled)

    def _do_without(self) -> None:
        """Somebody waits for memory: write what is there, if no more comes at the moment."""
        running = sum(not task.done() for task in self._tasks)
        worth_it = self._filled >= HELD_BYTES and self._room > 0
        if self.waits_for_client and worth_it and running < self._inflight_packs:
            self._launch_early()

    def _launch_early(self) -> None:
        """Write what has come of the pack that is filling as one of its own; the rest is cut anew."""
        now = len(self._tasks)
        left = sum(self._sizes[now:]) - self._filled
        self._sizes[now:] = [self._filled, *cut(left)]
        self._launch()

    async def finish(self, complete: Callable[[tuple[Extent, ...]], bytes]) -> list[Written]:
        """Write the last pack, with the record in its manifest; all packs, in order."""
        last = len(self._sizes) - 1
        assert len(self._tasks) == last
        assert self._room == 0, "the length was checked"
        self._budget.asked.pop(self, None)
        while not all(task.done() for task in self._tasks):
            await self._wait_for_one()
        written = [task.result() for task in self._tasks]
        named = tuple(one.extent for one in written)
        return [*written, await self._launch(lambda extent: complete((*named, extent)))]

    def _launch(self, complete: Callable[[Extent], bytes] | None = None) -> asyncio.Task[Written]:
        piece = len(self._tasks)
        data, held = self._filling, self._held
        self._filling, self._filled, self._held = [], 0, 0

        def describe(extent: Extent) -> Sequence[ManifestEntry]:
            return (self._label.entry(extent, piece, b"" if complete is None else complete(extent)),)

        loop = asyncio.get_running_loop()
        task = loop.create_task(_write(self._packs, self._scheme, data, describe))
        task.add_done_callback(lambda _: self._budget.give(held))
        self._tasks.append(task)
        return task

    async def _wait_for_room(self) -> None:
        while sum(not task.done() for task in self._tasks) >= self._inflight_packs:
            await self._wait_for_one()

    async def _wait_for_one(self) -> None:
        """Until one more pack is written; raises at once what any of them raised."""
        for task in self._tasks:
            if task.done():
                task.result()
        running = [task for task in self._tasks if not task.done()]
        if running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def close(self) -> None:
        """Stop what is under way and give all memory back."""
        self._budget.asked.pop(self, None)
        if self._held:
            self._budget.give(self._held)
            self._held = 0
        running = [task for task in self._tasks if not task.done()]
        for task in running:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _write(
    packs: PackStorage,
    scheme: Scheme,
    data: list[Buffer],
    describe: Callable[[Extent], Sequence[ManifestEntry]],
) -> Written:
    return await packs.write(scheme, data, describe)
