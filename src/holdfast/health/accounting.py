"""Counts what stores do, from the start of the node: calls, errors, slow answers, bytes and latencies.

An observer of measured stores, beside the one that tells health. What must hold: it only adds up, so that
whoever looks twice sees what happened in between; a blob that is there or not is an answer, not an error.
"""

from asyncio import CancelledError
from bisect import bisect_left

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.health.ledger import SLOW_STORE_READ_S, SLOW_STORE_WRITE_S
from holdfast.stores.measured import Operation, StoreObserver
from holdfast.stores.port import ShardExists, ShardMissing, ShardTruncated, StoreBusy, StoreFull

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of every latency histogram; one more is without bound."""

_WRITES = frozenset({Operation.PUT, Operation.DELETE, Operation.PROBE})
_ANSWERS = (ShardExists, ShardMissing, ShardTruncated, StoreBusy, StoreFull)


class Histogram:
    """Latencies in buckets."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Flow:
    """The calls of one kind to one store. Calls that their caller gave up are not counted."""

    __slots__ = ("bytes_moved", "calls", "errors", "latency", "slow")

    def __init__(self) -> None:
        self.calls = self.errors = self.slow = self.bytes_moved = 0
        self.latency = Histogram()


class StoreAccount:
    """What one store did. `unwell_since` is when the first call began that failed, was slow, or was given up
    for being slow, since the last one that was answered well; None where that was the last."""

    __slots__ = ("reads", "unwell_since", "writes")

    def __init__(self) -> None:
        self.reads = Flow()
        self.writes = Flow()
        self.unwell_since: float | None = None


class StoreAccounts:
    """A `StoreObserver` that counts, and then tells the next one."""

    def __init__(self, following: StoreObserver, clock: Clock) -> None:
        self._following = following
        self._clock = clock
        self._accounts: dict[StoreId, StoreAccount] = {}

    def of(self, store: StoreId) -> StoreAccount:
        """The account of a store; the caller must not change it."""
        account = self._accounts.get(store)
        if account is None:
            account = self._accounts[store] = StoreAccount()
        return account

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        bytes_moved: int,
        error: BaseException | None,
    ) -> None:
        """One call has ended."""
        account = self.of(store)
        writes = operation in _WRITES
        flow = account.writes if writes else account.reads
        is_slow = seconds > (SLOW_STORE_WRITE_S if writes else SLOW_STORE_READ_S)
        if error is None:
            flow.calls += 1
            flow.bytes_moved += bytes_moved
            flow.latency.add(seconds)
            if is_slow:
                flow.slow += 1
                self._unwell(account, seconds)
            else:
                account.unwell_since = None
        elif isinstance(error, _ANSWERS):
            flow.calls += 1
        elif not isinstance(error, CancelledError):
            flow.calls += 1
            flow.errors += 1
            self._unwell(account, seconds)
        elif is_slow:
            self._unwell(account, seconds)  # somebody stopped waiting for it
        self._following.observed(store, operation, seconds, bytes_moved, error)

    def _unwell(self, account: StoreAccount, seconds: float) -> None:
        if account.unwell_since is None:
            account.unwell_since = self._clock.monotonic() - seconds
