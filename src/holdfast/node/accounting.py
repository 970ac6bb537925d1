"""Counts what clients get: for the ledger, and since the start for `/-/metrics`.

On the way of every request, so it is short: a few additions in two dictionaries. What must hold: a request
counts once; what nobody signed is counted as traffic, but is no measure of what the node gave its users,
unless we turned it away for lack of room.
"""

from holdfast.health.accounting import Histogram
from holdfast.health.ledger import SLOW_DEFAULT_S, SLOW_S, Ledger, Verdict, judge, vouched
from holdfast.s3.observing import Answered, Ending

CLASSES = ("broken", "1xx", "2xx", "3xx", "4xx", "5xx", "gone")
"""How a request can end: by the first digit of its status, broken off by us, or left by its client."""

_BROKEN, _GONE = 0, 6


class OperationAccount:
    """One operation since the start of the node."""

    __slots__ = ("bytes_in", "bytes_out", "classes", "failures", "latency", "measured", "slow", "whole")

    def __init__(self) -> None:
        self.classes = [0] * len(CLASSES)
        self.latency = Histogram()
        self.whole = Histogram()
        self.bytes_in = self.bytes_out = self.measured = self.failures = self.slow = 0


class RequestAccounts:
    """A `RequestObserver`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.operations: dict[str, OperationAccount] = {}

    def answered(self, answered: Answered) -> None:
        """One request is over."""
        operation = answered.operation if answered.admitted else ""
        account = self.operations.get(operation)
        if account is None:
            account = self.operations[operation] = OperationAccount()
        ending, waited_s = answered.ending, answered.waited_s
        if ending is Ending.COMPLETE:
            account.classes[answered.status // 100] += 1
        else:
            account.classes[_BROKEN if ending is Ending.BROKEN else _GONE] += 1
        account.latency.add(waited_s)
        account.whole.add(answered.seconds)
        account.bytes_in += answered.bytes_in
        account.bytes_out += answered.bytes_out
        slow = waited_s > SLOW_S.get(operation, SLOW_DEFAULT_S)
        account.slow += slow
        bucket = answered.bucket
        if answered.admitted and not answered.code and ending is Ending.COMPLETE:
            verdict = Verdict.SUCCESS  # nearly all of them
            account.measured += 1
        else:
            verdict = judge(
                answered.status,
                answered.code,
                complete=ending is Ending.COMPLETE,
                gone=ending is Ending.GONE,
                waited_s=waited_s,
                clock_is_off=self._ledger.clock_is_off,
            )
            if verdict is Verdict.FAILURE:
                account.failures += 1
            elif not answered.admitted:
                return
            account.measured += verdict is not Verdict.NEITHER
            bucket = vouched(self._ledger, bucket, admitted=answered.admitted)
        self._ledger.count(
            bucket, answered.operation, verdict, slow, waited_s, answered.bytes_in, answered.bytes_out
        )
