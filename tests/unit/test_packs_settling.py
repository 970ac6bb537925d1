"""What happens behind the acknowledgement: late shards find their place or their grave, none strays."""

import asyncio

import msgspec
import pytest

from holdfast.base.ids import PackId, StoreId
from holdfast.chores.repair import Repair
from holdfast.index.memory import Fault, Mishap
from holdfast.index.port import Committed, Row, Transaction, prefix_end
from holdfast.packs.disposal import Disposal, encode_burial, shards_of
from holdfast.packs.format import HEADER_BYTES
from holdfast.packs.model import (
    DebtReason,
    DebtRow,
    ManifestEntry,
    PackRow,
    Place,
    Receipt,
    buried_row,
    debt_row,
    pack_row,
)
from holdfast.packs.quorum import Attempt
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import KnownPack, decode_row
from holdfast.packs.settling import settle_transaction
from holdfast.packs.verifying import PackHealth
from holdfast.packs.writing import Landed
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, piece, read_all, write

pytestmark = pytest.mark.virtual


def rig_store(number: int) -> StoreId:
    return build_rig().stores[number]


BODY = bytes(range(256)) * 400


async def blobs(rig: Rig) -> int:
    return sum([len(await memory.list("", limit=10_000, timeout_s=1)) for memory in rig.memories.values()])


async def sweep(rig: Rig) -> None:
    disposal = Disposal(rig.attached, rig.index)
    await disposal.sweep_buried()
    await disposal.sweep_trash()
    for prefix in (b"buried/", b"trash/"):
        assert not await rig.index.scan(prefix, prefix_end(prefix), limit=1)


async def die(rig: Rig, pack: PackId) -> None:
    """As the collector does it."""
    (row,) = await rig.index.get([pack_row(pack)])
    assert row is not None
    grave = encode_burial(shards_of(pack, decode_row(row.value)))
    await rig.index.commit([Transaction((), ((buried_row(pack), grave),), (pack_row(pack), debt_row(pack)))])


async def test_a_shard_that_lands_after_its_pack_has_died_is_removed() -> None:
    rig = build_rig()
    rig.scripts[rig.stores[0]].delay_s = (5.0, 5.0)
    appended = await rig.packs.append(RS, piece("k", BODY))
    assert appended.receipt.debt
    await die(rig, appended.extent.pack)
    rig.scripts[rig.stores[0]].delay_s = (0.0, 0.0)
    await sweep(rig)
    await rig.clock.sleep(10)
    assert await blobs(rig) == 1
    await sweep(rig)
    assert await blobs(rig) == 0


async def test_a_shard_that_has_landed_is_named_while_another_hangs() -> None:
    rig = build_rig(8)
    rig.scripts[rig.stores[0]].delay_s = (1.0, 1.0)
    rig.scripts[rig.stores[1]].hang = True
    packs = {(await rig.packs.append(Scheme(4, 3), piece(f"k{n}", BODY))).extent.pack for n in range(6)}
    await rig.clock.sleep(5)
    named = set()
    for pack in packs:
        named |= {place.store for place in (await rig.packs.rows.fresh(pack)).row.places}
    assert rig.stores[0] in named


async def test_a_late_shard_of_another_scheme_is_thrown_away() -> None:
    task: asyncio.Task[None] = asyncio.ensure_future(asyncio.sleep(0))
    late = Attempt(3, rig_store(5), 0)
    receipt = Receipt(Scheme(3, 2), 4, 5, {}, True)
    before = PackRow(Scheme(3, 2), 8000, 100, 8000, ())
    landed = Landed(
        PackId(bytes(16)),
        before,
        DebtRow(RS, DebtReason.STORES_MISSING, (3,)),
        receipt,
        {late: task},
        (),
    )
    places = tuple(Place(shard, rig_store(shard), 7) for shard in (0, 1, 4, 5))
    now = KnownPack(landed.pack, PackRow(RS, 8000, 100, 8000, places), 9)
    assert 3 in now.virtual
    change, row = settle_transaction(landed, now, landed.debt, [late], [])
    assert row.places == places
    assert [key.split(b"/")[0] for key, _ in change.puts] == [b"pack", b"trash"]
    await task


class Acknowledged:
    """A pack in rs-4-2 without its shard 5, whose put to store 5 is late, as the index has it now."""

    def __init__(self, *places: Place) -> None:
        self.late = Attempt(5, rig_store(5), 0)
        row = PackRow(RS, 80_000, 100, 80_000, places)
        receipt = Receipt(RS, 5, 6, {}, True)
        debt = DebtRow(RS, DebtReason.STRAGGLER, (5,))
        self.landed = Landed(PackId(bytes(16)), row, debt, receipt, {}, ())
        self.known = KnownPack(self.landed.pack, row, 9)

    def settle(self, debt: DebtRow | None) -> tuple[Transaction, PackRow]:
        return settle_transaction(self.landed, self.known, debt, [self.late], [])


