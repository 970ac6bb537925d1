"""Leases of an index that lives in exactly one process, made from its rows.

The row `lease/<name>` holds the holder's name; its revision is the token. Taking a lease writes the
row and so makes a greater token; renewing it only moves the expiry, which is kept here, by the
monotonic clock, and touches no row. What must hold: a token is never granted twice, and whoever puts
`lease_row(name)` at their token among their expectations cannot commit after somebody else got it.

A process that starts anew knows no expiry and grants at once: every earlier holder lived in the
process that this one has replaced (and fenced), and its token is stale from the first new grant on.
"""

from typing import NamedTuple

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.index.port import (
    ABSENT,
    Committed,
    Conflict,
    Expect,
    Index,
    Lease,
    Transaction,
    Unknown,
    lease_row,
)

_TRIES = 3


class _Held(NamedTuple):
    holder: str
    token: int
    expires_at: float


class ProcessLeases:
    """The lease table of one process over one index."""

    def __init__(self, index: Index, clock: Clock) -> None:
        self._index = index
        self._clock = clock
        self._held: dict[str, _Held] = {}

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the port says. Raises Unavailable when three tries in a row stayed unknown."""
        if not name or not holder or ttl_s <= 0:
            raise InvalidInput("A lease needs a name, a holder and a time above 0 s.")
        key = lease_row(name)
        for _ in range(_TRIES):
            # The clock is read before the row, so that the lease is never longer than it was asked for.
            now = self._clock.monotonic()
            row = (await self._index.get([key]))[0]
            held = self._held.get(name)
            if held is not None and (row is None or row.revision != held.token):
                held = None
            if held is not None and held.holder == holder:
                self._held[name] = _Held(holder, held.token, now + ttl_s)
                return Lease(name, holder, held.token)
            if held is not None and now < held.expires_at:
                return None
            expect = Expect(key, row.revision if row else ABSENT)
            outcome = (await self._index.commit([Transaction((expect,), ((key, holder.encode()),))]))[0]
            match outcome:
                case Committed(revision):
                    self._held[name] = _Held(holder, revision, now + ttl_s)
                    return Lease(name, holder, revision)
                case Conflict():
                    return None
                case Unknown():
                    # The next try expects the same or a newer revision: both cannot commit.
                    continue
        raise Unavailable(f"Whether lease {name!r} was granted stayed unknown.", hint="Ask again.")

    async def release(self, lease: Lease) -> None:
        """As the port says. An unknown outcome is left: the row goes now, later, or at the next grant."""
        held = self._held.get(lease.name)
        if held is not None and held.token == lease.token:
            del self._held[lease.name]
        key = lease_row(lease.name)
        await self._index.commit([Transaction((Expect(key, lease.token),), (), (key,))])
