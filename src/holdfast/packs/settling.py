"""After the acknowledgement: late puts land and clear the debt, what nobody names is thrown away.

A pack may have died before its last put landed: then that shard, which no row has ever named, is buried
after the others.

Runs behind, one task a pack, and may be lost in a crash: then debt stays on record until the rewrite
chore pays it, and stray shards until the collector finds them.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping

import msgspec
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.index.port import Committed, Conflict, Expect, Index, Transaction
from holdfast.packs.disposal import burial, further_burial
from holdfast.packs.errors import PackGone
from holdfast.packs.model import DebtRow, PackRow, Place, buried_row, debt_row, pack_row, trash_row
from holdfast.packs.quorum import Attempt
from holdfast.packs.rows import KnownPack, PackRows, encode_row
from holdfast.packs.writing import Abandoned, Landed
from holdfast.stores.port import Store

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 60.0
GIVE_UP_S = 3600.0
"""A pack of a large upload is known to the index only when the upload ends; this is how long we look."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DebtRow)


class Settler:
    """Keeps book of what is under way behind the acknowledgements."""

    def __init__(self, stores: Mapping[StoreId, Store], index: Index, rows: PackRows, clock: Clock) -> None:
        self._stores = stores
        self._index = index
        self._rows = rows
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def landed(self, landed: Landed, *, known: bool) -> None:
        """A pack was acknowledged; see to its late puts. `known` says that its row is in the index, else
        that is still to come."""
        if landed.late:
            self._run(self._settle(landed, known))

    def abandoned(self, abandoned: Abandoned) -> None:
        """A pack id was given up, or some shards of it; bury them."""
        self._run(self._bury(abandoned))

    @property
    def under_way(self) -> int:
        """Packs that are being settled."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what is under way; what comes later is left to the collector of orphans."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, landed: Landed, known: bool) -> None:
        waiting = dict(landed.late)
        arrived: list[Attempt] = []
        unused: list[Attempt] = []
        pause = RETRY_FIRST_S
        deadline = self._clock.monotonic() + GIVE_UP_S
        while self._clock.monotonic() < deadline:
            # As they come: a put that hangs is no reason to leave out one that has landed.
            for attempt in [attempt for attempt, task in waiting.items() if task.done()]:
                (arrived if _succeeded(waiting.pop(attempt)) else unused).append(attempt)
            try:
                row = await self._rows.fresh(landed.pack)
                known = True
                settled = not (arrived or unused) or await self._try_settle(landed, row, arrived, unused)
            except PackGone:
                settled = await self._try_bury_late(landed.pack, [*arrived, *unused], known)
            except HoldfastError:
                settled = False  # the index is away, and will be back
            if settled:
                arrived, unused = [], []
                if not waiting:
                    return
            if waiting:
                timeout = None if settled and known else pause
                await asyncio.wait(waiting.values(), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._clock.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _try_settle(
        self, landed: Landed, known: KnownPack, arrived: list[Attempt], unused: list[Attempt]
    ) -> bool:
        # Later than the row: whoever changes a debt touches the row, which must not have changed since.
        (found,) = await self._index.get([debt_row(landed.pack)])
        debt = _decoder.decode(found.value) if found is not None else None
        change, row = settle_transaction(landed, known, debt, arrived, unused)
        change = change._replace(expects=(*change.expects, *landed.ticket.expects))
        (outcome,) = await self._index.commit([change])
        if not isinstance(outcome, Committed):
            return False
        self._rows.learn(landed.pack, row, outcome.revision)
        return True

    async def _try_bury_late(self, pack: PackId, attempts: list[Attempt], known: bool) -> bool:
        """The pack has no row: it has died since, or (not `known`) its row may still come."""
        try:
            (grave,) = await self._index.get([buried_row(pack)])
            if grave is None and not known:
                return False
            if not attempts:
                return True
            (outcome,) = await self._index.commit([further_burial(pack, grave, _names(pack, attempts))])
        except HoldfastError:
            return False
        return isinstance(outcome, Committed)

    async def _bury(self, abandoned: Abandoned) -> None:
        if abandoned.late:
            await asyncio.wait(abandoned.late.values())
        shards = _names(abandoned.pack, abandoned.attempts)
        change = burial(abandoned.pack, shards)
        if abandoned.lives:
            change = Transaction((), tuple((trash_row(store, name), b"") for store, name in shards))
        pause = RETRY_FIRST_S
        deadline = self._clock.monotonic() + GIVE_UP_S
        while self._clock.monotonic() < deadline:
            try:
                (outcome,) = await self._index.commit([change])
            except HoldfastError:
                pass
            else:
                if isinstance(outcome, Committed | Conflict):
                    return
            await self._clock.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)


def with_arrived(landed: Landed) -> Landed:
    """A pack that no row names yet, with the shards that have landed late by now: they need not be owed, nor
    written again."""
    arrived = [attempt for attempt, task in landed.late.items() if task.done() and _succeeded(task)]
    _, row = settle_transaction(landed, KnownPack(landed.pack, landed.row, 0), None, arrived, [])
    debt = landed.debt
    if debt is not None:
        missing = KnownPack(landed.pack, row, 0).missing
        settled = row.scheme == debt.promised and not missing
        debt = None if settled else DebtRow(debt.promised, debt.reason, missing)
    return replace(landed, row=row, debt=debt)


def settle_transaction(
    landed: Landed, known: KnownPack, debt: DebtRow | None, arrived: list[Attempt], unused: list[Attempt]
) -> tuple[Transaction, PackRow]:
    """The row with the shards that arrived late, its debt as it is now cleared if nothing is missing any more
    of what is promised by now, and the attempts that nobody names declared dead. A pack that was written anew
    in another scheme meanwhile has no use for shards of the old one; and none for a second one on a store
    that has been given another shard of it."""
    pack, row = landed.pack, known.row
    wanted = set(known.missing) if row.scheme == landed.row.scheme else set()
    homes = set(known.stores)
    named = {(place.shard, place.store, place.attempt) for place in row.places}
    added = []
    for attempt in arrived:
        if attempt in named:
            # An earlier try, whose outcome was not known, has entered it.
            continue
        if attempt.shard in wanted and attempt.store not in homes:
            wanted.remove(attempt.shard)
            homes.add(attempt.store)
            added.append(Place(attempt.shard, attempt.store, attempt.attempt))
        else:
            unused = [*unused, attempt]
    places = tuple(sorted((*row.places, *added), key=lambda place: place.shard))
    changed = replace(row, places=places)
    puts = [(pack_row(pack), encode_row(changed))]
    puts += [(trash_row(store, name), b"") for store, name in _names(pack, unused)]
    deletes: tuple[bytes, ...] = ()
    if debt is not None and added:
        if wanted or row.scheme != debt.promised:
            missing = tuple(sorted(wanted))
            puts.append((debt_row(pack), _encoder.encode(DebtRow(debt.promised, debt.reason, missing))))
        else:
            deletes = (debt_row(pack),)
    return Transaction((Expect(pack_row(pack), known.revision),), tuple(puts), deletes), changed


def _names(pack: PackId, attempts: Iterable[Attempt]) -> tuple[tuple[StoreId, str], ...]:
    return tuple((attempt.store, shard_name(pack, attempt.shard, attempt.attempt)) for attempt in attempts)


def _succeeded(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is None
