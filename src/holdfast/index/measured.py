"""An index that tells an observer how every commit went: how long it took, how many transactions, how it
ended. Measuring never changes a call; reads go straight through, since they are on the way of every request.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.index.port import Change, Index, Lease, Outcome, Transaction


class IndexObserver(Protocol):
    """Who wants to know. Called on the loop, once for each commit that ended; must be quick and not raise."""

    def committed(self, seconds: float, transactions: int, error: BaseException | None) -> None:
        """`transactions` were decided together; `error` is None when they were decided."""
        ...


class MeasuredIndex:
    """`inner`, observed."""

    def __init__(self, inner: Index, observer: IndexObserver, clock: Clock) -> None:
        self._inner = inner
        self._observer = observer
        self._clock = clock
        self.get = inner.get
        self.scan = inner.scan
        self.status = inner.status

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        started = self._clock.monotonic()
        try:
            outcomes = await self._inner.commit(transactions)
        except BaseException as error:
            self._observer.committed(self._clock.monotonic() - started, len(transactions), error)
            raise
        self._observer.committed(self._clock.monotonic() - started, len(transactions), None)
        return outcomes

    def changes(self, after: int) -> AsyncIterator[Change]:
        return self._inner.changes(after)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        return await self._inner.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        await self._inner.release(lease)

    async def close(self) -> None:
        await self._inner.close()
