"""The canary: a write, a read and a delete of a few bytes, made when no client asked for anything.

It goes the way of a small object from the batch on: encoded, placed and put to the stores, committed to the
index, read back and verified from the stores, and let go. What it leaves out is the face (HTTP, signatures)
and the rows of buckets and keys, so that no client ever sees it. What must hold: at most one canary lies in
the index, under a row of its own; whatever a crash or an unknown outcome leaves of one is let go by the next;
its bytes go the way of all deleted bytes, by the collector, so that none are left behind.
"""

import asyncio

import msgspec

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, Damaged, Unavailable
from holdfast.base.ids import VersionId
from holdfast.base.randomness import Randomness
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Index, Transaction
from holdfast.objects.heads import dead_puts, not_let_go
from holdfast.packs.model import Appended, Extent, ManifestEntry, PackStorage, Piece
from holdfast.scheme import Scheme

ROW = b"canary/"
OWNER = VersionId("canary")
BYTES = 64
TIMEOUT_S = 20.0
"""Longer than any part of it waits on its own, so that its error says which part it was."""


class Canary:
    """Sends one at a time."""

    def __init__(
        self, index: Index, packs: PackStorage, clock: Clock, randomness: Randomness, scheme: Scheme
    ) -> None:
        self._index = index
        self._packs = packs
        self._clock = clock
        self._randomness = randomness
        self._scheme = scheme
        self._doubtful: Appended | None = None
        self._turn = asyncio.Lock()
        self.tidied = False
        """Whether nothing of an earlier one is left, as far as is known."""

    async def send(self) -> float:
        """Write, read, delete; how long it took, in seconds. Raises Unavailable, Busy, Damaged."""
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S), self._turn:
                await self._send()
        except TimeoutError:
            raise Busy(f"The canary did not come back within {TIMEOUT_S:g} s.") from None
        return self._clock.monotonic() - began

    async def tidy(self) -> None:
        """Let go of what an earlier one left, if it did. Raises Unavailable and Busy, to be tried again."""
        async with self._turn:
            await self._tidy()

    async def _tidy(self) -> None:
        if self._doubtful is not None:
            await self._settle(self._doubtful)
        (row,) = await self._index.get([ROW])
        if row is not None:
            await self._let_go(msgspec.msgpack.decode(row.value, type=Extent), row.revision)
        self.tidied = True

    async def _send(self) -> None:
        await self._tidy()
        self.tidied = False
        data = self._randomness.token(BYTES)
        appended = await self._packs.append(self._scheme, Piece(data, _describe, _propose))
        revision = await self._settle(appended)
        if bytes(await self._packs.read_small(appended.extent)) != data:
            raise Damaged("The canary reads back as something else.")
        await self._let_go(appended.extent, revision)
        self.tidied = True

    async def _settle(self, appended: Appended) -> int:
        """Find out whether the canary's row was committed; the same transaction again cannot be, too. The
        row's revision. Raises Unavailable when that is not known yet, or the row is not there."""
        outcome = appended.outcome
        if appended is self._doubtful or not isinstance(outcome, Committed | Conflict):
            self._doubtful = appended
            (outcome,) = await self._index.commit([appended.transaction])
        if isinstance(outcome, Conflict):
            (row,) = await self._index.get([ROW])
            if row is not None and msgspec.msgpack.decode(row.value, type=Extent) == appended.extent:
                self._doubtful = None
                return row.revision
            await self._index.commit([_release(appended.extent)])
            self._doubtful = None
            raise Unavailable("The canary's row was not written.")
        if not isinstance(outcome, Committed):
            raise Unavailable("The index did not say whether the canary was written.")
        self._doubtful = None
        return outcome.revision

    async def _let_go(self, extent: Extent, revision: int) -> None:
        """Remove the row, and record its bytes as dead, unless that was done (an audit does, of what lies
        there for hours)."""
        there = Expect(ROW, revision)
        (outcome,) = await self._index.commit([_release(extent, (there,), (ROW,))])
        if isinstance(outcome, Conflict) and outcome.key != ROW:
            (outcome,) = await self._index.commit([Transaction((there,), (), (ROW,))])
        if not isinstance(outcome, Committed):
            raise Unavailable(f"The canary could not be deleted ({outcome}).")


def _describe(extent: Extent) -> ManifestEntry:
    return ManifestEntry("", OWNER, OWNER, extent.offset, extent.length)


def _propose(extent: Extent) -> Transaction:
    expects = (Expect(ROW, ABSENT), *not_let_go((extent.pack,), OWNER))
    return Transaction(expects, ((ROW, msgspec.msgpack.encode(extent)),))


def _release(
    extent: Extent, expects: tuple[Expect, ...] = (), deletes: tuple[bytes, ...] = ()
) -> Transaction:
    """The bytes end, once."""
    puts = dead_puts({extent.pack: extent.length}, OWNER, OWNER)
    return Transaction((*expects, *not_let_go((extent.pack,), OWNER)), puts, deletes)
