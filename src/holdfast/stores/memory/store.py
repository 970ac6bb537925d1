"""A store in memory, for tests and simulation.

It behaves like a disk where that matters: calls take time, two puts of one name race and one wins when
it lands, and a power cut (`crash`) leaves open whether a call that had not returned took effect. With
`sync_lies` even puts and deletes that did return are only sure after the next `settle`, as on a disk
that acknowledges from a volatile cache, and a blob may be there in part. No threads: on a virtual clock
the same seed gives the same run.
"""

from bisect import bisect_right
from collections.abc import Sequence

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.port import (
    Range,
    ShardExists,
    ShardMissing,
    ShardTruncated,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    Usage,
    bytes_of,
    check_name,
    is_peekable,
)

SECTOR_BYTES = 512
"""What a medium writes whole or not at all."""


class MemoryStore:
    """Blobs in a dictionary. `latency_s` are the least and the most that a call takes; (0, 0) never
    yields to other tasks. `bytes_reserve` of the capacity is kept free, as a directory does."""

    def __init__(
        self,
        id: StoreId,
        *,
        clock: Clock,
        randomness: Randomness,
        bytes_capacity: int = 1 << 40,
        bytes_reserve: int = 0,
        latency_s: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        assert 0 <= latency_s[0] <= latency_s[1]
        assert 0 <= bytes_reserve <= bytes_capacity
        self._id = id
        self._clock = clock
        self._randomness = randomness
        self._bytes_capacity = bytes_capacity
        self._bytes_reserve = bytes_reserve
        self.latency_s = latency_s
        self.sync_lies = False
        self._blobs: dict[str, bytes] = {}
        self._bytes_used = 0
        # Calls under way, oldest first: what each would do to its name (None deletes).
        self._landing: dict[int, tuple[str, bytes | None]] = {}
        self._landing_next = 0
        # What was acknowledged by a lying sync: the state of each name before it.
        self._unsettled: dict[str, bytes | None] = {}
        self._power_cuts = 0
        self._closed = False

    @property
    def id(self) -> StoreId:
        return self._id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        check_name(name)
        self._check_open()
        size = bytes_of(data)
        if name in self._blobs:
            raise self._exists(name)
        if size > self._bytes_free() + reserve_share * self._bytes_reserve:
            raise StoreFull(f"Store {self._id} has no room for {size} bytes.", store=self._id)
        # A copy: the caller may reuse its buffers as soon as we return or fail.
        await self._land(name, b"".join(data), timeout_s)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        check_name(name)
        await self._pass_time(timeout_s)
        blob = self._blob(name)
        found: list[Buffer] = []
        for offset, length in ranges:
            assert offset >= 0
            assert length >= 1
            if offset + length > len(blob):
                raise ShardTruncated(
                    f"Blob {name} of store {self._id} ends at {len(blob)}, before {offset + length}.",
                    store=self._id,
                    name=name,
                )
            found.append(blob[offset : offset + length])
        return found

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Nothing where calls take time: then all is on a disk that must be waited for."""
        check_name(name)
        blob = self._blobs.get(name)
        if self._closed or self.latency_s[1] > 0 or blob is None or not is_peekable(ranges):
            return None
        if any(offset + length > len(blob) for offset, length in ranges):
            return None
        return [blob[offset : offset + length] for offset, length in ranges]

    async def size(self, name: str, *, timeout_s: float) -> int:
        check_name(name)
        await self._pass_time(timeout_s)
        return len(self._blob(name))

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        self._check_open()
        await self._land(name, None, timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        assert limit >= 1
        await self._pass_time(timeout_s)
        names = sorted(self._blobs)
        start = bisect_right(names, after)
        return names[start : start + limit]

    async def usage(self, *, timeout_s: float) -> Usage:
        await self._pass_time(timeout_s)
        return Usage(self._bytes_capacity, max(0, self._bytes_free()), self._bytes_reserve)

    async def probe(self, *, timeout_s: float) -> None:
        await self._pass_time(timeout_s)
        if self._bytes_free() <= 0:
            raise StoreFull(f"Store {self._id} is full.", store=self._id)

    async def close(self) -> None:
        self._closed = True

    def unplug(self) -> None:
        """Take the disk away: every call fails from now on, those under way, too."""
        self._power_cuts += 1
        self._closed = True

    def reopen(self) -> None:
        """Undo `close`: the same disk under a new process."""
        self._closed = False

    def settle(self) -> None:
        """All that was acknowledged is on the medium now, whatever the sync had claimed."""
        self._unsettled.clear()

    def crash(self, randomness: Randomness) -> None:
        """The power is cut. Each call under way took effect or not, by chance; so did, under
        `sync_lies`, each that had returned since the last `settle`, or the blob has its name and only
        some of its bytes. Calls that still wait fail."""
        self._power_cuts += 1
        for name, before in sorted(self._unsettled.items()):
            fate = randomness.below(4)
            if fate >= 2:
                self._set(name, before)
            elif fate == 1 and (blob := self._blobs.get(name)) is not None:
                self._set(name, _torn(blob, randomness))
        self._unsettled.clear()
        for name, blob in list(self._landing.values()):
            if randomness.below(2) and not (blob is not None and name in self._blobs):
                self._set(name, blob)
        self._landing.clear()

    def damage(self, name: str, offset: int, mask: int) -> None:
        """Flip the bits of `mask` in one byte of a blob, for good."""
        assert 0 < mask < 256
        blob = bytearray(self._blobs[name])
        blob[offset] ^= mask
        self._blobs[name] = bytes(blob)

    @property
    def medium(self) -> dict[str, bytes]:
        """Every blob as it lies there, to look at behind the store's back."""
        return dict(self._blobs)

    def spoil(self, name: str, content: bytes | None) -> None:
        """Put other bytes in a blob's place, or take it away, behind the store's back."""
        self._set(name, content)

    def wipe(self) -> None:
        """Lose every blob, as when a disk is replaced by an empty one."""
        self._blobs.clear()
        self._unsettled.clear()
        self._bytes_used = 0

    async def _land(self, name: str, blob: bytes | None, timeout_s: float) -> None:
        """Put (or, with None, delete) after the latency; until then a power cut decides."""
        number = self._landing_next
        self._landing_next += 1
        self._landing[number] = (name, blob)
        try:
            await self._pass_time(timeout_s)
            if blob is not None and name in self._blobs:
                raise self._exists(name)
            if self.sync_lies:
                self._unsettled.setdefault(name, self._blobs.get(name))
            self._set(name, blob)
        finally:
            self._landing.pop(number, None)

    def _set(self, name: str, blob: bytes | None) -> None:
        old = self._blobs.pop(name, None)
        self._bytes_used -= len(old) if old is not None else 0
        if blob is not None:
            self._blobs[name] = blob
            self._bytes_used += len(blob)

    def _bytes_free(self) -> int:
        landing = sum(len(blob) for _, blob in self._landing.values() if blob is not None)
        return self._bytes_capacity - self._bytes_reserve - self._bytes_used - landing

    def _blob(self, name: str) -> bytes:
        blob = self._blobs.get(name)
        if blob is None:
            raise ShardMissing(f"Store {self._id} has no blob {name}.", store=self._id, name=name)
        return blob

    async def _pass_time(self, timeout_s: float) -> None:
        self._check_open()
        least, most = self.latency_s
        if most <= 0:
            return
        power_cuts = self._power_cuts
        latency = least + (most - least) * self._randomness.fraction()
        await self._clock.sleep(min(latency, timeout_s))
        if power_cuts != self._power_cuts:
            raise StoreFailed(f"The power of store {self._id} was cut.", store=self._id)
        if latency > timeout_s:
            raise StoreOverdue(f"Store {self._id} did not answer in {timeout_s} s.", store=self._id)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed(f"Store {self._id} is closed.", store=self._id)

    def _exists(self, name: str) -> ShardExists:
        return ShardExists(f"Store {self._id} has a blob {name} already.", store=self._id, name=name)


def _torn(blob: bytes, randomness: Randomness) -> bytes:
    """A blob of which some sectors came to the medium: the others are zeros, or it ends too soon."""
    if randomness.below(2):
        return blob[: randomness.below(len(blob))]
    torn = bytearray(blob)
    for at in range(0, len(torn), SECTOR_BYTES):
        if randomness.below(2):
            torn[at : at + SECTOR_BYTES] = bytes(len(torn[at : at + SECTOR_BYTES]))
    return bytes(torn)
