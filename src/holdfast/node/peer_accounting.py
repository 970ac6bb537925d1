"""Counts what peers ask of this node's stores and get, since the start, for `/-/metrics`.

What must hold: each request counts once, a hello and what was refused unread, too; and what a request asked
for counts as that only once its signature held.
"""

from holdfast.health.accounting import Histogram
from holdfast.s3.observing import Ending, describe
from holdfast.wire.exchange import Exchange

NO_CALL = "none"
"""The call of what was not understood, or turned away for lack of room."""

GOOD = "good"
NO_ROOM = "StoreBusy"


class CallAccount:
    """One kind of request. `results` are how often each result was given: good, broken off by us, gone with
    its caller, or the kind of error that was answered."""

    __slots__ = ("bytes_in", "bytes_out", "latency", "results")

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        self.latency = Histogram()
        self.bytes_in = self.bytes_out = 0


class PeerAccounts:
    """An observer of the server for peers."""

    def __init__(self) -> None:
        self.calls: dict[str, CallAccount] = {}

    def over(self, exchange: Exchange, now: float, *, broken_by_us: bool) -> None:
        """One request is over."""
        answered = describe(exchange, now, broken_by_us=broken_by_us)
        call = answered.operation or NO_CALL
        account = self.calls.get(call)
        if account is None:
            account = self.calls[call] = CallAccount()
        result = answered.ending.value
        if answered.ending is Ending.COMPLETE:
            result = answered.code or (GOOD if answered.operation else NO_ROOM)
        account.results[result] = account.results.get(result, 0) + 1
        account.bytes_in += answered.bytes_in
        account.bytes_out += answered.bytes_out
        if result == GOOD:
            account.latency.add(answered.seconds)