async def test_a_late_shard_does_not_settle_what_was_promised_since() -> None:
    """A bucket got another scheme, for which there are too few stores now: that is owed."""
    pack = Acknowledged(*[Place(shard, rig_store(shard), 0) for shard in range(5)])
    owed = DebtRow(Scheme(1, 3), DebtReason.SCHEME, (5,))
    change, row = pack.settle(owed)
    assert len(row.places) == 6
    assert not change.deletes
    (debt,) = [value for key, value in change.puts if key == debt_row(pack.landed.pack)]
    assert msgspec.msgpack.decode(debt, type=DebtRow) == DebtRow(Scheme(1, 3), DebtReason.SCHEME)


async def test_a_late_shard_is_thrown_away_where_its_store_has_another_of_the_pack_by_now() -> None:
    """A heal that found a single free store, the one whose put was late, has taken it for another shard."""
    moved = Place(2, rig_store(5), 77)
    pack = Acknowledged(*[moved if shard == 2 else Place(shard, rig_store(shard), 0) for shard in range(5)])
    change, row = pack.settle(pack.landed.debt)
    assert row.places == pack.known.row.places
    assert [key.split(b"/")[0] for key, _ in change.puts] == [b"pack", b"trash"]
    assert not change.deletes


async def test_a_rewrite_that_is_overtaken_by_the_packs_end_leaves_nothing() -> None:
    rig = build_rig()
    pack = (await write(rig, RS, BODY)).extent.pack
    row = (await rig.packs.rows.fresh(pack)).row
    rig.memories[row.places[2].store].wipe()
    mending = asyncio.create_task(rig.rewriter.rewrite(pack, Reason.HEAL, Target(bad=(2,))))
    while not rig.memories[row.places[2].store]._blobs:  # noqa: ASYNC110 (a store tells nobody)
        await asyncio.sleep(0.0002)
    await die(rig, pack)
    assert await mending is Rewritten.OVERTAKEN
    await sweep(rig)
    assert await blobs(rig) == 0


@pytest.mark.parametrize("harm", ["missing", "header"])
async def test_what_verification_finds_is_mended(harm: str) -> None:
    rig = build_rig()
    written = await write(rig, RS, BODY)
    known = await rig.packs.rows.fresh(written.extent.pack)
    memory = rig.memories[known.places[5].store]
    if harm == "missing":
        memory.wipe()
    else:
        memory.damage(f"{known.pack.hex()}.5.0", HEADER_BYTES - 1, 1)
    assert (await rig.verifier.verify(known)).state is PackHealth.DEGRADED
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None)
    for damage in rig.damage:
        repair.report(*damage)
    assert await repair.step()  # written again
    assert await repair.step()  # and proven
    assert repair.repaired == 1
    fresh = await rig.packs.rows.fresh(known.pack)
    assert (await rig.verifier.verify(fresh)).state is PackHealth.WHOLE
    assert await read_all(rig, [written.extent]) == BODY


async def test_the_debt_of_a_late_shard_is_cleared_when_it_lands() -> None:
    rig = build_rig()
    rig.scripts[rig.stores[0]].delay_s = (5.0, 5.0)
    pack = (await rig.packs.append(RS, piece("k", BODY))).extent.pack
    assert isinstance((await rig.index.get([debt_row(pack)]))[0], Row)
    await rig.clock.sleep(10)
    assert await rig.index.get([debt_row(pack)]) == [None]
    assert (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE


async def test_what_has_landed_by_the_time_a_pack_is_committed_is_not_owed() -> None:
    """The packs of a large object wait for their row until all of it is there."""
    rig = build_rig()
    rig.scripts[rig.stores[0]].delay_s = (5.0, 5.0)
    written = await rig.packs.write(RS, [BODY], lambda e: [ManifestEntry("b", "k", "v", 0, e.length)])
    pack = written.extent.pack
    assert any(key == debt_row(pack) for one in written.transactions for key, _ in one.puts)
    await rig.clock.sleep(20)
    assert written.as_it_is is not None
    (outcome,) = await rig.index.commit(written.as_it_is())
    assert isinstance(outcome, Committed)
    assert await rig.index.get([debt_row(pack)]) == [None]
    assert (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE
    await rig.clock.sleep(100)
    row = (await rig.packs.rows.fresh(pack)).row
    assert len({place.store for place in row.places}) == await blobs(rig) == 6


async def test_a_late_shard_stays_when_the_index_does_not_say_that_it_was_named() -> None:
    rig = build_rig()
    rig.scripts[rig.stores[0]].delay_s = (5.0, 5.0)
    pack = (await rig.packs.append(RS, piece("k", BODY))).extent.pack
    rig.index.faults.append(Fault(Mishap.APPLIED))
    await rig.clock.sleep(10)
    assert not rig.index.faults
    await sweep(rig)
    report = await rig.verifier.verify(await rig.packs.rows.fresh(pack))
    assert (report.state, report.losses_left) == (PackHealth.WHOLE, 2)
