"""What falls between rooms: moving, recovery, change of scheme, healing and counting at the same time.

Each promise here needs two or more of them, and was broken once although each of them kept its own.
"""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId
from holdfast.chores.collect import Sweep
from holdfast.chores.compact import Compact
from holdfast.chores.heal_queue import Wound
from holdfast.chores.rescheme import Waiting
from holdfast.index.port import Transaction
from holdfast.node.census import Census
from holdfast.objects.model import PutObject
from holdfast.objects.moving import MoveReport
from holdfast.packs.disposal import Disposal, encode_burial
from holdfast.packs.model import PACK_BYTES_MAX, DebtReason, DebtRow, PackRow, Place, debt_row, pack_row
from holdfast.packs.named import NamedPacks, find_names
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import encode_row
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, encode_lineage
from holdfast.recovery.keeping import Keeping
from holdfast.recovery.loading import newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.scheme import Scheme
from tests.kit import recovery_world
from tests.kit.kept import INCARNATION
from tests.kit.objects import BUCKET, BytesBody
from tests.kit.recovery_world import World, held, make_world, recover, serve_again
from tests.kit.rig import build_rig
from tests.unit import test_chores_heal as healing
from tests.unit.test_chores_rescheme import RS, STRONG, A, House, schemes_of
from tests.unit.test_packs_storage import write

pytestmark = pytest.mark.virtual


async def put(world: World, key: str, body: bytes) -> None:
    await world.objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(body)))


async def journaled(world: World) -> None:
    while world.keeping.status().behind_commits or not world.keeping.journal.is_open:
        await world.keeping.journal.step()


async def test_what_was_moved_while_the_journal_was_paused_is_there_after_recovery() -> None:
    """`holdfast chores pause journal` (or a journal that too few stores take), while compaction goes on."""
    world = await make_world(3)
    clock = world.rig.clock
    keys = [f"k{number}" for number in range(12)]
    for key in keys:
        await put(world, key, key.encode() * 100)
    await journaled(world)
    others = [(step, pause) for step, pause in world.chores if "Journal" not in repr(step)]
    assert len(others) == len(world.chores) - 1
    world.chores[:] = others
    world.start()
    await clock.sleep(120.0)
    await world.stop()
    assert [await held(world.objects, key) for key in keys] == [key.encode() * 100 for key in keys]

    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    assert [await held(objects, key) for key in keys] == [key.encode() * 100 for key in keys]


async def test_what_was_moved_is_there_after_recovery() -> None:
    world = await make_world(3)
    clock = world.rig.clock
    keys = [f"k{number}" for number in range(12)]
    for key in keys:
        await put(world, key, key.encode() * 100)
    await journaled(world)
    world.start()
    await clock.sleep(120.0)
    await world.stop()
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    assert [await held(objects, key) for key in keys] == [key.encode() * 100 for key in keys]


