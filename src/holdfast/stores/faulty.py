"""A store with scripted faults, for tests, simulation and drills.

A `FaultScript` says what is wrong with a store; its fields may be changed at any time, and hold from the
next call on. Chance comes from the injected randomness, so a seed replays a run. The faults are those
of the fault model (DESIGN, section 14): nothing here makes a store do what a failing disk cannot.

Reads that are spoiled are spoiled on the way: the blob behind is as it was. Puts and deletes whose
caller was told "overdue" may land later, in the background, as they do on a disk that hangs and
recovers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.port import (
    Range,
    ShardMissing,
    ShardUnreadable,
    Store,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    StoreReadOnly,
    Usage,
)

T = TypeVar("T")


@dataclass(kw_only=True)
class FaultScript:
    """What is wrong. Chances are fractions of calls, 0.0 never to 1.0 always."""

    delay_s: tuple[float, float] = (0.0, 0.0)
    """Every call takes this much longer, at least and at most. Puts and deletes that would be overdue
    land when the delay is over."""

    put_delay_s: tuple[float, float] | None = None
    """The same for puts and deletes, where it differs."""

    hang: bool = False
    """No call is answered. Puts and deletes under way have no effect unless they land late."""

    late: float = 0.0
    """Chance that a put or delete is answered with StoreOverdue and lands `late_s` after that."""

    late_s: tuple[float, float] = (0.0, 1.0)

    read_errors: float = 0.0
    """Chance that a read, size or list fails with an I/O error."""

    write_errors: float = 0.0
    """Chance that a put or delete fails with an I/O error, without effect."""

    sync_errors: float = 0.0
    """Chance that a put fails in its sync: it landed or not, by the toss of a coin."""

    flips: float = 0.0
    """Chance that one bit of what a get returns is wrong."""

    spoils: float = 0.0
    """Chance that one bit of what a put leaves on the medium is wrong, and nobody says so."""

    full: bool = False
    """No room for puts; deletes work."""

    read_only: bool = False
    """Puts and deletes are refused."""

    vanished: bool = False
    """The directory is gone: every call fails."""

    lost: set[str] = field(default_factory=set)
    """Blobs that are not there any more. A put of such a name fails as existing or not by what is
    behind; names are used once, so that none should come."""

    unreadable: set[str] = field(default_factory=set)
    """Blobs that the medium cannot read: each read of one fails with an I/O error."""

    fail_after: int | None = None
    """So many calls from now work, the next fails with an I/O error, and then the script forgets
    this."""


class FaultyStore:
    """`inner` with the faults of `script`."""

    def __init__(self, inner: Store, script: FaultScript, *, clock: Clock, randomness: Randomness) -> None:
        self._inner = inner
        self._clock = clock
        self._randomness = randomness
        self._background: set[asyncio.Task[None]] = set()
        self.script = script

    @property
    def id(self) -> StoreId:
        return self._inner.id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        # Whoever lands late needs bytes that the caller will not have changed by then.
        kept = (b"".join(data),) if self._may_be_late() else data
        if self._chance(self.script.spoils):
            kept = list(self._flipped(list(kept)))

        async def put(left_s: float) -> None:
            await self._inner.put(name, kept, timeout_s=left_s, reserve_share=reserve_share)

        async def land(left_s: float) -> None:
            if self.script.full:
                raise StoreFull(f"Store {self.id} is full (injected).", store=self.id)
            if self._chance(self.script.sync_errors):
                if self._chance(0.5):
                    await put(left_s)
                raise self._io_error("sync")
            await put(left_s)

        await self._change(land, timeout_s)

    async def delete(self, name: str, *, timeout_s: float) -> None:
        async def land(left_s: float) -> None:
            await self._inner.delete(name, timeout_s=left_s)

        await self._change(land, timeout_s)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        left_s = await self._before_read(timeout_s)
        self._check_lost(name)
        if name in self.script.unreadable:
            raise ShardUnreadable(f"Store {self.id} cannot read {name} (injected).", store=self.id, name=name)
        found = await self._inner.get(name, ranges, timeout_s=left_s, uncached=uncached)
        return list(self._flipped(found)) if self._chance(self.script.flips) else found

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Leaves it to `get` whenever a fault could touch this read."""
        script = self.script
        touched = (
            script.hang
            or script.vanished
            or script.read_errors > 0
            or script.flips > 0
            or script.delay_s[1] > 0
            or script.fail_after is not None
            or name in script.lost
            or name in script.unreadable
        )
        return None if touched else self._inner.peek(name, ranges)

    async def size(self, name: str, *, timeout_s: float) -> int:
        left_s = await self._before_read(timeout_s)
        self._check_lost(name)
        return await self._inner.size(name, timeout_s=left_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        left_s = await self._before_read(timeout_s)
        while True:
            names = await self._inner.list(after, limit=limit, timeout_s=left_s)
            found = [name for name in names if name not in self.script.lost]
            if found or not names:
                return found
            after = names[-1]  # an empty page would mean the end

    async def usage(self, *, timeout_s: float) -> Usage:
        left_s = await self._before_read(timeout_s)
        usage = await self._inner.usage(timeout_s=left_s)
        return Usage(usage.bytes_total, 0, usage.bytes_reserve) if self.script.full else usage

    async def probe(self, *, timeout_s: float) -> None:
        left_s = await self._before_read(timeout_s)
        self._check_writable()
        if self.script.full:
            raise StoreFull(f"Store {self.id} is full (injected).", store=self.id)
        if self._chance(self.script.write_errors) or self._chance(self.script.sync_errors):
            raise self._io_error("write")
        await self._inner.probe(timeout_s=left_s)

    async def close(self) -> None:
        self.crash()
        await self._inner.close()

    @property
    def lands_late(self) -> bool:
        """Whether a put or delete that was told to be overdue may still land."""
        return bool(self._background)

    def crash(self) -> None:
        """The process or the machine dies: what would have landed late never does."""
        for task in tuple(self._background):
            task.cancel()

    async def _change(self, land: Callable[[float], Awaitable[None]], timeout_s: float) -> None:
        """A put or delete: on time, late, or never."""
        self._count()
        self._check_writable()
        if self.script.hang:
            await self._clock.sleep(timeout_s)
            raise self._overdue(timeout_s)
        if self._chance(self.script.write_errors):
            raise self._io_error("write")
        delay_s = self._between(self.script.put_delay_s or self.script.delay_s)
        late = self._chance(self.script.late)
        if late:
            delay_s = timeout_s + self._between(self.script.late_s)
        if delay_s < timeout_s:
            if delay_s > 0:
                await self._clock.sleep(delay_s)
            self._check_writable()
            await land(timeout_s - delay_s)
            return
        task = asyncio.get_running_loop().create_task(self._land_late(land, delay_s, timeout_s))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await self._clock.sleep(timeout_s)
        raise self._overdue(timeout_s)

    async def _land_late(
        self, land: Callable[[float], Awaitable[None]], delay_s: float, timeout_s: float
    ) -> None:
        await self._clock.sleep(delay_s)
        try:
            self._check_writable()
            await land(timeout_s)
        except HoldfastError:
            # Its caller was told that it was overdue; how it ended is seen by looking.
            return

    async def _before_read(self, timeout_s: float) -> float:
        """Faults that all reads share; returns the time that is left."""
        self._count()
        self._check_there()
        if self.script.hang:
            await self._clock.sleep(timeout_s)
            raise self._overdue(timeout_s)
        delay_s = self._between(self.script.delay_s)
        if delay_s > 0:
            await self._clock.sleep(min(delay_s, timeout_s))
            if delay_s >= timeout_s:
                raise self._overdue(timeout_s)
            self._check_there()
        if self._chance(self.script.read_errors):
            raise self._io_error("read")
        return timeout_s - delay_s

    def _check_there(self) -> None:
        if self.script.vanished:
            raise StoreFailed(f"Store {self.id} has vanished (injected).", store=self.id)

    def _count(self) -> None:
        if self.script.fail_after is not None:
            self.script.fail_after -= 1
            if self.script.fail_after < 0:
                self.script.fail_after = None
                raise self._io_error("call")

    def _check_writable(self) -> None:
        self._check_there()
        if self.script.read_only:
            raise StoreReadOnly(f"Store {self.id} is read-only (injected).", store=self.id)

    def _check_lost(self, name: str) -> None:
        if name in self.script.lost:
            raise ShardMissing(f"Store {self.id} has lost {name} (injected).", store=self.id, name=name)

    def _may_be_late(self) -> bool:
        return self.script.late > 0 or (self.script.put_delay_s or self.script.delay_s)[1] > 0

    def _flipped(self, found: Sequence[Buffer]) -> Sequence[Buffer]:
        spoiled: list[Any] = [bytearray(piece) for piece in found]
        position = self._randomness.below(8 * sum(len(piece) for piece in spoiled))
        for piece in spoiled:
            if position < 8 * len(piece):
                piece[position // 8] ^= 1 << position % 8
                break
            position -= 8 * len(piece)
        return spoiled

    def _chance(self, chance: float) -> bool:
        return chance > 0 and self._randomness.fraction() < chance

    def _between(self, bounds: tuple[float, float]) -> float:
        least, most = bounds
        return least if least == most else least + (most - least) * self._randomness.fraction()

    def _io_error(self, what: str) -> StoreFailed:
        return StoreFailed(f"Store {self.id}: input/output error in a {what} (injected).", store=self.id)

    def _overdue(self, timeout_s: float) -> StoreOverdue:
        return StoreOverdue(f"Store {self.id} did not answer in {timeout_s:g} s.", store=self.id)
