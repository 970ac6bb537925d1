"""What an observer of the S3 face is told: how each request ended, once it has.

This room counts nothing itself. What must hold: every request of S3 is told once, those that were turned away
for lack of room, too; the node's own paths and what is not HTTP are not told; and what a request claims to
be about is marked as a claim until its signature held, so that nobody can fill books with invented names.
"""

from enum import Enum
from typing import Protocol

from msgspec import Struct

from holdfast.wire.exchange import Exchange


class Ending(Enum):
    """How an exchange ended: the answer was sent whole, we broke it off, or the client was gone before."""

    COMPLETE = "complete"
    BROKEN = "broken"
    GONE = "gone"


class Answered(Struct, gc=False):
    """One request that is over. `operation` and `bucket` are empty where they are not known; they are only
    claimed unless `admitted`. `code` is the S3 error's, empty for a success. `waited_s` is from the last byte
    of the request to the first byte of the answer (or until the client left), 0.0 where the answer came
    before the request was complete; `seconds` is from the request's head to the end. Bytes are of bodies."""

    operation: str
    bucket: str
    admitted: bool
    status: int
    code: str
    ending: Ending
    waited_s: float
    seconds: float
    bytes_in: int
    bytes_out: int


class RequestObserver(Protocol):
    """Who wants to know. Called on the loop, once a request; must be quick and not raise."""

    def answered(self, answered: Answered) -> None:
        """One request is over."""
        ...


class Describing:
    """Tells a RequestObserver what the server tells of its exchanges."""

    def __init__(self, observer: RequestObserver) -> None:
        self._observer = observer

    def over(self, exchange: Exchange, now: float, *, broken_by_us: bool) -> None:
        self._observer.answered(describe(exchange, now, broken_by_us=broken_by_us))


def describe(exchange: Exchange, now: float, *, broken_by_us: bool) -> Answered:
    """How an exchange went that is over `now`. `broken_by_us`: who is to blame if its answer is not whole."""
    first, gone, complete = exchange.first_at, exchange.gone_at, exchange.complete_at
    left = first or now
    if gone and gone <= left:
        # Who closes only the sending side while it waits looks like this, too; no client of S3 does.
        ending, left = Ending.GONE, gone
    elif exchange.ended and first:
        ending = Ending.COMPLETE
    else:
        ending = Ending.BROKEN if broken_by_us else Ending.GONE
    waited_s = left - complete if complete else 0.0
    return Answered(
        exchange.operation,
        exchange.subject,
        exchange.admitted,
        exchange.status,
        exchange.code,
        ending,
        waited_s if waited_s > 0.0 else 0.0,
        now - exchange.begun_at,
        exchange.bytes_in,
        exchange.bytes_out,
    )
