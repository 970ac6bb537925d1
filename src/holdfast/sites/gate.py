"""The index as clients of a site see it: shut, unless the site is the active one and its lease holds.

What must hold:

- every commit expects the row of the site's role as this process was told of it; so when the role ends, it
  ends for everything that is on its way, whoever sent it and however late it arrives;
- what was committed while the lease no longer held is not acknowledged: its outcome is Unknown, and whoever
  asks again is told that the site does not serve. (A row that the other site may not have; see "When the
  old site returns" in `docs/sites.md`.)

Chores that look after this site's own shards use the index behind it.
"""

from collections.abc import AsyncIterator, Callable, Sequence

from msgspec import Struct

from holdfast.base.errors import Unavailable
from holdfast.index.port import (
    ABSENT,
    Change,
    Committed,
    Conflict,
    Expect,
    Index,
    IndexStatus,
    Lease,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
)
from holdfast.sites.rows import STATE_ROW
from holdfast.sites.standing import Role


class Told(Struct, frozen=True):
    """What this process knows of its site: the role, the revision of its row, and the site that serves if
    known."""

    role: Role
    revision: int
    serving: str = ""


class NotServing(Unavailable):
    """This site is not the one that serves. Nothing was acknowledged."""


class GatedIndex:
    """`inner` for clients. `told` says what the site is at this moment, `may_acknowledge` whether its lease
    holds; `reads` whether a standby may be read."""

    def __init__(
        self,
        inner: Index,
        told: Callable[[], Told],
        may_acknowledge: Callable[[], bool],
        *,
        reads: bool = False,
    ) -> None:
        self._inner = inner
        self._told = told
        self._may_acknowledge = may_acknowledge
        self._reads = reads

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """As the port's. Raises NotServing."""
        self._check_reads()
        found = await self._inner.get(keys)
        self._check_reads()
        return found

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        """As the port's. Raises NotServing."""
        self._check_reads()
        found = await self._inner.scan(start, end, limit=limit, delimiter=delimiter, skip=skip)
        self._check_reads()
        return found

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """As the port's. Raises NotServing, and then nothing of this call was committed."""
        told = self._told()
        if told.role is not Role.ACTIVE or not self._may_acknowledge():
            raise not_serving(told)
        state = Expect(STATE_ROW, told.revision)
        outcomes = await self._inner.commit(
            [transaction._replace(expects=(*transaction.expects, state)) for transaction in transactions]
        )
        refused = [isinstance(outcome, Conflict) and outcome.key == STATE_ROW for outcome in outcomes]
        if any(refused) and not any(isinstance(outcome, Committed | Unknown) for outcome in outcomes):
            raise not_serving(self._told())
        holds = self._may_acknowledge()
        return [
            Unknown("This site serves no more.")
            if is_refused or (isinstance(outcome, Committed) and not holds)
            else outcome
            for outcome, is_refused in zip(outcomes, refused, strict=True)
        ]

    def changes(self, after: int) -> AsyncIterator[Change]:
        """As the port's, whatever the site is: the other one follows it."""
        return self._inner.changes(after)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the port's."""
        return await self._inner.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        """As the port's."""
        await self._inner.release(lease)

    def status(self) -> IndexStatus:
        """As the port's."""
        return self._inner.status()

    async def close(self) -> None:
        """As the port's."""
        await self._inner.close()

    def _check_reads(self) -> None:
        told = self._told()
        if told.role is Role.ACTIVE and self._may_acknowledge():
            return
        if not (self._reads and told.role is Role.STANDBY):
            raise not_serving(told)


def not_serving(told: Told) -> NotServing:
    """What a client hears from a site that does not serve."""
    if told.role is Role.ACTIVE:
        return NotServing(
            "This site cannot reach two of the three votes, so the other one may serve.",
            hint="`holdfast site status` says which it can reach.",
        )
    where = f" {told.serving} does." if told.serving else ""
    return NotServing(
        f"This site does not serve: it is {told.role.value}.{where}",
        hint="Ask the site that serves, or the balancer, which knows.",
    )


NO_PAIR = Told(Role.ACTIVE, ABSENT)
"""A site that has no other: there is no row of a role, and nobody to wait for."""
