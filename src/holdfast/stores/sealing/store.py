"""A store that seals what it is given and opens what it gives: the store behind it has ciphertext alone.

What must hold: plain bytes are given out only when their frame's tag fits; what was changed behind is
ShardSpoiled, and a key that is missing is a failed store, never a missing or a wrong shard. Headers that
were opened are kept, because else each range would cost two requests; since a kept one may be of a blob
that is gone, whatever fails with it is asked again with the header as it is now.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.port import (
    Range,
    ShardSpoiled,
    ShardTruncated,
    Store,
    StoreOverdue,
    Usage,
    bytes_of,
    check_name,
    is_peekable,
)
from holdfast.stores.sealing.blob import (
    FRAME_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    OpenedBlob,
    open_header,
    plain_bytes,
    plain_that_fits,
    seal_blob,
)
from holdfast.stores.sealing.keys import KEY_BYTES, KeyRing

Found = list[Buffer]

OPENED_MAX = 1024
_TURN_FRAMES = 64
"""How many frames are made or opened before others get their turn."""

assert _TURN_FRAMES * FRAME_BYTES <= 1 << 20


class SealingStore:
    """`inner`, sealed. `randomness` makes data keys: outside of tests it must be the kernel's."""

    def __init__(self, inner: Store, ring: KeyRing, *, clock: Clock, randomness: Randomness) -> None:
        self._inner = inner
        self._ring = ring
        self._clock = clock
        self._randomness = randomness
        self._opened: OrderedDict[str, OpenedBlob] = OrderedDict()

    @property
    def id(self) -> StoreId:
        return self._inner.id

    @property
    def ring(self) -> KeyRing:
        """The keys it has."""
        return self._ring

    def take(self, ring: KeyRing) -> None:
        """Use this ring from the next call on."""
        self._ring = ring
        self._opened.clear()  # what was opened with a key that is gone must not stay open

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        check_name(name)
        deadline = asyncio.get_running_loop().time() + timeout_s
        data_key = self._randomness.token(KEY_BYTES)
        sealed: list[bytes] = []
        for piece in seal_blob(name, data, bytes_of(data), self._ring.newest, data_key):
            sealed.append(piece)
            if len(sealed) % _TURN_FRAMES == 0:
                await self._give_way(deadline, timeout_s)
        await self._inner.put(name, sealed, timeout_s=_left_s(deadline), reserve_share=reserve_share)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        check_name(name)
        deadline = asyncio.get_running_loop().time() + timeout_s
        kept = None if uncached else self._opened.get(name)
        if kept is not None:
            self._opened.move_to_end(name)
            try:
                return await self._read(kept, ranges, deadline, timeout_s)
            except Damaged:
                # The blob may be another one by now, or gone: the header tells.
                self._opened.pop(name, None)
        (header,) = await self._inner.get(
            name, [Range(0, HEADER_BYTES)], timeout_s=_left_s(deadline), uncached=uncached
        )
        blob = open_header(name, header, self._ring)
        found = await self._read(blob, ranges, deadline, timeout_s, uncached=uncached)
        self._keep(blob)
        return found

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """What is kept opened and can be had behind this instant. Anything wrong is left to `get`."""
        check_name(name)
        blob = self._opened.get(name)
        if blob is None or not is_peekable(ranges) or _end_of(ranges) > blob.length:
            return None
        runs = _runs(ranges)
        sealed = self._inner.peek(name, [Range(*blob.stretch(*run)) for run in runs])
        if sealed is None:
            return None
        frames: dict[int, bytes] = {}
        try:
            for (first, end), stretch in zip(runs, sealed, strict=True):
                frames |= _open_frames(blob, first, end, first, stretch)
        except ShardSpoiled:
            return None
        return _pieces(frames, ranges)

    async def size(self, name: str, *, timeout_s: float) -> int:
        sealed = await self._inner.size(name, timeout_s=timeout_s)
        length = plain_bytes(sealed)
        if length is None:
            raise ShardSpoiled(
                f"Blob {name} of store {self.id} has {sealed} bytes, which no sealed blob has.",
                store=self.id,
                name=name,
            )
        return length

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        self._opened.pop(name, None)
        await self._inner.delete(name, timeout_s=timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return await self._inner.list(after, limit=limit, timeout_s=timeout_s)

    async def usage(self, *, timeout_s: float) -> Usage:
        """`bytes_free` is the longest blob that still fits when it is sealed."""
        found = await self._inner.usage(timeout_s=timeout_s)
        return Usage(found.bytes_total, plain_that_fits(found.bytes_free), found.bytes_reserve)

    async def probe(self, *, timeout_s: float) -> None:
        await self._inner.probe(timeout_s=timeout_s)

    async def close(self) -> None:
        self._opened.clear()
        await self._inner.close()

    async def _read(
        self,
        blob: OpenedBlob,
        ranges: Sequence[Range],
        deadline: float,
        timeout_s: float,
        *,
        uncached: bool = False,
    ) -> Found:
        if _end_of(ranges) > blob.length:
            raise ShardTruncated(
                f"Blob {blob.name} of store {self.id} ends at {blob.length}, before {_end_of(ranges)}.",
                store=self.id,
                name=blob.name,
            )
        runs = _runs(ranges)
        sealed = await self._inner.get(
            blob.name,
            [Range(*blob.stretch(*run)) for run in runs],
            timeout_s=_left_s(deadline),
            uncached=uncached,
        )
        frames: dict[int, bytes] = {}
        for (first, end), stretch in zip(runs, sealed, strict=True):
            for at in range(first, end, _TURN_FRAMES):
                if frames:
                    await self._give_way(deadline, timeout_s)
                frames |= _open_frames(blob, first, min(end, at + _TURN_FRAMES), at, stretch)
        return _pieces(frames, ranges)

    def _keep(self, blob: OpenedBlob) -> None:
        self._opened[blob.name] = blob
        self._opened.move_to_end(blob.name)
        if len(self._opened) > OPENED_MAX:
            self._opened.popitem(last=False)

    async def _give_way(self, deadline: float, timeout_s: float) -> None:
        await self._clock.sleep(0)
        if asyncio.get_running_loop().time() >= deadline:
            raise StoreOverdue(f"Store {self.id} did not answer in {timeout_s:g} s.", store=self.id)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


def _end_of(ranges: Sequence[Range]) -> int:
    return max((offset + length for offset, length in ranges), default=0)


def _runs(ranges: Sequence[Range]) -> list[tuple[int, int]]:
    """The frames that hold the ranges, as runs (first, end) that neither touch nor overlap."""
    runs: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        assert offset >= 0
        assert length >= 1
        first, end = offset // FRAME_BYTES, (offset + length - 1) // FRAME_BYTES + 1
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((first, end))
    assert all(before[1] < after[0] for before, after in pairwise(runs))
    return runs


def _open_frames(blob: OpenedBlob, first: int, end: int, begin: int, stretch: Buffer) -> dict[int, bytes]:
    """Frames `begin` to `end` of a stretch whose first frame is `first`. Raises ShardSpoiled."""
    view = memoryview(stretch)
    frames: dict[int, bytes] = {}
    for number in range(begin, end):
        at = (number - first) * (FRAME_BYTES + TAG_BYTES)
        frames[number] = blob.open(number, view[at : at + blob.frame_bytes(number) + TAG_BYTES])
    return frames


def _pieces(frames: dict[int, bytes], ranges: Sequence[Range]) -> list[Buffer]:
    """The ranges, cut out of the frames that hold them."""
    found: list[Buffer] = []
    for offset, length in ranges:
        number, at = divmod(offset, FRAME_BYTES)
        if at + length <= FRAME_BYTES:
            found.append(frames[number][at : at + length])
            continue
        parts = [memoryview(frames[number])[at:]]
        left = length - len(parts[0])
        while left > 0:
            number += 1
            parts.append(memoryview(frames[number])[:left])
            left -= len(parts[-1])
        found.append(b"".join(parts))
    return found
