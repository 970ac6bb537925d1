"""A lease each: of several nodes that could do a chore, one does it, and a dead node's work moves to another.

What must hold: whoever works took or renewed the lease less than `TTL_S` before. What only the holder may
do puts `fence()` among its expectations: a holder that was taken for dead, and has not noticed, can't commit
it. Most chores need no fence: all they change expects the revision that they looked at. A renewal costs one
row read each `RENEW_S`; an index that is away is no reason to stop before the lease has run out.
"""

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError
from holdfast.index.port import Expect, Index, Lease, lease_row

TTL_S = 30.0
RENEW_S = 10.0

assert RENEW_S * 2 < TTL_S


class ChoreLease:
    """The lease of one chore as this node sees it."""

    def __init__(self, chore: str, holder: str, index: Index, clock: Clock) -> None:
        self._name = f"chore-{chore}"
        self._holder = holder
        self._index = index
        self._clock = clock
        self._lease: Lease | None = None
        self._asked = 0.0

    async def hold(self) -> bool:
        """Whether the chore is ours now; takes or renews the lease where that is due. Raises the index's
        errors when it is not ours and can't be asked for."""
        now = self._clock.monotonic()
        if self._lease is not None and now - self._asked < RENEW_S:
            return True
        try:
            self._lease = await self._index.acquire(self._name, self._holder, ttl_s=TTL_S)
        except HoldfastError:
            if self._lease is not None and now - self._asked < TTL_S - RENEW_S:
                return True
            self._lease = None
            raise
        # By the time before it was asked for, so that it is never believed in for longer than it is granted.
        self._asked = now
        return self._lease is not None

    def fence(self) -> tuple[Expect, ...]:
        """Expectations that only hold while the lease is ours. Raises Fenced when it is not."""
        if self._lease is None:
            raise Fenced(f"The lease {self._name} is not held here.")
        return (Expect(lease_row(self._name), self._lease.token),)

    @property
    def token(self) -> int:
        """That of the lease that was granted last; 0 while it is not ours."""
        return 0 if self._lease is None else self._lease.token

    async def let_go(self) -> None:
        """Somebody else may have it at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._index.release(lease)
