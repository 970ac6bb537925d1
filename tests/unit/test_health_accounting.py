"""What stores do is counted, told on, and says since when one of them is not well."""

import asyncio

from holdfast.base.ids import StoreId
from holdfast.health.accounting import BOUNDS_S, Histogram, StoreAccounts
from holdfast.health.ledger import SLOW_STORE_READ_S
from holdfast.stores.measured import Operation
from holdfast.stores.port import ShardMissing, StoreFailed

STORE = StoreId("store")
QUICK, SLOW = 0.001, 2 * SLOW_STORE_READ_S


class At:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def aging(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Next:
    """The observer behind."""

    def __init__(self) -> None:
        self.told: list[tuple[Operation, BaseException | None]] = []

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        bytes_moved: int,
        error: BaseException | None,
    ) -> None:
        self.told.append((operation, error))


def accounts() -> tuple[StoreAccounts, At, Next]:
    clock, following = At(), Next()
    return StoreAccounts(following, clock), clock, following


def test_calls_are_counted_by_kind_and_told_on() -> None:
    counted, _, following = accounts()
    failed = StoreFailed("broken")
    for operation, seconds, error in (
        (Operation.GET, QUICK, None),
        (Operation.GET, SLOW, None),
        (Operation.GET, QUICK, failed),
        (Operation.GET, QUICK, ShardMissing("not there")),
        (Operation.GET, QUICK, asyncio.CancelledError()),
        (Operation.PUT, QUICK, None),
    ):
        counted.observed(STORE, operation, seconds, 4096, error)
    account = counted.of(STORE)
    assert (account.reads.calls, account.reads.errors, account.reads.slow) == (4, 1, 1)
    assert account.reads.bytes_moved == 8192
    assert (account.writes.calls, account.writes.bytes_moved) == (1, 4096)
    assert sum(account.reads.latency.counts) == 2
    assert len(following.told) == 6
    assert following.told[2] == (Operation.GET, failed)


def test_a_store_is_unwell_since_the_first_call_that_was_not_answered_well() -> None:
    for seconds, error in (
        (0.5, StoreFailed("broken")),
        (SLOW, None),
        (SLOW, asyncio.CancelledError()),
    ):
        counted, clock, _ = accounts()
        counted.observed(STORE, Operation.GET, seconds, 1, error)
        since = counted.of(STORE).unwell_since
        assert since == 100.0 - seconds
        clock.now = 103.0
        counted.observed(STORE, Operation.GET, seconds, 1, error)
        assert counted.of(STORE).unwell_since == since
        counted.observed(STORE, Operation.GET, QUICK, 1, None)
        assert counted.of(STORE).unwell_since is None


def test_a_histogram_counts_each_latency_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1], BOUNDS_S[-1] * 2):
        histogram.add(seconds)
    assert histogram.counts[0] == 2
    assert histogram.counts[1] == 1
    assert histogram.counts[-2] == 1
    assert histogram.counts[-1] == 1
