"""A store that is far away: each call takes half a round trip to get there and half a one to come back.

`trip_s` and `jitter_s` may be changed at any time: a call takes the trip as it is when it sets out, and up to
the jitter more. `cut` is a network that carries nothing any more. Nothing is added at distance nought.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.port import Range, Store, StoreOverdue, Usage

T = TypeVar("T")


class Way:
    """The way to one place."""

    def __init__(self, trip_s: float, clock: Clock, randomness: Randomness, jitter_s: float = 0.0) -> None:
        self.trip_s = trip_s
        self.jitter_s = jitter_s
        self.cut = False
        self._clock = clock
        self._chance = randomness

    async def half(self) -> None:
        """One direction."""
        if self.cut:
            await asyncio.get_running_loop().create_future()
        seconds = 0.5 * (self.trip_s + (self.jitter_s * self._chance.fraction() if self.jitter_s else 0.0))
        if seconds:
            await self._clock.sleep(seconds)

    async def ping(self) -> float:
        """There and back; how long that took."""
        began = self._clock.monotonic()
        await self.half()
        await self.half()
        return self._clock.monotonic() - began


class DistantStore:
    """`inner` at the end of `way`."""

    def __init__(self, inner: Store, way: Way) -> None:
        self._inner = inner
        self._way = way

    @property
    def id(self) -> StoreId:
        return self._inner.id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        await self._call(
            timeout_s,
            lambda: self._inner.put(name, data, timeout_s=timeout_s, reserve_share=reserve_share),
        )

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        return await self._call(
            timeout_s, lambda: self._inner.get(name, ranges, timeout_s=timeout_s, uncached=uncached)
        )

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        return None if self._way.trip_s else self._inner.peek(name, ranges)

    async def size(self, name: str, *, timeout_s: float) -> int:
        return await self._call(timeout_s, lambda: self._inner.size(name, timeout_s=timeout_s))

    async def delete(self, name: str, *, timeout_s: float) -> None:
        await self._call(timeout_s, lambda: self._inner.delete(name, timeout_s=timeout_s))

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return await self._call(timeout_s, lambda: self._inner.list(after, limit=limit, timeout_s=timeout_s))

    async def usage(self, *, timeout_s: float) -> Usage:
        return await self._call(timeout_s, lambda: self._inner.usage(timeout_s=timeout_s))

    async def probe(self, *, timeout_s: float) -> None:
        await self._call(timeout_s, lambda: self._inner.probe(timeout_s=timeout_s))

    async def close(self) -> None:
        await self._inner.close()

    async def _call(self, timeout_s: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                await self._way.half()
                found = await call()
                await self._way.half()
                return found
        except TimeoutError:
            raise StoreOverdue(f"Store {self.id} did not answer in {timeout_s:g} s.", store=self.id) from None
