"""Writing one pack: choose, encode, place, put, and decide when it is durable enough.

Shards first: nothing here touches the index. What comes out is a pack that is durable on its stores
together with the row that would make it known. A pack that had to be given up halfway (a store failed,
and a smaller scheme fits those that are left) is written again under another id; the first id is
handed to `on_abandoned`.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, new_pack_id, shard_name
from holdfast.base.randomness import Randomness
from holdfast.cluster.fences import NO_FENCES, NO_TICKET, Fences, Ticket
from holdfast.health import StoreHealth, StoreState
from holdfast.packs import codec
from holdfast.packs.errors import BelowFloor
from holdfast.packs.format import ShardHeader, binding, block_checksums, encode_head
from holdfast.packs.layout import BLOCK_BYTES, Layout, bytes_on_stores, real_shards
from holdfast.packs.model import DebtReason, DebtRow, PackRow, Place, Receipt
from holdfast.packs.promising import Promises, required
from holdfast.packs.quorum import Attempt, Verdict, WriteRound, always
from holdfast.packs.spread import can_keep, fitting_scheme, without_slow
from holdfast.scheme import Scheme
from holdfast.stores.port import Store, StoreFull
from holdfast.topology import Topology, keeps, place, survived

PUT_TIMEOUT_S = 30.0
"""How long a put may take before it counts as failed; the acknowledgement waits far less."""

ROUNDS_MAX = 4

ATTEMPTS_MAX = 2**32
ATTEMPTS_A_ROUND = 1 << 10
"""Attempt numbers have 32 bits. A shard is not tried more often in one round than there are stores."""

LATE_BYTES_MAX = 96 << 20
"""What puts may hold that nobody waits for any more. A store that hangs holds them for `PUT_TIMEOUT_S`, while
writes go on at full speed; beyond this they are cancelled, and their debts are paid later."""


class Landed(Struct, frozen=True):
    """A pack that is durable enough. `late` are puts that have not answered; `unused` are attempts that
    the row does not name although they may have landed."""

    pack: PackId
    row: PackRow
    debt: DebtRow | None
    receipt: Receipt
    late: dict[Attempt, asyncio.Task[None]]
    unused: tuple[Attempt, ...]
    ticket: Ticket = NO_TICKET

    @property
    def abandoned(self) -> "Abandoned":
        """The same, if its row will never be in the index."""
        named = tuple(Attempt(place.shard, place.store, place.attempt) for place in self.row.places)
        return Abandoned(self.pack, (*named, *self.unused, *self.late), self.late)


class Abandoned(Struct, frozen=True):
    """A pack id that will never be in the index; its shards may lie on these stores. `lives`: the id is to be
    written again, and only these shards are given up."""

    pack: PackId
    attempts: tuple[Attempt, ...]
    late: dict[Attempt, asyncio.Task[None]]
    lives: bool = False


class Encoded(Struct, frozen=True):
    """The units of each real shard, and the checksums of their blocks without a seed's help."""

    layout: Layout
    units: dict[int, list[Buffer]]

    def stored(self) -> list[Buffer]:
        """The stored bytes again, with their filling, for another scheme."""
        data = range(self.layout.real_data_shards)
        return [self.units[shard][stripe] for stripe in range(self.layout.stripes) for shard in data]


Room = Callable[[StoreId], int]
"""What a store may be given that is new, in bytes; 0 for one that takes nothing."""


def alike(store: StoreId) -> int:
    """All stores have the same room: for those who do not know."""
    return 1


