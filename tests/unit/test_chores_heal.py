"""Heal: the most endangered first, to spares or in a smaller scheme, at the price of k shards, and over only
when every shard was read again and agrees."""

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from holdfast.base.checksums import Buffer
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.chores.away import Away
from holdfast.chores.heal_queue import HealQueue, Wound
from holdfast.chores.repair import PayDebts, Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.chores.runner import ChoreRunner
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Transaction
from holdfast.packs.errors import TooFewShardsAnswer
from holdfast.packs.format import data_offset
from holdfast.packs.model import PackRow, Place, debt_row, pack_row
from holdfast.packs.quorum import Attempt
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import KnownPack, encode_row
from holdfast.packs.verifying import PackHealth
from holdfast.packs.writing import encode
from holdfast.scheme import Scheme
from holdfast.stores.measured import MeasuredStore, Operation, StoreTally
from holdfast.stores.port import Store
from holdfast.topology import Location, Topology
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import VirtualClock
from tests.unit.test_packs_storage import RS, read_all, write

pytestmark = pytest.mark.virtual

PATIENCE_S = 600.0


class House:
    """A rig whose stores can go away, with the chores that heal it."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.away_since: dict[StoreId, float] = {}
        self.healed: list[PackId] = []
        away = Away(self._away_s, lambda: frozenset(rig.stores), PATIENCE_S)
        self.repair = Repair(
            rig.rewriter,
            rig.verifier,
            rig.packs.rows,
            rig.clock,
            lambda pack, why: self.healed.append(pack),
            away=away,
        )
        self.lost = FindReplaced(rig.index, away, self.repair.report_lost, rig.clock)
        self.debts = PayDebts(
            rig.rewriter, rig.index, lambda: frozenset(rig.attached), rig.clock, lambda *_: None
        )
        chores = [self.repair, self.lost, self.debts]
        self.runner = ChoreRunner(chores, rig.clock, lambda *_: None)
        self._stores = dict(rig.attached)

    def _away_s(self) -> dict[StoreId, float]:
        return {store: self.rig.clock.monotonic() - since for store, since in self.away_since.items()}

    def take_away(self, store: StoreId) -> None:
        del self.rig.attached[store]
        self.away_since[store] = self.rig.clock.monotonic()

    def bring_back(self, store: StoreId) -> None:
        self.rig.attached[store] = self._stores[store]
        del self.away_since[store]

    async def for_s(self, seconds: float) -> None:
        self.runner.start()
        await self.rig.clock.sleep(seconds)
        await self.runner.close()

    async def known(self, pack: PackId) -> KnownPack:
        return await self.rig.packs.rows.fresh(pack)

    async def state(self, pack: PackId) -> PackHealth:
        return (await self.rig.verifier.verify(await self.known(pack))).state


async def test_a_store_that_is_away_for_a_while_costs_nothing() -> None:
    house = House(build_rig(7))
    pack = (await write(house.rig, RS, bytes(100_000))).extent.pack
    before = await house.known(pack)
    house.take_away(before.places[0].store)
    await house.for_s(PATIENCE_S - 20)
    assert (await house.known(pack)).revision == before.revision
    house.bring_back(before.places[0].store)
    await house.for_s(2 * PATIENCE_S)
    assert (await house.known(pack)).revision == before.revision
    assert house.repair.bytes_written == 0


async def test_a_hot_spare_starts_by_itself() -> None:
    house = House(build_rig(7))
    packs = [(await write(house.rig, RS, bytes(100_000))).extent.pack for _ in range(10)]
    house.take_away(house.rig.stores[0])
    await house.for_s(PATIENCE_S + 60)
    for pack in packs:
        known = await house.known(pack)
        assert (known.row.scheme, house.rig.stores[0] in known.stores) == (RS, False)
        assert await house.state(pack) is PackHealth.WHOLE
    assert house.lost.owed == {}
    assert house.repair.waiting == 0


async def test_without_a_spare_packs_get_their_redundancy_back_in_a_smaller_scheme_until_one_comes() -> None:
    house = House(build_rig(6))
    data = random.Random(5).randbytes(3_000_000)
    written = await write(house.rig, RS, data)
    pack = written.extent.pack
    gone = house.rig.stores[2]
    house.take_away(gone)
    await house.for_s(PATIENCE_S + 60)
    known = await house.known(pack)
    assert (known.row.scheme, known.missing) == (Scheme(3, 2), ())
    assert await house.state(pack) is PackHealth.WHOLE
    assert await house.rig.index.get([debt_row(pack)]) != [None]
    house.rig.memories[gone].wipe()
    house.bring_back(gone)
    await house.for_s(60)
    assert (await house.known(pack)).row.scheme == RS
    assert await house.rig.index.get([debt_row(pack)]) == [None]
    assert await house.state(pack) is PackHealth.WHOLE
    assert await read_all(house.rig, [written.extent]) == data


async def test_who_can_lose_nothing_more_waits_a_tenth_and_comes_first() -> None:
    house = House(build_rig(8))
    packs = [(await write(house.rig, RS, bytes(300_000))).extent.pack for _ in range(40)]
    first, second = house.rig.stores[:2]
    house.take_away(first)
    house.take_away(second)
    rows = {pack: await house.known(pack) for pack in packs}
    endangered = {pack for pack, known in rows.items() if {first, second} <= set(known.stores)}
    touched = {pack for pack, known in rows.items() if {first, second} & set(known.stores)}
    assert endangered
    assert endangered < touched
    await house.for_s(PATIENCE_S / 10 + 30)
    assert set(house.healed) == endangered
    await house.for_s(PATIENCE_S)
    assert set(house.healed) == touched
    assert house.lost.owed == {}


async def test_what_is_owed_is_told_by_how_much_more_can_be_lost() -> None:
    house = House(build_rig(8))
    packs = [(await write(house.rig, RS, bytes(300_000))).extent.pack for _ in range(30)]
    first, second = house.rig.stores[:2]
    rows = [await house.known(pack) for pack in packs]
    for store in (first, second):
        house.take_away(store)
        house.away_since[store] = -10 * PATIENCE_S
    while await house.lost.step():
        pass
    lost = [len({first, second} & set(known.stores)) for known in rows]
    assert {left: owed.packs for left, owed in house.lost.owed.items()} == {
        2 - many: lost.count(many) for many in (1, 2) if lost.count(many)
    }
    assert house.lost.bytes_owed == sum(lost) * rows[0].layout.shard_bytes
    counts = house.repair.waiting_by_losses_left()
    assert {left: packs for left, (packs, _) in counts.items()} == {
        left: owed.packs for left, owed in house.lost.owed.items()
    }
    await house.for_s(60)
    assert (house.lost.owed, house.repair.waiting_by_losses_left()) == ({}, {})
    assert house.repair.progress().done == sum(lost) * rows[0].layout.shard_bytes


@pytest.mark.parametrize("harm", ["store gone", "flipped", "missing"])
@pytest.mark.parametrize("shard", [1, 5])
async def test_healing_a_shard_reads_no_more_than_k_shards(harm: str, shard: int) -> None:
    house = House(build_rig(7))
    rig = house.rig
    pack = (await write(rig, RS, random.Random(1).randbytes(4_000_000))).extent.pack
    known = await house.known(pack)
    at = known.places[shard]
    name = shard_name(pack, shard, at.attempt)
    match harm:
        case "store gone":
            house.take_away(at.store)
            house.away_since[at.store] = -10 * PATIENCE_S
        case "flipped":
            rig.memories[at.store].damage(name, 9000, 1)
        case "missing":
            rig.memories[at.store].spoil(name, None)
    tally = StoreTally()
    for store, inner in list(rig.attached.items()):
        rig.attached[store] = MeasuredStore(inner, tally, rig.clock)
    house.repair.report(pack, shard, harm)
    assert await house.repair.step()
    assert house.repair.unproven == 1
    shards_read = tally.of(Operation.GET).bytes_moved / known.layout.shard_bytes
    assert 4 <= shards_read <= 4.01, "checksums come on top"
    # Looked at again before, if that was possible, and read back afterwards: one shard each.
    again = tally.of(Operation.GET_UNCACHED).bytes_moved / known.layout.shard_bytes
    assert again <= (2.01 if harm == "flipped" else 1.01)
    assert await house.repair.step()
    assert house.healed == [pack]


async def test_what_is_wrong_here_in_one_and_there_in_another_shard_is_put_together_stripe_by_stripe() -> (
    None
):
    rig = build_rig(stores=7)
    data = random.Random(4).randbytes(4_300_000)
    written = await write(rig, RS, data)
    known = await rig.packs.rows.fresh(written.extent.pack)
    assert known.layout.stripes >= 5
    for stripe, shard in enumerate((0, 1, 2, 4)):
        at = known.places[shard]
        medium, name = rig.memories[at.store], shard_name(known.pack, shard, at.attempt)
        content = bytearray(medium.medium[name])
        content[data_offset(known.layout.blocks) + known.layout.shard_offset(stripe) + 77] ^= 1
        medium.spoil(name, bytes(content))
    gone = known.places[5]
    rig.memories[gone.store].spoil(shard_name(known.pack, 5, gone.attempt), None)
    assert await rig.rewriter.rewrite(known.pack, Reason.HEAL, Target(bad=(5,))) is Rewritten.DONE
    assert await rig.rewriter.rewrite(known.pack, Reason.HEAL, Target(bad=(0, 1, 2, 4))) is Rewritten.DONE
    report = await rig.verifier.verify(await rig.packs.rows.fresh(known.pack))
    assert report.state is PackHealth.WHOLE
    assert await read_all(rig, [written.extent]) == data


@pytest.mark.parametrize(("idle", "written", "proven"), [(True, 8, 8), (False, 1, 0)])
async def test_packs_follow_each_other_only_while_no_client_is_there(
    idle: bool, written: int, proven: int
) -> None:
    rig = build_rig()
    packs = [(await write(rig, RS, bytes(9000))).extent.pack for _ in range(8)]
    repair = Repair(
        rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None, is_idle=lambda: idle
    )
    for pack in packs:
        repair.report(pack, 1, "told")
    await repair.step()
    assert (repair.unproven, repair.waiting) == (written, 8)
    await repair.step()
    # While others wait to be written again, nothing is proven.
    assert repair.waiting == 8 - proven


async def test_shards_that_do_not_belong_to_each_other_are_put_right() -> None:
    house = House(build_rig(6))
    rig = house.rig
    data = random.Random(2).randbytes(2_500_000)
    for shard in (0, 3, 4, 5):
        written = await write(rig, RS, data)
        pack = written.extent.pack
        known = await house.known(pack)
        other = await encode(RS, [bytes(len(data))], known.row.stored_bytes, rig.clock)
        at = known.places[shard]
        rig.memories[at.store].spoil(shard_name(pack, shard, at.attempt), None)
        await rig.packs.writer.put_shard(pack, known.row, other, Attempt(shard, at.store, at.attempt))
        house.repair.report(pack, shard, "parity does not match the data")
        await house.for_s(60)
        assert house.healed[-1] == pack
        assert await house.state(pack) is PackHealth.WHOLE
        assert await read_all(rig, [written.extent]) == data


async def test_a_store_that_flips_bits_after_the_write_is_not_believed() -> None:
    house = House(build_rig(7))
    rig = house.rig
    pack = (await write(rig, RS, bytes(100_000))).extent.pack
    liar = (await house.known(pack)).places[3].store
    for store in rig.stores:
        if store not in (await house.known(pack)).stores:
            spare = store
    rig.attached.pop(spare)
    house.repair.report(pack, 3, "wrong")
    rotten = 0
    for _ in range(200):
        known = await house.known(pack)
        at = known.places[3]
        name = shard_name(pack, 3, at.attempt)
        if at.store == liar and name in rig.memories[liar].medium:
            rig.memories[liar].damage(name, 9000, 1)
            rotten += 1
        if not await house.repair.step():
            await rig.clock.sleep(1)
        if rotten == 6:
            rig.attached[spare] = house._stores[spare]
        if not house.repair.waiting:
            break
    assert house.healed == [pack], "closed once, when it was true"
    known = await house.known(pack)
    assert known.places[3].store == spare
    assert (await rig.verifier.verify(known)).state is PackHealth.WHOLE


class Dropping:
    """Acknowledges every put, and keeps nothing."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        await self._inner.usage(timeout_s=timeout_s)


