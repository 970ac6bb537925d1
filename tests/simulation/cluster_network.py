"""The network between simulated nodes, their index and their clients; and stores as seen through it.

A message takes a while, may be lost, may come twice, and does not come at all where a way is cut, which may
be one way only. Whoever waits for an answer gives up by its own deadline; what was asked for may happen all
the same.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.port import Range, Store, StoreFailed, StoreOverdue, Usage

if TYPE_CHECKING:
    from tests.simulation.cluster_world import Machine

T = TypeVar("T")

INDEX = "index"
CLIENTS = "clients"
LATENCY_S = (0.0001, 0.0006)
RESEND_S = 0.2
"""What a lost packet costs where a connection repeats it."""


class Network:
    """Which ways are cut, and how bad the others are. `bad` is how likely a packet is lost; `trip_s` is the
    round trip between two places, beyond that of any network."""

    def __init__(
        self,
        clock: Clock,
        randomness: SeededRandomness,
        trip_s: Callable[[str, str], float] = lambda one, other: 0.0,
    ) -> None:
        self._trip_s = trip_s
        self._clock = clock
        self._chance = randomness
        self.context = contextvars.copy_context()
        """That of no process: what is on its way belongs to nobody."""
        self.cut: set[tuple[str, str]] = set()
        self.bad = 0.0
        self.slow_s = 0.0

    def part(self, one: str, other: str, *, both: bool = True) -> None:
        """Nothing gets from one to the other any more."""
        self.cut.add((one, other))
        if both:
            self.cut.add((other, one))

    def heal(self) -> None:
        """All is well again."""
        self.cut.clear()
        self.bad = self.slow_s = 0.0

    async def carry(self, one: str, other: str) -> bool:
        """A message on its way; whether it arrives."""
        least, most = LATENCY_S
        delay_s = least + (most - least) * self._chance.fraction() + 0.5 * self._trip_s(one, other)
        if self.slow_s:
            delay_s += self.slow_s * self._chance.fraction()
        while self.bad and self._chance.fraction() < self.bad:
            delay_s += RESEND_S
        await self._clock.sleep(delay_s)
        return (one, other) not in self.cut

    def is_repeated(self) -> bool:
        """Whether a request comes twice."""
        return self.bad > 0 and self._chance.fraction() < self.bad


class RemoteStore:
    """A store of another machine, over the network. The call is the other process's, and is done by it when
    it runs."""

    def __init__(self, network: Network, here: str, machine: "Machine", slot: str, id: StoreId) -> None:
        self._network = network
        self._here = here
        self._machine = machine
        self._slot = slot
        self._id = id

    @property
    def id(self) -> StoreId:
        return self._id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        copy = [b"".join(data)]
        await self._call(
            timeout_s,
            lambda store: store.put(name, copy, timeout_s=timeout_s, reserve_share=reserve_share),
        )

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        return await self._call(
            timeout_s, lambda store: store.get(name, ranges, timeout_s=timeout_s, uncached=uncached)
        )

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        return None

    async def size(self, name: str, *, timeout_s: float) -> int:
        return await self._call(timeout_s, lambda store: store.size(name, timeout_s=timeout_s))

    async def delete(self, name: str, *, timeout_s: float) -> None:
        await self._call(timeout_s, lambda store: store.delete(name, timeout_s=timeout_s))

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return await self._call(timeout_s, lambda store: store.list(after, limit=limit, timeout_s=timeout_s))

    async def usage(self, *, timeout_s: float) -> Usage:
        return await self._call(timeout_s, lambda store: store.usage(timeout_s=timeout_s))

    async def probe(self, *, timeout_s: float) -> None:
        await self._call(timeout_s, lambda store: store.probe(timeout_s=timeout_s))

    async def close(self) -> None:
        return

    async def _call(self, timeout_s: float, work: Callable[[Store], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        times = 2 if self._network.is_repeated() else 1
        for _ in range(times):
            self._machine.errand(loop.create_task(self._errand(answer, work), context=self._network.context))
        done, _ = await asyncio.wait([answer], timeout=timeout_s)
        if not done:
            raise StoreOverdue(f"Store {self._id} did not answer within {timeout_s:g} s.", store=self._id)
        return answer.result()

    async def _errand(self, answer: "asyncio.Future[T]", work: Callable[[Store], Awaitable[T]]) -> None:
        """There and back. What arrives is done, whoever still waits for it."""
        there = self._machine.name
        if not await self._network.carry(self._here, there):
            return
        error: HoldfastError | None = None
        result: T | None = None
        try:
            result = await self._machine.serve(self._slot, self._id, work)
        except HoldfastError as raised:
            error = raised
        if not await self._network.carry(there, self._here) or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
            answer.exception()  # nobody may be waiting any more
        else:
            answer.set_result(result)  # type: ignore[arg-type]


def refused(store: StoreId) -> StoreFailed:
    """Nobody listens there."""
    return StoreFailed(f"Store {store}: its node does not answer.", store=store)
