"""A standby that follows: an active whose rows change at random, a standby under faults, and what is true
of both.

The active's rows are of all kinds, and change as the house changes them: packs come before what names them,
are rewritten in place and buried, attempts of parts are moved and keep their moment. Each state of the
active is kept, so that at each commit of the standby one can ask: is this one of them? Bytes are made from
the pack's id. Chores of the standby rewrite its own pack rows meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random

import msgspec
from msgspec.structs import replace

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.errors import Busy, Unavailable
from holdfast.base.ids import PackId, StoreId, UploadId
from holdfast.index.memory import MemoryIndex
from holdfast.index.memory.rows import MemoryRows
from holdfast.index.port import ABSENT, Change, Expect, Index, Outcome, Row, Transaction
from holdfast.objects.model import Checksum
from holdfast.objects.rows import PartRow, decode_part
from holdfast.packs.disposal import shards_buried
from holdfast.packs.model import PackRow, Place, buried_row, debt_row, pack_row
from holdfast.packs.rows import decode_row, encode_row
from holdfast.scheme import Scheme
from holdfast.sites.digests import Survey, survey
from holdfast.sites.following import Follower
from holdfast.sites.landing import Landed
from holdfast.sites.rows import CHECKPOINT_ROW, COPIED, STATE_ROW, arrival, decode_checkpoint, part_number
from holdfast.sites.source import PackCopy
from tests.kit.virtual import VirtualClock

SCHEME = Scheme(2, 1)
OTHERS = (
    b"bucket/",
    b"head/",
    b"upload/",
    b"dead/",
    b"share/",
    b"cleanup/",
    b"request/",
    b"ended/",
    b"rescheme/",
)
State = dict[bytes, object]


class Crash(BaseException):
    """The process ends here."""


def state_of(rows: Sequence[Row]) -> State:
    """What must be the same at both sites, whatever revisions and places are."""
    state: State = {}
    parts: dict[bytes, list[Row]] = {}
    for row in rows:
        if row.key.startswith(b"pack/"):
            pack = decode_row(row.value)
            state[row.key] = (pack.payload_bytes, pack.object_bytes)
        elif row.key.startswith(b"part/"):
            parts.setdefault(part_number(row.key), []).append(row)
        elif row.key.startswith(COPIED):
            state[row.key] = row.value
    for number, attempts in parts.items():
        attempts.sort(key=arrival)
        moments = [arrival(row) for row in attempts]
        assert len(set(moments)) == len(moments), "two attempts of one moment"
        state[number] = [(row.key, replace(decode_part(row.value), arrived=0)) for row in attempts]
    return state


def all_rows(rows: MemoryRows) -> list[Row]:
    return [row for row in rows.scan(b"", b"\xff", 1 << 30, b"", 0) if isinstance(row, Row)]


class ActiveRows(MemoryRows):
    """Keeps what it was at each revision."""

    def __init__(self, *, changes_max: int) -> None:
        super().__init__("active", changes_max=changes_max)
        self.states: dict[int, State] = {0: {}}

    def apply(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        outcomes = []
        for transaction in transactions:
            outcomes += super().apply([transaction])
            self.states[self.revision] = state_of(all_rows(self))
        return outcomes


class StandbyRows(MemoryRows):
    """Asks at each commit whether this is a state that the active had."""

    def __init__(self, world: "StandbyWorld") -> None:
        super().__init__("standby")
        self._world = world

    def apply(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        outcomes = super().apply(transactions)
        self._world.check()
        return outcomes


class Troubled:
    """Calls that may take a while, fail, or be the last thing that the process did."""

    def __init__(self, world: "StandbyWorld") -> None:
        self._world = world

    async def trouble(self) -> None:
        await self._world.trouble()


class ActiveSource(Troubled):
    """The source over the active's index; packs are gone some time after they were buried."""

    async def incarnation(self) -> str:
        await self.trouble()
        return self._world.active.status().incarnation

    async def revision(self) -> int:
        await self.trouble()
        (outcome,) = await self._world.active.commit([Transaction((), ((b"site/mark", b""),))])
        await self.trouble()
        return getattr(outcome, "revision")  # noqa: B009

    async def changes(self, after: int) -> AsyncIterator[Change]:
        async for change in self._world.active.changes(after):
            await self.trouble()
            yield change

    async def page(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        await self.trouble()
        found = await self._world.active.scan(start, end, limit=limit)
        await self.trouble()
        return [row for row in found if isinstance(row, Row)]

    async def survey(self, start: bytes, end: bytes, limit: int) -> Survey:
        await self.trouble()
        found = await survey(self._world.active, start, end, limit)
        await self.trouble()
        return found

    async def pack(self, pack: PackId) -> PackCopy | None:
        await self.trouble()
        (found,) = await self._world.active.get([pack_row(pack)])
        if found is None:
            return None
        row = decode_row(found.value)
        await self.trouble()
        return PackCopy(SCHEME, row.object_bytes, [pack * 2], ())


class MemoryLanding(Troubled):
    """Shards are names in a set, each used once."""

    async def land(self, pack: PackId, copy: PackCopy) -> Landed:
        await self.trouble()
        world = self._world
        world.attempts += 1
        attempt = world.attempts
        world.landing += 1
        world.landing_most = max(world.landing_most, world.landing)
        assert b"".join(bytes(piece) for piece in copy.payload) == pack * 2
        world.shards.add((pack, attempt))
        world.landed.append(pack)
        await self.trouble()
        world.landing -= 1
        row = PackRow(SCHEME, 32, 10, copy.object_bytes, (Place(0, StoreId("here"), attempt),))
        expects = (Expect(pack_row(pack), ABSENT), Expect(buried_row(pack), ABSENT))
        return Landed(Transaction(expects, ((pack_row(pack), encode_row(row)),)))


class TroubledIndex:
    """The standby's index as the follower sees it."""

    def __init__(self, world: "StandbyWorld", inner: MemoryIndex) -> None:
        self._world = world
        self._inner = inner

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        await self._world.trouble()
        return await self._inner.get(keys)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        await self._world.trouble()
        outcomes = await self._inner.commit(transactions)
        await self._world.trouble()
        return outcomes

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class StandbyWorld:
    """Both sites. `crash_at` ends the follower's process at that many calls; `failing` is how often calls
    fail."""

    def __init__(self, seed: int, *, changes_max: int = 100_000, failing: float = 0.0, page: int = 7) -> None:
        self.random = Random(seed)
        self.clock = VirtualClock()
        self.failing = failing
        self.page = page
        self.crash_at = 0
        self.calls = 0
        self.attempts = 0
        self._places: dict[PackId, set[int]] = {}
        self.landed: list[PackId] = []
        self.damaging = False
        """Whether the standby is wrong on purpose."""
        self.landing = self.landing_most = 0
        self.checks = 0
        self.seen: set[int] = set()
        self.shards: set[tuple[PackId, int]] = set()
        self.active_rows = ActiveRows(changes_max=changes_max)
        self.active = MemoryIndex(self.clock, self.active_rows)
        self.standby_rows = StandbyRows(self)
        self.standby_rows.apply([Transaction((), ((STATE_ROW, b"standby"),))])
        self.standby = MemoryIndex(self.clock, self.standby_rows)
        self._packs: list[PackId] = []
        self._number = 0

    async def trouble(self) -> None:
        self.calls += 1
        if self.calls == self.crash_at:
            raise Crash
        if self.random.random() < self.failing:
            raise Unavailable("A fault.")
        if self.random.random() < 0.3:
            await self.clock.sleep(self.random.uniform(0, 0.05))

    # The active

    async def change(self) -> None:
        """One commit of a kind that there is."""
        self._number += 1
        random, number = self.random, self._number
        old = all_rows(self.active_rows)
        attempts = [row for row in old if row.key.startswith(b"part/")]
        puts: dict[bytes, bytes] = {}
        deletes: list[bytes] = []
        match random.randint(0, 9):
            case 0 | 1:
                pack = PackId(random.randbytes(16))
                row = PackRow(SCHEME, 32, 10, random.randint(1, 32), ())
                self._packs.append(pack)
                puts = {
                    pack_row(pack): encode_row(row),
                    debt_row(pack): b"debt of the active",
                    b"head/b/%d" % random.randint(0, 9): pack + b"%d" % number,
                }
            case 2 if self._packs:
                pack = self._packs.pop(random.randrange(len(self._packs)))
                puts, deletes = {buried_row(pack): b"grave"}, [pack_row(pack), debt_row(pack)]
            case 3 if self._packs:
                pack = random.choice(self._packs)
                (found,) = await self.active.get([pack_row(pack)])
                assert found is not None
                moved = replace(decode_row(found.value), places=(Place(0, StoreId("there"), number),))
                puts = {pack_row(pack): encode_row(moved)}
            case 4 | 5:
                key = b"part/u%d/%05d/%032x" % (
                    random.randint(0, 1),
                    random.randint(1, 2),
                    random.getrandbits(128),
                )
                checksum = Checksum(ChecksumAlgorithm.CRC32, b"abcd")
                part = PartRow(1, UploadId("u"), number, b"m" * 16, checksum, 0, ())
                puts = {key: msgspec.msgpack.encode(part)}
            case 6 if attempts:
                one = random.choice(attempts)
                part = replace(decode_part(one.value), arrived=arrival(one), modified_ms=number)
                puts = {one.key: msgspec.msgpack.encode(part), b"upload/b/u": b"%d" % number}
            case 7 if attempts:
                deletes = [random.choice(attempts).key]
            case _:
                for _ in range(random.randint(1, 4)):
                    key = random.choice(OTHERS) + b"%d" % random.randint(0, 5)
                    if random.random() < 0.3:
                        deletes.append(key)
                        puts.pop(key, None)
                    elif key not in deletes:
                        puts[key] = b"%d" % number
                puts[random.choice((b"node/a", b"beat/a", b"trash/s/x", b"event/1", b"lease/x"))] = (
                    b"%d" % number
                )
        await self.active.commit([Transaction((), tuple(puts.items()), tuple(dict.fromkeys(deletes)))])

    async def changes(self, count: int) -> None:
        for _ in range(count):
            await self.change()
            if self.random.random() < 0.3:
                self.rewrite()
            if self.random.random() < 0.5:
                await self.clock.sleep(self.random.uniform(0, 0.05))

    # The standby

    def rewrite(self) -> None:
        """What a chore of the standby does to a pack of its own."""
        packs = [row for row in all_rows(self.standby_rows) if row.key.startswith(b"pack/")]
        if packs:
            one = self.random.choice(packs)
            pack = PackId(bytes.fromhex(one.key[5:].decode()))
            self.attempts += 1
            self.shards.add((pack, self.attempts))
            row = replace(decode_row(one.value), places=(Place(0, StoreId("here"), self.attempts),))
            expects = (Expect(one.key, one.revision),)
            self.standby_rows.apply([Transaction(expects, ((one.key, encode_row(row)),))])

    def follower(self) -> Follower:
        index: Index = TroubledIndex(self, self.standby)  # type: ignore[assignment]
        (state,) = [row for row in all_rows(self.standby_rows) if row.key == STATE_ROW]
        expect = Expect(STATE_ROW, state.revision)
        return Follower(index, ActiveSource(self), MemoryLanding(self), self.clock, expect, page=self.page)

    async def follow(self) -> None:
        """A process after the other, until cancelled."""
        while True:
            try:
                await self.follower().run()
            except (Unavailable, Busy, Crash):
                await self.clock.sleep(0.1)

    def check(self) -> None:
        """The standby's rows, as they are at this moment."""
        rows = all_rows(self.standby_rows)
        state = state_of(rows)
        places: dict[PackId, set[int]] = {}
        for row in rows:
            if row.key.startswith(b"pack/"):
                pack = PackId(bytes.fromhex(row.key[5:].decode()))
                places[pack] = {place.attempt for place in decode_row(row.value).places}
                assert all((pack, attempt) in self.shards for attempt in places[pack]), (
                    "a row before its bytes"
                )
            assert not row.key.startswith((b"node/", b"beat/", b"trash/", b"event/", b"lease/")), row.key
        for pack in self._places.keys() - places.keys():
            grave = self.standby_rows.get(buried_row(pack))
            assert grave is not None, "a pack is gone without a grave"
            buried = {int(name.rsplit(".", 1)[1]) for _, name in shards_buried(grave)}
            assert buried == self._places[pack], "a shard is nobody's"
        self._places = places
        found = self.standby_rows.get(CHECKPOINT_ROW)
        if found is None:
            return
        checkpoint = decode_checkpoint(found.value)
        if checkpoint.is_whole and not self.damaging:
            self.checks += 1
            self.seen.add(checkpoint.revision)
            assert state == self.active_rows.states[checkpoint.revision], (
                f"not revision {checkpoint.revision}"
            )

    async def caught_up(self) -> None:
        """Until the standby has all of it."""
        wanted = self.active_rows.revision
        async with asyncio.timeout(600):
            while True:
                found = self.standby_rows.get(CHECKPOINT_ROW)
                here = None if found is None else decode_checkpoint(found.value)
                if here is not None and here.is_whole and here.revision >= wanted:
                    return
                await self.clock.sleep(0.1)