async def test_a_store_that_drops_what_it_acknowledged_is_not_believed() -> None:
    house = House(build_rig(8))
    rig = house.rig
    written = await write(rig, RS, bytes(100_000))
    pack = written.extent.pack
    known = await house.known(pack)
    unused = [store for store in rig.stores if store not in known.stores]
    rig.attached[unused[0]] = Dropping(rig.attached[unused[0]])  # type: ignore[assignment]
    second = rig.attached.pop(unused[1])
    house.take_away(known.places[1].store)
    house.away_since[known.places[1].store] = -10 * PATIENCE_S
    runner = ChoreRunner([house.repair, house.lost], rig.clock, lambda *_: None)
    runner.start()
    await rig.clock.sleep(3)
    assert house.healed == []
    assert (await house.known(pack)).places[1] == known.places[1]
    rig.attached[unused[1]] = second
    await rig.clock.sleep(100)
    await runner.close()
    assert house.healed == [pack]
    after = await house.known(pack)
    assert unused[0] not in after.stores
    assert (await rig.verifier.verify(after)).state is PackHealth.WHOLE


async def test_what_rests_is_woken_by_a_report_that_makes_it_more_critical_and_by_no_other() -> None:
    house = House(build_rig(6))
    rig, repair = house.rig, house.repair
    pack = (await write(rig, RS, bytes(100_000))).extent.pack
    known = await house.known(pack)
    for shard in (2, 3):
        rig.memories[known.places[shard].store].wipe()
        rig.scripts[known.places[shard].store].write_errors = 1.0
    repair.report(pack, 2, "absent")
    await house.for_s(100)
    assert (repair.waiting, repair.waiting_by_losses_left()) == (1, {})  # it rests
    repair.report(pack, 2, "absent")
    assert repair.waiting_by_losses_left() == {}
    repair.report(pack, 3, "absent")
    assert list(repair.waiting_by_losses_left()) == [0]
    assert repair.is_urgent
    await house.for_s(2)
    assert (repair.waiting, repair.waiting_by_losses_left()) == (1, {})
    repair.report(pack, 3, "absent")
    assert (repair.waiting, repair.waiting_by_losses_left()) == (1, {})


