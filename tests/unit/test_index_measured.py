"""A measured index tells of every commit once, how long it took and how it ended, and changes nothing."""

import pytest

from holdfast.base.errors import Unavailable
from holdfast.index.measured import MeasuredIndex
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Transaction
from holdfast.node.watching import IndexAccount
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

ONCE = Transaction((Expect(b"key", ABSENT),), ((b"key", b"value"),))


async def test_commits_are_counted_with_all_that_was_decided_in_them() -> None:
    clock, account = VirtualClock(), IndexAccount()
    index = MeasuredIndex(MemoryIndex(clock, commit_delay_s=0.02), account, clock)
    outcomes = await index.commit([ONCE, ONCE])
    assert [type(outcome) for outcome in outcomes] == [Committed, Conflict]
    assert (account.transactions, account.errors) == (2, 0)
    assert sum(account.latency.counts) == 1
    assert account.latency.sum_s == pytest.approx(0.02)


async def test_one_that_fails_is_an_error_and_is_passed_on() -> None:
    class Away(MemoryIndex):
        async def commit(self, transactions: object) -> list[object]:  # type: ignore[override]
            raise Unavailable("The index is away.")

    clock, account = VirtualClock(), IndexAccount()
    index = MeasuredIndex(Away(clock), account, clock)
    with pytest.raises(Unavailable):
        await index.commit([ONCE])
    assert (account.transactions, account.errors, sum(account.latency.counts)) == (0, 1, 0)
