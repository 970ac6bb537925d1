"""A lease each: of several nodes that could do a chore, one does it, and a dead node's work moves to another.

What must hold: whoever works took or renewed the lease less than `TTL_S` before. What only the holder may
do puts `fence()` among its expectations: a holder that was taken for dead, and has not noticed, can't commit
it. Most chores need no fence: all they change expects the revision that they looked at. A renewal costs one
row read each `RENEW_S`; an index that is away is no reason to stop before the lease has run out.

A lease follows the ability to do the work: a node that cannot do it now gives its lease up and leaves it to
others for a while, before it tries itself, in turns (`Courtesy`), since there may be nobody who can do more.
"""

from collections.abc import Callable

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError
from holdfast.index.port import Expect, Index, Lease, lease_row

TTL_S = 30.0
RENEW_S = 10.0

COURTESY_S = 60.0
"""How long a lease is left to others, and then held if nobody took it, by a node that can do little."""

assert RENEW_S * 2 < TTL_S
assert COURTESY_S > TTL_S, "others must have had the time to take it, from a node that died with it, too"


class Courtesy:
    """Whether a node may hold a lease, whose work it can do, or not. Pure."""

    def __init__(self) -> None:
        self._unable_since: float | None = None

    def may_hold(self, now: float, *, able: bool) -> bool:
        """Always while it is able; else every other `COURTESY_S`, beginning with leaving it to others."""
        if able:
            self._unable_since = None
            return True
        if self._unable_since is None:
            self._unable_since = now
        return int((now - self._unable_since) // COURTESY_S) % 2 == 1


class ChoreLease:
    """The lease of one chore as this node sees it. `able` says whether this node can do the work now."""

    def __init__(
        self,
        chore: str,
        holder: str,
        index: Index,
        clock: Clock,
        able: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name = f"chore-{chore}"
        self._holder = holder
        self._index = index
        self._clock = clock
        self._able = able
        self._courtesy = Courtesy()
        self.left_to_others = False
        """Whether it was not asked for when it was last looked at, because this node cannot do the work."""

        self._lease: Lease | None = None
        self._asked = 0.0

    async def hold(self) -> bool:
        """Whether the chore is ours now; takes or renews the lease where that is due. Raises the index's
        errors when it is not ours and can't be asked for."""
        now = self._clock.monotonic()
        self.left_to_others = not self._courtesy.may_hold(now, able=self._able())
        if self.left_to_others:
            await self.let_go()
            return False
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