async def test_a_shard_at_a_store_that_was_replaced_is_lost_whoever_reported_what() -> None:
    rig = build_rig(8)
    pack = (await write(rig, RS, random.Random(5).randbytes(100_000))).extent.pack
    known = await rig.packs.rows.fresh(pack)
    replaced = known.places[1].store
    del rig.attached[replaced]
    rig.topology = Topology(Location(store, device=store) for store in rig.stores if store != replaced)
    assert await rig.rewriter.rewrite(pack, Reason.HEAL, Target(bad=(0,))) is Rewritten.DONE
    after = await rig.packs.rows.fresh(pack)
    assert replaced not in after.stores
    assert (await rig.verifier.verify(after)).state is PackHealth.WHOLE


async def test_what_cannot_be_told_apart_is_not_written_over() -> None:
    scheme = Scheme(4, 1)
    house = House(build_rig(6))
    rig = house.rig
    pack = (await write(rig, scheme, bytes(100_000))).extent.pack
    known = await house.known(pack)
    other = await encode(scheme, [bytes([1]) * 100_000], known.row.stored_bytes, rig.clock)
    at = known.places[4]
    rig.memories[at.store].spoil(shard_name(pack, 4, at.attempt), None)
    await rig.packs.writer.put_shard(pack, known.row, other, Attempt(4, at.store, at.attempt))
    report = await rig.verifier.verify(known)
    assert "cannot be told" in report.faults[0].fault
    house.repair.report(pack, 4, "parity")
    await house.for_s(300)
    assert (await house.known(pack)).revision == known.revision
    assert house.healed == []
    assert house.repair.waiting == 1, "and it is not forgotten"