class Writer:
    """Writes packs. `stores` are those attached now; the mapping may change under it. `prefix` comes before
    every shard's name, for packs that are found by a name of their own (`packs.named`). `room` says where
    there is room for more, `promises` what the packs of a scheme have to survive."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        topology: Callable[[], Topology],
        health: StoreHealth,
        clock: Clock,
        randomness: Randomness,
        on_abandoned: Callable[[Abandoned], None],
        *,
        prefix: str = "",
        room: Room = alike,
        fences: Fences = NO_FENCES,
        promises: Promises | None = None,
    ) -> None:
        self._fences = fences
        self.promises = promises or Promises()
        self._prefix = prefix
        self._room = room
        self._stores = stores
        self._topology = topology
        self._health = health
        self._clock = clock
        self._randomness = randomness
        self._on_abandoned = on_abandoned
        self._late_bytes = 0

    @property
    def late_bytes(self) -> int:
        """What puts hold in memory that nobody waits for any more."""
        return self._late_bytes

    async def write(
        self,
        promised: Scheme,
        payload: Sequence[Buffer],
        manifest: bytes,
        object_bytes: int,
        *,
        reserve_share: float = 0.0,
        bytes_max: int | None = None,
        known_as: PackId | None = None,
    ) -> Landed:
        """Write a pack with this payload, of which `object_bytes` are not filling. A list is emptied, so
        that its buffers go as soon as they are encoded. `reserve_share` is what it may take of the stores'
        reserve. A scheme in which it would take more than `bytes_max` on all of them together is not chosen.
        `known_as` is the id that it has already, elsewhere.

        Raises BelowFloor, with nothing to be seen of it.
        """
        payload_bytes = sum(len(piece) for piece in payload)
        buffers = [*payload, manifest]
        if isinstance(payload, list):
            # The encoded units are a copy; holding both would double what a pack under way weighs.
            payload.clear()
        stored = payload_bytes + len(manifest)
        exclude: set[StoreId] = set()
        ticket = self._fences.ticket()
        scheme: Scheme | None = None
        encoded: Encoded | None = None
        for _ in range(ROUNDS_MAX):
            candidates = self.candidates(exclude, promised.m + 1, when_full=reserve_share > 0)
            topology = self._topology()
            told, well = self.promises.of(promised), self._health.waited_for
            candidates = without_slow(promised, stored, candidates, well, topology, told)
            chosen = fitting_scheme(promised, stored, candidates, topology, told)
            if chosen is None or (bytes_max is not None and bytes_on_stores(chosen, stored) > bytes_max):
                break
            if encoded is None or chosen != scheme:
                scheme = chosen
                encoded = await encode(scheme, buffers, stored, self._clock)
                buffers = encoded.stored()
            pack = known_as or new_pack_id(self._randomness)
            # A new id has no shards. One that is known may have some already, of a try that a crash ended.
            first = 0 if known_as is None else 1 + self._randomness.below(ATTEMPTS_MAX - ATTEMPTS_A_ROUND)
            row = PackRow(chosen, payload_bytes, len(manifest), object_bytes, ())
            outcome = await self._round(pack, promised, row, encoded, candidates, reserve_share, first)
            if isinstance(outcome, Landed):
                self._health.written(chosen.m, self._clock.monotonic())
                return replace(outcome, ticket=ticket)
            exclude |= outcome
        raise BelowFloor(
            f"Too few stores can be written for {promised.name}: {len(self.candidates(exclude, 0))} of "
            f"{len(self._stores)}, at least {promised.m + 1} are needed.",
            hint="Bring stores back or free space; `holdfast status` names them.",
        )

    def check_there(self, landed: Landed) -> None:
        """Raises BelowFloor when a pack that has landed could not be read any more: its stores went since."""
        needed = Layout(landed.row.scheme.k, landed.row.stored_bytes).real_data_shards
        there = sum(place.store in self._stores for place in landed.row.places)
        if there < needed:
            raise BelowFloor(
                "Stores went away with parts of the object while it was being sent: "
                f"{there} shards of a pack are left, and {needed} are needed.",
                hint="Send it again.",
            )

    def candidates(self, exclude: set[StoreId], enough: int, *, when_full: bool = False) -> list[StoreId]:
        """Stores to write to, best first, in random order among equals: who has twice the room comes twice
        as often before the other. Suspect ones only when the others are not `enough`; full ones only, and
        last, where `when_full` says so."""
        health = self._health
        rooms = {
            store: room for store in self._stores if store not in exclude and (room := self._room(store)) > 0
        }
        attached = list(rooms)
        self._shuffle(attached)
        if len(set(rooms.values())) > 1:
            attached = most_room_first(attached, rooms, self._randomness)
        if when_full:
            attached.sort(key=health.is_full)
        usable = [store for store in attached if when_full or not health.is_full(store)]
        well = [store for store in usable if health.waited_for(store)]
        slow = [store for store in usable if health.state(store) is StoreState.SITTING_OUT]
        chosen = well + slow
        if len(chosen) < enough:
            chosen += [
                store
                for store in attached
                if health.state(store) is StoreState.SUSPECT and store not in chosen
            ]
        return chosen

    async def put_shard(
        self, pack: PackId, row: PackRow, encoded: Encoded, attempt: Attempt, reserve_share: float = 0.0
    ) -> None:
        """One shard to its store. Raises the store's errors."""
        header = ShardHeader(
            pack, attempt.shard, attempt.attempt, row.scheme, row.payload_bytes, row.manifest_bytes
        )
        seed = binding(pack, attempt.shard, attempt.attempt)
        checksums: list[int] = []
        for number, unit in enumerate(encoded.units[attempt.shard]):
            if number % 4 == 3:
                await self._clock.sleep(0)
            checksums += block_checksums(unit, seed, len(checksums))
        store = self._stores.get(attempt.store)
        if store is None:
            raise BelowFloor(f"store {attempt.store} is not attached")
        await store.put(
            self._prefix + shard_name(pack, attempt.shard, attempt.attempt),
            [encode_head(header, checksums), *encoded.units[attempt.shard]],
            timeout_s=PUT_TIMEOUT_S,
            reserve_share=reserve_share,
        )

    async def _round(
        self,
        pack: PackId,
        promised: Scheme,
        row: PackRow,
        encoded: Encoded,
        candidates: list[StoreId],
        reserve_share: float,
        first_attempt: int,
    ) -> Landed | set[StoreId]:
        health = self._health
        real = sorted(encoded.units)
        topology, needed = self._topology(), encoded.layout.real_data_shards
        chosen = place(topology, len(real), candidates)
        # Data shards to the stores that are read first; the placement does not care which is which.
        chosen.sort(key=lambda store: (not health.readable(store), health.nearness(store)))
        homes = dict(zip(real, chosen, strict=True))
        slow = frozenset(store for store in candidates if not health.waited_for(store))
        spares = [store for store in candidates if store not in homes.values() and store not in slow]
        wanted = required(topology, promised, self.promises.of(promised))
        while wanted and not keeps(topology, wanted, chosen, needed):
            wanted = wanted[:-1]
        write_round = WriteRound(
            homes,
            needed=needed,
            spares=spares,
            unhurried=slow,
            stores_min=promised.m + 1,
            now=self._clock.monotonic(),
            keeps=partial(keeps, topology, wanted, needed=needed) if wanted else always,
            fits=partial(can_keep, topology, promised, wanted) if wanted else always,
            ways=self._ways((*homes.values(), *spares), encoded.layout.shard_bytes),
            first_attempt=first_attempt,
        )
        tasks: dict[asyncio.Task[None], Attempt] = {}
        try:
            await self._carry_out(write_round, tasks, pack, row, encoded, reserve_share)
        finally:
            # Also when the caller gave up: what has begun lands all the same.
            late = {attempt: task for task, attempt in tasks.items()}
            self._leave(tasks, encoded)
            if write_round.verdict is not Verdict.ACKNOWLEDGE:
                ended = (*write_round.ended, *late)
                self._on_abandoned(Abandoned(pack, ended, late, lives=first_attempt > 0))
        if write_round.verdict is not Verdict.ACKNOWLEDGE:
            return set(write_round.exclude) or set(homes.values())
        return self._landed(pack, promised, row, encoded, write_round, late)

    def _ways(self, stores: Sequence[StoreId], size: int) -> dict[StoreId, float]:
        """What the way takes to those of these stores that are elsewhere."""
        ways = {store: self._health.way_s(store, size) for store in stores}
        return {store: way_s for store, way_s in ways.items() if way_s}

    def _leave(self, tasks: Mapping[asyncio.Task[None], Attempt], encoded: Encoded) -> None:
        """Let late puts land, as far as there is memory for what they hold: all of their pack."""
        held = encoded.layout.shard_bytes * len(encoded.units)
        if not tasks:
            return
        if self._late_bytes + held > LATE_BYTES_MAX:
            for task in tasks:
                task.cancel()
            return
        self._late_bytes += held
        left = len(tasks)

        def landed(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._late_bytes -= held
            if not task.cancelled():
                task.exception()

        for task in tasks:
            task.add_done_callback(landed)

    async def _carry_out(
        self,
        write_round: WriteRound,
        tasks: dict[asyncio.Task[None], Attempt],
        pack: PackId,
        row: PackRow,
        encoded: Encoded,
        reserve_share: float,
    ) -> None:
        """Put shards until the round has its verdict; `tasks` are the puts that have not answered."""
        health, clock = self._health, self._clock

        def begin(attempts: Sequence[Attempt]) -> None:
            for attempt in attempts:
                put = self.put_shard(pack, row, encoded, attempt, reserve_share)
                tasks[asyncio.create_task(put)] = attempt

        begin(write_round.start())
        while write_round.verdict is None:
            timeout = max(0.0, write_round.wake() - clock.monotonic())
            done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            # `done` has no order of its own, and what is done first may get the better spare.
            for task in [task for task in tasks if task in done]:
                attempt = tasks[task]
                error = task.exception()
                now = clock.monotonic()
                if error is not None and not isinstance(error, HoldfastError):
                    raise error
                del tasks[task]
                if error is None:
                    write_round.succeeded(attempt, now)
                    continue
                if isinstance(error, StoreFull):
                    health.full(attempt.store, now)
                begin(write_round.erred(attempt, now))
            begin(write_round.at(clock.monotonic()))

    def _landed(
        self,
        pack: PackId,
        promised: Scheme,
        row: PackRow,
        encoded: Encoded,
        write_round: WriteRound,
        late: dict[Attempt, asyncio.Task[None]],
    ) -> Landed:
        durable = write_round.durable
        places = tuple(
            Place(shard, attempt.store, attempt.attempt) for shard, attempt in sorted(durable.items())
        )
        missing = write_round.missing
        virtual = row.scheme.n - len(encoded.units)
        debt: DebtRow | None = None
        if row.scheme != promised:
            debt = DebtRow(promised, DebtReason.STORES_MISSING, missing)
        elif missing:
            debt = DebtRow(promised, DebtReason.STRAGGLER, missing)
        levels = survived(
            self._topology(), [place.store for place in places], encoded.layout.real_data_shards
        )
        receipt = Receipt(
            row.scheme,
            len(places) + virtual,
            row.scheme.n,
            {level.value: count for level, count in levels.items()},
            debt is not None,
        )
        unused = (*write_round.failed, *write_round.surplus)
        return Landed(
            pack,
            replace(row, places=places),
            debt,
            receipt,
            late,
            unused,
        )

    def _shuffle(self, stores: list[StoreId]) -> None:
        for at in range(len(stores) - 1, 0, -1):
            other = self._randomness.below(at + 1)
            stores[at], stores[other] = stores[other], stores[at]


def most_room_first(
    stores: Sequence[StoreId], rooms: Mapping[StoreId, int], randomness: Randomness
) -> list[StoreId]:
    """The stores in an order of chance, in which each is next with a likelihood that is its part of the room
    of those that are left.

    Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006: by u ** (1 / weight).
    """
    waits = {store: -math.log(1.0 - randomness.fraction()) / rooms[store] for store in stores}
    return sorted(stores, key=waits.__getitem__)


async def encode(scheme: Scheme, buffers: Sequence[Buffer], stored: int, clock: Clock) -> Encoded:
    """Cut the buffers into stripes and make the redundant units, yielding between stripes."""
    layout = Layout(scheme.k, stored)
    real = real_shards(scheme, stored)
    units: dict[int, list[Buffer]] = {shard: [] for shard in real}
    source = _Source(buffers)
    for stripe in range(layout.stripes):
        if stripe:
            await clock.sleep(0)
        unit = layout.unit_of(stripe)
        data = source.take(unit * scheme.k)
        redundant = codec.parity(scheme, data)
        view = memoryview(data)
        for shard in real:
            units[shard].append(
                view[shard * unit : (shard + 1) * unit] if shard < scheme.k else redundant[shard - scheme.k]
            )
    assert all(sum(map(len, parts)) == layout.blocks * BLOCK_BYTES for parts in units.values())
    return Encoded(layout, units)


class _Source:
    """Buffers laid end to end, taken in pieces; zeros after the end."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = iter(buffers)
        self._rest: Buffer = b""

    def take(self, size: int) -> bytes:
        parts: list[Buffer] = []
        while size:
            if not self._rest:
                following = next(self._buffers, None)
                if following is None:
                    parts.append(bytes(size))
                    break
                self._rest = memoryview(following)
                continue
            parts.append(self._rest[:size])
            size -= len(parts[-1])
            self._rest = self._rest[len(parts[-1]) :]
        return b"".join(parts)
