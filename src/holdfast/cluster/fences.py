"""Whose transactions may make packs: fences, which end what is still on its way.

A commit whose answer was lost may land later, even after the pack that it makes has lived and died; its
process may be long dead. So each transaction that makes a pack expects a *fence* of its node, a row that its
process made before the pack got its id, and whoever takes that row away ends them all. A process has a
current fence, and older ones under which packs were begun that are not decided yet; now and then it makes a
new one, and takes an old one away when nobody holds a ticket of it any more.

What must hold: a pack is bound to the fence that was there before its id was; so whatever is older than the
oldest fence can not come back. A fence that is gone never comes back at its revision. Nobody's aliveness
decides about any of this: to fence a node that is well costs it some requests that have to be tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from weakref import WeakSet

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.cluster.rows import FENCES, FORMAT, FenceRow, all_of, encode, fence_row, fences_of
from holdfast.index.port import ABSENT, Committed, Expect, Index, Row, Transaction, Unknown

ROTATE_S = 30.0
"""How old a fence becomes while something waits for it to go."""

ROTATE_AT_LAST_S = 3600.0
"""How old it becomes when nothing does."""

TICKET_S = 24 * 3600.0
"""A pack that is not decided so long after its fence was replaced is given up."""

_TRIES = 3
_ALL = 100_000


class Ticket:
    """Held by whoever may still send a transaction that makes a certain pack, as long as that is so; put
    `expects` among its expectations."""

    __slots__ = ("__weakref__", "expects")

    def __init__(self, expects: tuple[Expect, ...] = ()) -> None:
        self.expects = expects


NO_TICKET = Ticket()


class Fences(Protocol):
    """Gives tickets. Ask before the pack has an id."""

    def ticket(self) -> Ticket:
        """Raises Busy while this node has no fence."""
        ...

    async def renew(self) -> None:
        """A ticket turned out to be void: see to it that the next one is not. Raises Unavailable."""
        ...


class _NoFences:
    """For an index that belongs to one process, which its engine fences as a whole."""

    def ticket(self) -> Ticket:
        return NO_TICKET

    async def renew(self) -> None:
        return


NO_FENCES: Fences = _NoFences()


class _Fence:
    def __init__(self, key: bytes, revision: int, opened: float) -> None:
        self.expect = Expect(key, revision)
        self.opened = opened
        self.replaced = opened
        self.tickets: WeakSet[Ticket] = WeakSet()


async def _nobody_waits() -> bool:
    return False


class OwnFences:
    """The fences of this node. `is_waited_for` says whether anything would go if old fences did."""

    def __init__(
        self,
        index: Index,
        clock: Clock,
        randomness: Randomness,
        name: str,
        boot: str,
        is_waited_for: Callable[[], Awaitable[bool]] = _nobody_waits,
    ) -> None:
        self._index = index
        self._clock = clock
        self._randomness = randomness
        self._name = name
        self._boot = boot
        self._is_waited_for = is_waited_for
        self._fences: list[_Fence] = []
        self._current: _Fence | None = None
        self._tending = asyncio.Lock()
        self.began = 0
        """No pack that is made from now on, by whomever, was begun before this revision."""

    @property
    def count(self) -> int:
        """How many this process has."""
        return len(self._fences)

    def ticket(self) -> Ticket:
        """See `Fences.ticket`."""
        if self._current is None:
            raise Busy("This node was fenced, and is coming back.", hint="Try again in a moment.")
        ticket = Ticket((self._current.expect,))
        self._current.tickets.add(ticket)
        return ticket

    async def open(self) -> None:
        """Make the first fence, and end whatever an earlier process of this node left on its way. Raises
        Unavailable."""
        await self._make()
        await self.tend()

    async def renew(self) -> None:
        """See `Fences.renew`."""
        await self.tend()

    async def tend(self) -> None:
        """To be called every few seconds: replace a fence that somebody took away, or that others wait for,
        and take away what nobody needs. Raises Unavailable."""
        async with self._tending:
            await self._tend()

    async def _tend(self) -> None:
        known = self._index.status().revision
        rows = [row for row in await self._index.scan(*all_of(FENCES), limit=_ALL) if isinstance(row, Row)]
        self.began = max(self.began, min([known, *(row.revision for row in rows)]))
        self._compare({row.key: row.revision for row in rows})
        if self._current is None or await self._is_old(self._current):
            await self._make()
        await self._remove(rows)

    def _compare(self, there: dict[bytes, int]) -> None:
        """Notice what somebody took away."""
        self._fences = [one for one in self._fences if there.get(one.expect.key) == one.expect.revision]
        if self._current not in self._fences:
            self._current = None

    async def _is_old(self, fence: _Fence) -> bool:
        age_s = self._clock.monotonic() - fence.opened
        if age_s < ROTATE_S:
            return False
        return age_s >= ROTATE_AT_LAST_S or await self._is_waited_for()

    async def _make(self) -> None:
        for _ in range(_TRIES):
            key = fence_row(self._name, self._randomness.token(4).hex())
            value = encode(FenceRow(FORMAT, self._boot))
            now = self._clock.monotonic()
            (outcome,) = await self._index.commit([Transaction((Expect(key, ABSENT),), ((key, value),))])
            if isinstance(outcome, Committed):
                if self._current is not None:
                    self._current.replaced = now
                self._current = _Fence(key, outcome.revision, now)
                self._fences.append(self._current)
                return
            # What may have come, or may come yet, is taken away when it is seen.
        raise Unavailable("This node could not make a fence: the outcome stayed unknown.", hint="Try again.")

    async def _remove(self, rows: Sequence[Row]) -> None:
        """Take away what no ticket of this process needs, whichever process made it."""
        now = self._clock.monotonic()
        needed = {
            one.expect.key
            for one in self._fences
            if one is self._current or (one.tickets and now - one.replaced < TICKET_S)
        }
        prefix = fences_of(self._name)
        gone = [row for row in rows if row.key.startswith(prefix) and row.key not in needed]
        if not gone:
            return
        outcomes = await self._index.commit(
            [Transaction((Expect(row.key, row.revision),), (), (row.key,)) for row in gone]
        )
        ended = {
            row.key for row, outcome in zip(gone, outcomes, strict=True) if not isinstance(outcome, Unknown)
        }
        self._fences = [one for one in self._fences if one.expect.key not in ended]