async def test_more_lost_than_can_be_is_said_and_kept() -> None:
    house = House(build_rig(6))
    pack = (await write(house.rig, RS, bytes(100_000))).extent.pack
    for store in house.rig.stores[:3]:
        house.take_away(store)
        house.away_since[store] = -10 * PATIENCE_S
    while await house.lost.step():
        pass
    with pytest.raises(TooFewShardsAnswer):
        await house.repair.step()
    assert house.repair.waiting == 1
    for store in house.rig.stores[:3]:
        house.bring_back(store)
    await house.for_s(100)
    assert house.repair.waiting == 0
    assert await house.state(pack) is PackHealth.WHOLE


def wound(left: int) -> Wound:
    return Wound({0: "lost"}, left, 100, 0.0)


def pack_of(number: int) -> PackId:
    return PackId(number.to_bytes(16, "big"))


def test_the_most_endangered_pack_comes_first_and_among_equals_the_first() -> None:
    queue = HealQueue(100)
    for number, left in enumerate((2, 1, 0, 2, 1, 0)):
        assert queue.add(pack_of(number), wound(left))
    queue.urgent(pack_of(3), 0)
    queue.urgent(pack_of(2), 5)
    assert queue.counts() == {0: (3, 300), 1: (2, 200), 2: (1, 100)}
    order = []
    while (popped := queue.pop()) is not None:
        order.append(popped[0])
    assert order == [pack_of(number) for number in (2, 5, 3, 1, 4, 0)]
    assert len(queue) == 0


