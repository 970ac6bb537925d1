"""A store that tells an observer how every call went: what it was, how long it took, how it ended.

`StoreTally` is such an observer: counts, bytes and latencies per operation, for `status`, health and
hedging. Measuring never changes a call: results, errors and cancellations pass as they are.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.stores.port import Range, ShardExists, ShardMissing, Store, Usage, bytes_of


class Operation(Enum):
    """The calls of the port."""

    PUT = "put"
    GET = "get"
    GET_UNCACHED = "get-uncached"
    SIZE = "size"
    DELETE = "delete"
    LIST = "list"
    USAGE = "usage"
    PROBE = "probe"


class StoreObserver(Protocol):
    """Who wants to know. Called on the loop, once for each call that ended; must be quick and not raise."""

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        bytes_moved: int,
        error: BaseException | None,
    ) -> None:
        """`bytes_moved` were asked to be; `error` is None for a success, CancelledError for a call that
        its caller gave up."""
        ...


class CallWatch(Protocol):
    """Who wants to know of calls while they are under way."""

    def began(self, store: StoreId, operation: Operation, now: float) -> None:
        """A call begins at monotonic `now`; the observer is told of its end."""
        ...


class MeasuredStore:
    """`inner`, observed; `watch` is told when a call begins."""

    def __init__(
        self, inner: Store, observer: StoreObserver, clock: Clock, *, watch: CallWatch | None = None
    ) -> None:
        self._inner = inner
        self._observer = observer
        self._clock = clock
        self._watch = watch

    @property
    def id(self) -> StoreId:
        return self._inner.id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        started = self._begin(Operation.PUT)
        try:
            await self._inner.put(name, data, timeout_s=timeout_s, reserve_share=reserve_share)
        except BaseException as error:
            self._tell(Operation.PUT, started, bytes_of(data), error)
            raise
        self._tell(Operation.PUT, started, bytes_of(data), None)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        operation = Operation.GET_UNCACHED if uncached else Operation.GET
        started = self._begin(operation)
        size = 0
        for range_ in ranges:
            size += range_.length
        try:
            found = await self._inner.get(name, ranges, timeout_s=timeout_s, uncached=uncached)
        except BaseException as error:
            self._tell(operation, started, size, error)
            raise
        self._tell(operation, started, size, None)
        return found

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Counts as a get when it answers; when it does not, nothing was attempted yet."""
        started = self._clock.monotonic()
        found = self._inner.peek(name, ranges)
        if found is not None:
            if self._watch is not None:
                self._watch.began(self._inner.id, Operation.GET, started)
            self._tell(Operation.GET, started, bytes_of(found), None)
        return found

    async def size(self, name: str, *, timeout_s: float) -> int:
        started = self._begin(Operation.SIZE)
        try:
            size = await self._inner.size(name, timeout_s=timeout_s)
        except BaseException as error:
            self._tell(Operation.SIZE, started, 0, error)
            raise
        self._tell(Operation.SIZE, started, 0, None)
        return size

    async def delete(self, name: str, *, timeout_s: float) -> None:
        started = self._begin(Operation.DELETE)
        try:
            await self._inner.delete(name, timeout_s=timeout_s)
        except BaseException as error:
            self._tell(Operation.DELETE, started, 0, error)
            raise
        self._tell(Operation.DELETE, started, 0, None)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        started = self._begin(Operation.LIST)
        try:
            names = await self._inner.list(after, limit=limit, timeout_s=timeout_s)
        except BaseException as error:
            self._tell(Operation.LIST, started, 0, error)
            raise
        self._tell(Operation.LIST, started, 0, None)
        return names

    async def usage(self, *, timeout_s: float) -> Usage:
        started = self._begin(Operation.USAGE)
        try:
            usage = await self._inner.usage(timeout_s=timeout_s)
        except BaseException as error:
            self._tell(Operation.USAGE, started, 0, error)
            raise
        self._tell(Operation.USAGE, started, 0, None)
        return usage

    async def probe(self, *, timeout_s: float) -> None:
        started = self._begin(Operation.PROBE)
        try:
            await self._inner.probe(timeout_s=timeout_s)
        except BaseException as error:
            self._tell(Operation.PROBE, started, 0, error)
            raise
        self._tell(Operation.PROBE, started, 0, None)

    async def close(self) -> None:
        await self._inner.close()

    def _begin(self, operation: Operation) -> float:
        now = self._clock.monotonic()
        if self._watch is not None:
            self._watch.began(self._inner.id, operation, now)
        return now

    def _tell(
        self, operation: Operation, started: float, bytes_moved: int, error: BaseException | None
    ) -> None:
        seconds = self._clock.monotonic() - started
        self._observer.observed(self._inner.id, operation, seconds, bytes_moved, error)


_STEPS_PER_DOUBLING = 4
_LEAST_S = 1e-6
_BUCKETS = 27 * _STEPS_PER_DOUBLING  # up to 134 s
_BOUNDS_S = tuple(_LEAST_S * 2 ** (step / _STEPS_PER_DOUBLING) for step in range(_BUCKETS))


class LatencyDigest:
    """Latencies as counts in buckets, each 19 % wider than the one before, from 1 us to 134 s: a fixed
    size, and quantiles within 19 %."""

    __slots__ = ("_counts", "count", "seconds_sum")

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS + 1)
        self.count = 0
        self.seconds_sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self._counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self.count += 1
        self.seconds_sum += seconds

    def quantile(self, fraction: float) -> float:
        """A latency that at least `fraction` of all did not exceed, in seconds; 0.0 when there is none.
        What is slower than the last bucket is told as infinite."""
        assert 0.0 <= fraction <= 1.0
        if not self.count:
            return 0.0
        wanted = max(1.0, fraction * self.count)
        seen = 0
        for bound, count in zip(_BOUNDS_S, self._counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")


class OperationTally:
    """How the calls of one operation went. `by_error` counts failures by the error's name. A blob that
    exists or is missing is an answer, and a call that was cancelled is neither success nor error."""

    __slots__ = ("attempts", "by_error", "bytes_moved", "cancelled", "errors", "latency", "successes")

    def __init__(self) -> None:
        self.attempts = 0
        self.successes = 0
        self.errors = 0
        self.cancelled = 0
        self.bytes_moved = 0
        self.by_error: dict[str, int] = {}
        self.latency = LatencyDigest()


class StoreTally:
    """An observer that counts, for one store or several together."""

    def __init__(self) -> None:
        self._tallies = {operation: OperationTally() for operation in Operation}

    def of(self, operation: Operation) -> OperationTally:
        """How the calls of `operation` went so far."""
        return self._tallies[operation]

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        bytes_moved: int,
        error: BaseException | None,
    ) -> None:
        tally = self._tallies[operation]
        tally.attempts += 1
        if error is None:
            tally.successes += 1
            tally.bytes_moved += bytes_moved
            tally.latency.add(seconds)
            return
        if isinstance(error, asyncio.CancelledError):
            tally.cancelled += 1
            return
        kind = type(error).__name__
        tally.by_error[kind] = tally.by_error.get(kind, 0) + 1
        if isinstance(error, (ShardExists, ShardMissing)):
            tally.successes += 1
        else:
            tally.errors += 1