async def test_a_journal_that_began_anew_covers_nothing_before_its_first_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The index's log did not reach back (or a piece was damaged): until a snapshot is whole, recovery ends
    at the gap, and what was moved since must still lie where the journal before the gap says."""
    world = await make_world(3)
    clock, journal = world.rig.clock, world.keeping.journal
    keys = [f"k{number}" for number in range(12)]
    for key in keys:
        await put(world, key, key.encode() * 100)
    await journaled(world)
    # What `_gather` does on InvalidInput; an index that is no longer young.
    monkeypatch.setattr("holdfast.recovery.journal._YOUNG", 0)
    journal._begin_anew(world.rows.revision)
    assert journal.starts_anew
    # The snapshot chore is at work on a large index, or cannot write: here it does not get to its end.
    world.chores[:] = [(step, pause) for step, pause in world.chores if "Snapshots" not in repr(step)]
    world.start()
    await clock.sleep(20.0)
    await world.stop()
    assert [await held(world.objects, key) for key in keys] == [key.encode() * 100 for key in keys]

    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    assert [await held(objects, key) for key in keys] == [key.encode() * 100 for key in keys]


async def test_what_was_acknowledged_after_a_recovery_survives_a_second_one_before_its_first_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    world = await make_world(5)
    rig = world.rig
    await put(world, "first life", b"1")
    await journaled(world)
    again = await recover(rig)
    # The second life: 30 s of it, journaled each second, no snapshot whole yet.
    objects, packs, index = serve_again(rig, again.rows)
    await index.commit(
        [Transaction((), ((LINEAGE_ROW, encode_lineage(LineageRow(FORMAT, 1, (INCARNATION,), 0))),))]
    )
    named = NamedPacks(
        rig.attached, packs.writer._topology, rig.health, rig.clock, rig.randomness, lambda: Scheme(4, 2)
    )
    keeping = Keeping(
        index, named, lambda: frozenset(rig.attached), rig.clock, rig.randomness, lambda _: None
    )
    await keeping.journal.step()
    for number in range(30):
        await objects.put_object(PutObject(bucket=BUCKET, key=f"second life {number}", body=BytesBody(b"2")))
        await rig.clock.sleep(1.0)
        while await keeping.journal.step():
            pass
    assert keeping.status().behind_commits == 0

    # Lost again. As the error says: --incarnation of the one it was made from.
    with pytest.raises(HoldfastError):
        await recover(rig)
    monkeypatch.setattr(recovery_world, "newest_lineage", lambda names, _: newest_lineage(names, INCARNATION))
    third = await recover(rig)
    objects, *_ = serve_again(rig, third.rows)
    assert await held(objects, "first life") == b"1"
    there = [await held(objects, f"second life {number}") for number in range(30)]
    assert there == [b"2"] * 30


async def test_damage_found_while_a_snapshot_is_made_is_not_forgotten() -> None:
    world = await make_world(7)
    journal, snapshots = world.keeping.journal, world.keeping.snapshots
    for number in range(5):
        await put(world, f"k{number}", b"x" * 100)
    await journaled(world)
    snapshots.ask()
    await snapshots.step()  # begun at this revision
    await put(world, "after the beginning", b"y")
    await journaled(world)
    # Upkeep finds that the piece behind the snapshot's beginning cannot be read.
    journal.damaged("the piece that was just written")
    for _ in range(50):
        await snapshots.step()
        await journal.step()
    assert snapshots.made >= 1
    assert snapshots.made > 1 or journal.starts_anew or snapshots.is_due() or snapshots._making is not None


async def test_what_the_journal_remembers_of_its_pieces_is_bounded() -> None:
    world = await make_world(9)
    world.start()
    for number in range(1500):
        await put(world, "k", b"%d" % number)
        await world.rig.clock.sleep(1.0)
    names = await find_names(world.rig.attached, PREFIX)
    await world.stop()
    assert len(world.keeping.journal.sizes) <= 2 * len(names.names)


async def test_a_chore_that_waits_for_another_keeps_its_own_pace() -> None:

    world = await make_world(2)
    index = WatchedIndex(world.rig.index)
    compact = Compact(index, world.objects.moving(world.rig.clock).move)
    waiting = Waiting(compact, lambda: False)
    compact._walked = 1_000_000  # a million packs: it rests 1,000 s between walks
    assert waiting.interval_s == compact.interval_s == 1000.0


async def test_changing_a_scheme_ends_although_a_pack_is_lost() -> None:
    """Merging waits for it: with one unreadable pack, small packs are never merged again."""

    house = await House().open()
    await house.put(A, "lost", b"l" * 300_000)
    for number in range(3):
        await house.put(A, f"key-{number}", bytes([number]) * 300_000)
    rig = house.rig
    (lost, *_) = await house.packs()
    for place in (await rig.packs.rows.fresh(lost)).row.places[:3]:
        for name in await rig.memories[place.store].list("", limit=100, timeout_s=5):
            if name.startswith(lost.hex()):
                await rig.memories[place.store].delete(name, timeout_s=5)
    await house.objects.set_bucket_scheme(A, "mirror-3")
    free = 0
    for _ in range(500):
        if not await house.chore.step():
            free += not house.chore.in_the_way
            await rig.clock.sleep(60.0)
    assert free > 10, house.chore.last_error


async def test_changing_a_scheme_rests_when_nothing_can_be_done_now() -> None:
    """A pack lacks a shard and no store is free for it; its bucket gets a larger k: each walk calls that a
    change, and the next walk begins at once, for ever."""

    house = await House(10).open()

    rig = house.rig
    for store in rig.stores[6:]:
        rig.attached.pop(store)
    await house.put(A, "key", b"z" * 300_000)
    # As a write leaves it that was acknowledged without its last shard, when that store is gone then.
    (pack,) = await house.packs()
    known = await rig.packs.rows.fresh(pack)
    places = known.row.places[:-1]
    short = encode_row(replace(known.row, places=places))
    owed = msgspec.msgpack.encode(
        DebtRow(known.row.scheme, DebtReason.STRAGGLER, (known.row.places[-1].shard,))
    )
    await rig.index.commit([Transaction((), ((pack_row(pack), short), (debt_row(pack), owed)))])
    rig.attached.pop(known.row.places[-1].store)
    await house.objects.set_bucket_scheme(A, "rs-8-2")
    rests = 0
    for _ in range(1000):
        rests += not await house.chore.step()
        await rig.clock.sleep(0.1)
    assert rests > 10, "it walks without a rest"


async def test_heal_gives_up_a_home_that_is_full_and_takes_a_smaller_scheme() -> None:
    """Seven stores: one is gone for good, the only free one is full. No client writes, so nobody else finds
    that out. The smaller scheme, which the target allows, is never tried."""

    rig = build_rig(7)
    spare = rig.stores[6]
    there = rig.attached.pop(spare)
    pack = (await write(rig, RS, b"x" * 300_000)).extent.pack
    rig.attached[spare] = there
    rig.scripts[spare].full = True
    gone = (await rig.packs.rows.fresh(pack)).row.places[0].store
    rig.attached.pop(gone)
    ended = []
    for _ in range(20):
        try:
            target = Target(gone=frozenset({gone}), shrink=True)
            ended.append(await rig.rewriter.rewrite(pack, Reason.HEAL, target))
        except HoldfastError as error:
            ended.append(type(error).__name__)
        if ended[-1] is Rewritten.DONE:
            break
        await rig.clock.sleep(1.0)
    assert ended[-1] is Rewritten.DONE, ended


async def test_space_comes_back_soon_while_another_store_is_away() -> None:
    """What is dead at a store that is away stays on the list, which is gone through a page at a time."""

    rig = build_rig(3)
    for start in range(0, 20_000, 100):
        await rig.index.commit(
            [
                Transaction((), ((b"buried/%032x" % number, encode_burial([("away", "x.0.0")])),))
                for number in range(start, start + 100)
            ]
        )
    sweep = Sweep(Disposal(rig.attached, rig.index))
    assert not await sweep.step()  # it is somewhere in its round
    here = rig.stores[0]
    key = b"buried/" + b"f" * 32
    await rig.index.commit([Transaction((), ((key, encode_burial([(here, "y.0.0")])),))])
    began = rig.clock.monotonic()
    while (await rig.index.get([key]))[0] is not None:
        if not await sweep.step():
            await rig.clock.sleep(Sweep.interval_s)
    assert rig.clock.monotonic() - began < 60.0


async def test_a_merge_under_way_does_not_outlast_the_change_of_a_scheme() -> None:
    """A step of merging began before the bucket's scheme was changed, and commits after the walks: `Waiting`
    looks only when a step begins. The pack it makes has the old scheme, and no mark is left."""

    house = await House().open()
    rig = house.rig
    for number in range(6):
        await house.put(A, f"key-{number}", bytes([number]) * 3000)
    packs = await house.packs()
    for script in rig.scripts.values():
        script.put_delay_s = (5.0, 5.0)
    mover = house.objects.moving(rig.clock)
    under_way = True

    async def move() -> MoveReport:
        nonlocal under_way
        try:
            return await mover.move(dict.fromkeys(packs, PACK_BYTES_MAX), RS)
        finally:
            under_way = False

    house.chore._others_mix = lambda: under_way  # as the node wires it
    moving = asyncio.create_task(move())
    await rig.clock.sleep(1.0)  # its shards are on their way
    for script in rig.scripts.values():
        script.put_delay_s = None
    await house.objects.set_bucket_scheme(A, "rs-2-3")
    while await house.marks():
        if not await house.chore.step():
            await rig.clock.sleep(1.0)
    report = await moving
    assert report.moved == 6
    await house.run()
    assert await house.marks() == 0
    found = [await schemes_of(house, A, f"key-{number}") for number in range(6)]
    assert found == [{STRONG}] * 6, found


async def test_a_pack_that_rests_is_not_left_to_rest_when_it_can_lose_nothing_more() -> None:
    """Put off for long (it did not agree, or a store was away), then another store is lost: `report_lost`
    is swallowed."""

    house = healing.House(build_rig(8))
    rig, repair = house.rig, house.repair
    pack = (await write(rig, RS, b"x" * 300_000)).extent.pack
    now = rig.clock.monotonic()
    repair._put_off[pack] = Wound({}, 2, 0, now, tries=11, rest_until=now + 2048.0)
    row = (await rig.packs.rows.fresh(pack)).row
    for place in row.places[:2]:
        rig.attached.pop(place.store)
        house.away_since[place.store] = now - 10_000.0
    shards = frozenset(place.shard for place in row.places[:2])
    began = rig.clock.monotonic()
    while repair.repaired == 0 and rig.clock.monotonic() - began < 3000:
        repair.report_lost(pack, shards, "its store has been away too long", 0, 1000)
        while await repair.step():
            pass
        await rig.clock.sleep(5.0)
    assert repair.repaired == 1
    assert rig.clock.monotonic() - began < 60.0


async def test_a_status_that_is_asked_for_during_a_count_does_not_count_twice() -> None:
    """`/-/status` finishes the walk of the chore, side by side with it: the count feeds rebalancing."""

    rig = build_rig(6)
    row = encode_row(
        PackRow(RS, 300_000, 100, 300_000, tuple(Place(n, store, 0) for n, store in enumerate(rig.stores)))
    )
    for start in range(0, 2000, 100):
        await rig.index.commit(
            [
                Transaction((), ((pack_row(PackId(number.to_bytes(16, "big"))), row),))
                for number in range(start, start + 100)
            ]
        )

    class Slow:  # as every real index: others run while it looks
        def __getattr__(self, name: str) -> object:
            return getattr(rig.index, name)

        async def scan(self, *args: object, **kwargs: object) -> object:
            await asyncio.sleep(0.001)
            return await rig.index.scan(*args, **kwargs)  # type: ignore[arg-type]

    topology = rig.packs.writer._topology
    census = Census(Slow(), rig.attached, lambda _: True, topology, rig.clock)  # type: ignore[arg-type]
    counts: list[int] = []
    census.on_counted = lambda count: counts.append(count.packs)
    await asyncio.gather(census.whole(), census.whole())
    assert set(counts) == {2000}, counts