def test_a_full_queue_lets_go_of_what_can_wait() -> None:
    queue = HealQueue(3)
    for number in range(3):
        assert queue.add(pack_of(number), wound(2))
    assert not queue.add(pack_of(3), wound(2))
    assert queue.add(pack_of(4), wound(0))
    assert queue.add(pack_of(5), wound(1))
    assert (len(queue), queue.let_go) == (3, 3)
    assert queue.counts() == {0: (1, 100), 1: (1, 100), 2: (1, 100)}
    assert queue.find(pack_of(0)) is not None


@pytest.mark.slow
async def test_scanning_a_hundred_thousand_packs_for_damage_takes_little_memory() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    stores = [StoreId(f"{number:032x}") for number in range(12)]
    chance = random.Random(1)
    kinds = [
        encode_row(PackRow(RS, 10**7, 10**3, 10**7, tuple(Place(n, s, 0) for n, s in enumerate(six))))
        for six in (chance.sample(stores, 6) for _ in range(500))
    ]
    for start in range(0, 100_000, 1000):
        ids = [PackId((number * 7919).to_bytes(16, "big")) for number in range(start, start + 1000)]
        rows = tuple((pack_row(pack), chance.choice(kinds)) for pack in ids)
        await index.commit([Transaction((), rows)])
    rig = build_rig()
    away = Away(lambda: {stores[0]: 1e6, stores[1]: 1e6}, lambda: frozenset(stores), PATIENCE_S)
    tracemalloc.start()
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, clock, lambda *_: None, away=away)
    lost = FindReplaced(index, away, repair.report_lost, clock)
    while await lost.step():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
    assert sum(owed.packs for owed in lost.owed.values()) == pytest.approx(77_000, rel=0.05)
    assert repair.waiting == 10_000
    assert set(repair.waiting_by_losses_left()) == {0}, "those that can lose nothing more were kept"
