"""What goes into packs comes out again, whatever m stores do; and nothing else ever does."""

import asyncio
import random
from itertools import combinations

import msgspec
import pytest

from holdfast.base.ids import shard_name
from holdfast.health.comparing import LOOK_S
from holdfast.health.prober import Prober
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Transaction
from holdfast.packs.errors import BelowFloor, TooFewShardsAnswer, TooManyShardsLost
from holdfast.packs.hedging import UNCONDITIONAL_S
from holdfast.packs.manifest import decode_manifest
from holdfast.packs.model import (
    PACK_BYTES_MAX,
    Appended,
    DebtRow,
    Extent,
    ManifestEntry,
    Piece,
    Written,
    debt_row,
)
from holdfast.packs.quorum import Attempt
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import PackRows
from holdfast.packs.verifying import PackHealth
from holdfast.packs.writing import encode
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig

RS = Scheme(4, 2)
pytestmark = pytest.mark.virtual


def piece(key: str, data: bytes, expect: int = ABSENT) -> Piece:
    row = f"head/b/{key}".encode()
    return Piece(
        data,
        lambda extent: ManifestEntry("b", key, "v", extent.offset, extent.length),
        lambda extent: Transaction((Expect(row, expect),), ((row, msgspec.msgpack.encode(extent)),)),
    )


async def write(rig: Rig, scheme: Scheme, data: bytes) -> Written:
    written = await rig.packs.write(scheme, [data], lambda e: [ManifestEntry("b", "k", "v", 0, e.length)])
    outcomes = await rig.index.commit(written.transactions)
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    return written


async def read_all(rig: Rig, extents: list[Extent], offset: int = 0, length: int | None = None) -> bytes:
    total = sum(extent.length for extent in extents)
    pieces = rig.packs.read(extents, offset, total - offset if length is None else length)
    return b"".join([bytes(part) async for part in pieces])


async def test_many_small_pieces_share_packs_and_each_reads_back() -> None:
    rig = build_rig()
    chance = random.Random(3)
    data = {f"k{number}": chance.randbytes(chance.randrange(1, 9000)) for number in range(300)}
    results = await asyncio.gather(*[rig.packs.append(RS, piece(key, body)) for key, body in data.items()])
    assert len({result.extent.pack for result in results}) < 30
    for (_, body), result in zip(data.items(), results, strict=True):
        assert isinstance(result.outcome, Committed)
        assert bytes(await rig.packs.read_small(result.extent)) == body
        assert not result.receipt.debt
        assert result.receipt.survives["store"] == 2


async def test_one_conflict_leaves_its_neighbours_alone() -> None:
    rig = build_rig()
    results = await asyncio.gather(
        *[rig.packs.append(RS, piece("same", b"%d" % number)) for number in range(5)],
        *[rig.packs.append(RS, piece(f"k{number}", b"x")) for number in range(5)],
    )
    outcomes = [type(result.outcome) for result in results]
    assert outcomes == [Committed] + [Conflict] * 4 + [Committed] * 5


async def test_a_proposal_that_raises_fails_alone() -> None:
    rig = build_rig()

    def refuse(extent: Extent) -> Transaction:
        raise ValueError("no")

    bad = Piece(b"bad", lambda e: ManifestEntry("b", "k", "v", e.offset, e.length), refuse)
    results = await asyncio.gather(
        rig.packs.append(RS, bad), rig.packs.append(RS, piece("good", b"good")), return_exceptions=True
    )
    assert isinstance(results[0], ValueError)
    assert isinstance(results[1], Appended)
    assert isinstance(results[1].outcome, Committed)


@pytest.mark.parametrize(
    "scheme", [Scheme(4, 2), Scheme(1, 2), Scheme(2, 1), Scheme(3, 3)], ids=lambda s: s.name
)
@pytest.mark.parametrize("size", [1, 4096, 70_000, (1 << 20) + 5, 3 * (1 << 20) + 777])
async def test_any_m_stores_gone_every_byte_still_reads(scheme: Scheme, size: int) -> None:
    rig = build_rig()
    data = random.Random(size).randbytes(size)
    written = await write(rig, scheme, data)
    stores = dict(rig.attached)
    for gone in combinations(rig.stores, scheme.m):
        for store in gone:
            del rig.attached[store]
        assert await read_all(rig, [written.extent]) == data
        middle = size // 3
        part = await rig.packs.read_small(Extent(written.extent.pack, middle, min(5000, size - middle)))
        assert bytes(part) == data[middle : middle + 5000]
        rig.attached.update(stores)


async def test_ranges_of_several_packs_laid_end_to_end() -> None:
    rig = build_rig()
    chance = random.Random(9)
    bodies = [chance.randbytes(size) for size in (5_000_000, 17, 1 << 20, 2_500_001)]
    extents = [(await write(rig, RS, body)).extent for body in bodies]
    whole = b"".join(bodies)
    for _ in range(40):
        offset = chance.randrange(len(whole))
        length = chance.randrange(1, min(len(whole) - offset, 4_000_000) + 1)
        assert await read_all(rig, extents, offset, length) == whole[offset : offset + length]


async def test_the_largest_pack_goes_both_ways() -> None:
    rig = build_rig()
    data = random.Random(5).randbytes(PACK_BYTES_MAX)
    assert await read_all(rig, [(await write(rig, RS, data)).extent]) == data


async def test_wrong_bytes_are_never_returned_and_are_reported() -> None:
    rig = build_rig()
    data = random.Random(2).randbytes(2_000_000)
    written = await write(rig, RS, data)
    for store in rig.stores[:2]:
        rig.scripts[store].flips = 1.0
    assert await read_all(rig, [written.extent]) == data
    assert rig.damage
    rig.scripts[rig.stores[2]].flips = 1.0
    with pytest.raises(TooManyShardsLost) as raised:
        await read_all(rig, [written.extent])
    assert raised.value.facts["pack"] == written.extent.pack.hex()


async def test_a_hung_store_delays_no_read_by_more_than_a_hedge() -> None:
    rig = build_rig()
    data = random.Random(2).randbytes(2_000_000)
    extents = [(await write(rig, RS, data)).extent for _ in range(3)]
    for store in rig.stores[:2]:
        rig.scripts[store].hang = True
    slowest = 0.0
    for extent in extents * 3:
        began = rig.clock.monotonic()
        assert await read_all(rig, [extent], 0, 100_000) == data[:100_000]
        slowest = max(slowest, rig.clock.monotonic() - began)
    assert slowest < 0.250


@pytest.mark.parametrize(("stores", "scheme", "slow"), [(2, Scheme(1, 1), 1), (6, Scheme(2, 1), 2)])
async def test_slow_stores_beyond_what_may_sit_out_are_read_last(
    stores: int, scheme: Scheme, slow: int
) -> None:
    """A mirror of two, of which one is slow; and two slow ones where one can be done without: of packs that
    have no more than one of them, reads are quick."""
    rig = build_rig(stores, ejections_max=scheme.m)
    prober = Prober(rig.attached, rig.health, rig.clock)
    data = random.Random(2).randbytes(60_000)
    extents: list[Extent] = []
    while len(extents) < 12:
        extent = (await write(rig, scheme, data)).extent
        homes = {place.store for place in (await rig.packs.rows.get(extent.pack)).row.places}
        if len(homes & set(rig.stores[:slow])) == 1:
            extents.append(extent)
    for store in rig.stores[:slow]:
        rig.scripts[store].delay_s = (0.050, 0.060)
    took: list[float] = []
    for number in range(600):
        if number % 5 == 0:
            await prober.look()
        began = rig.clock.monotonic()
        assert await read_all(rig, [extents[number % 12]], 0, 4_096) == data[:4_096]
        took.append(rig.clock.monotonic() - began)
        await rig.clock.sleep(LOOK_S / 5)
    await prober.close()
    assert sum(rig.health.readable(store) for store in rig.stores) >= stores - scheme.m
    late = [seconds for seconds in took[100:] if seconds > 0.010]
    assert len(late) <= 15, "now and then it is tried again, ever more seldom"


async def test_no_more_stores_are_ejected_than_the_weakest_pack_can_lose_from_its_first_write_on() -> None:
    rig = build_rig(ejections_max=2)
    began = rig.clock.monotonic()
    await write(rig, RS, bytes(1000))
    assert rig.health.ejections_max == 2
    await rig.clock.sleep(1.0)
    later = rig.clock.monotonic()
    await write(rig, Scheme(1, 1), bytes(1000))
    assert rig.health.ejections_max == 1, "the count of the packs comes a minute later"
    assert rig.health.written_since(began) == [2, 1]
    assert rig.health.written_since(later) == [1]


@pytest.mark.parametrize("fault", ["hang", "write_errors", "vanished", "full"])
async def test_writes_go_on_with_m_stores_at_fault_and_keep_m(fault: str) -> None:
    rig = build_rig()
    for store in rig.stores[:2]:
        setattr(rig.scripts[store], fault, 1.0 if fault == "write_errors" else True)
    slowest = 0.0
    for number in range(8):
        began = rig.clock.monotonic()
        result = await rig.packs.append(RS, piece(f"k{number}", random.Random(number).randbytes(60_000)))
        slowest = max(slowest, rig.clock.monotonic() - began)
        assert isinstance(result.outcome, Committed)
        assert result.receipt.survives["store"] == 2
        assert result.receipt.debt
        assert not {place.store for place in (await rig.packs.rows.get(result.extent.pack)).row.places} & set(
            rig.stores[:2]
        )
    assert slowest < 0.250


async def test_with_fewer_stores_than_redundancy_needs_nothing_is_acknowledged() -> None:
    rig = build_rig()
    for store in rig.stores[:4]:
        rig.scripts[store].vanished = True
    with pytest.raises(BelowFloor):
        await rig.packs.append(RS, piece("k", b"data"))
    assert await rig.index.get([b"head/b/k"]) == [None]


async def test_a_straggler_is_not_waited_for_and_its_shard_clears_the_debt() -> None:
    rig = build_rig()
    rig.scripts[rig.stores[0]].delay_s = (1.0, 1.0)
    began = rig.clock.monotonic()
    written = await write(rig, RS, bytes(2_000_000))
    assert rig.clock.monotonic() - began < 0.2
    assert written.receipt.debt
    assert written.receipt.survives["store"] == 1
    assert (await rig.index.get([debt_row(written.extent.pack)]))[0] is not None
    await rig.clock.sleep(5)
    assert await rig.index.get([debt_row(written.extent.pack)]) == [None]
    assert len((await rig.packs.rows.fresh(written.extent.pack)).row.places) == 6


async def test_debt_is_paid_when_stores_return() -> None:
    rig = build_rig()
    data = random.Random(7).randbytes(3_000_000)
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    written = await write(rig, RS, data)
    pack = written.extent.pack
    (row,) = await rig.index.get([debt_row(pack)])
    assert row is not None
    assert msgspec.msgpack.decode(row.value, type=DebtRow).promised == RS
    assert (await rig.packs.rows.get(pack)).row.scheme == Scheme(2, 2)
    assert await rig.rewriter.rewrite(pack, Reason.DEBT) is Rewritten.NOT_POSSIBLE_NOW
    rig.attached.update(away)
    assert await rig.rewriter.rewrite(pack, Reason.DEBT) is Rewritten.DONE
    assert await rig.index.get([debt_row(pack)]) == [None]
    report = await rig.verifier.verify(await rig.packs.rows.fresh(pack))
    assert (report.state, report.scheme, report.losses_left) == (PackHealth.WHOLE, RS, 2)
    assert await read_all(rig, [written.extent]) == data


@pytest.mark.parametrize("shards", [(0,), (5,), (1, 4), (0, 3), (4, 5)])
async def test_lost_shards_are_made_anew_and_proven(shards: tuple[int, ...]) -> None:
    rig = build_rig()
    data = random.Random(7).randbytes(3_000_000)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    before = await rig.packs.rows.fresh(pack)
    for shard in shards:
        rig.memories[before.places[shard].store].wipe()
    report = await rig.verifier.verify(before)
    assert report.state is PackHealth.DEGRADED
    assert {fault.shard for fault in report.faults} == set(shards)
    assert await rig.rewriter.rewrite(pack, Reason.HEAL, Target(bad=shards)) is Rewritten.DONE
    report = await rig.verifier.verify(await rig.packs.rows.fresh(pack))
    assert report.state is PackHealth.WHOLE
    assert await read_all(rig, [written.extent]) == data


async def test_a_reader_with_an_old_row_finds_the_new_shards() -> None:
    rig = build_rig()
    data = random.Random(7).randbytes(3_000_000)
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    written = await write(rig, RS, data)
    pack = written.extent.pack
    old = await rig.packs.rows.get(pack)
    rig.attached.update(away)
    assert await rig.rewriter.rewrite(pack, Reason.DEBT) is Rewritten.DONE
    for place in old.row.places:
        await rig.attached[place.store].delete(f"{pack.hex()}.{place.shard}.{place.attempt}", timeout_s=1)
    rig.packs.rows.learn(pack, old.row, old.revision)
    assert await read_all(rig, [written.extent]) == data
    rig.packs.rows.learn(pack, old.row, old.revision)
    assert bytes(await rig.packs.read_small(Extent(pack, 1_500_000, 9000))) == data[1_500_000:1_509_000]


async def test_verify_reads_every_shard_and_finds_parity_that_belongs_to_other_data() -> None:
    rig = build_rig()
    written = await write(rig, RS, random.Random(7).randbytes(300_000))
    known = await rig.packs.rows.fresh(written.extent.pack)
    report = await rig.verifier.verify(known)
    assert report.state is PackHealth.WHOLE
    assert report.bytes_read == known.layout.shard_bytes * 6
    # Another pack's parity under this pack's name, with checksums to match: right in itself.
    other = await encode(RS, [bytes(300_000)], known.row.stored_bytes, rig.clock)
    place = known.places[5]
    rig.memories[place.store].wipe()
    await rig.packs.writer.put_shard(known.pack, known.row, other, Attempt(5, place.store, place.attempt))
    report = await rig.verifier.verify(known)
    assert [fault.shard for fault in report.faults] == [5]
    assert "parity" in report.faults[0].fault


async def test_more_than_m_lost_is_said_to_be_lost() -> None:
    rig = build_rig()
    written = await write(rig, RS, random.Random(7).randbytes(300_000))
    known = await rig.packs.rows.fresh(written.extent.pack)
    for store in rig.stores[:3]:
        rig.memories[store].wipe()
    report = await rig.verifier.verify(known)
    assert report.state is PackHealth.LOST
    assert report.losses_left == -1
    with pytest.raises(TooManyShardsLost):
        await rig.rewriter.rewrite(known.pack, Reason.HEAL, Target(bad=tuple(range(6))))


async def test_packs_describe_themselves() -> None:
    rig = build_rig()
    results = await asyncio.gather(
        *[rig.packs.append(RS, piece(f"k{n}", bytes([n]) * 700)) for n in range(9)]
    )
    known = await rig.packs.rows.get(results[-1].extent.pack)
    row = known.row
    (stripe,) = await rig.packs.reader.stripes(known, 0, 1)
    manifest = memoryview(stripe)[row.payload_bytes : row.stored_bytes]
    entries = {entry.key: entry for entry in decode_manifest(manifest, "pack")}
    for number, result in enumerate(results):
        if result.extent.pack == known.pack:
            entry = entries[f"k{number}"]
            assert (entry.offset, entry.length) == (result.extent.offset, result.extent.length)


async def test_with_more_stores_than_shards_no_store_holds_two() -> None:
    rig = build_rig(stores=9)
    used = set()
    for _ in range(6):
        written = await write(rig, RS, bytes(2_000_000))
        row = (await rig.packs.rows.fresh(written.extent.pack)).row
        assert len({place.store for place in row.places}) == 6
        used |= {place.store for place in row.places}
    assert used == set(rig.stores)


async def test_what_cannot_be_read_while_stores_are_away_is_not_said_to_be_lost() -> None:
    rig = build_rig()
    data = random.Random(7).randbytes(300_000)
    written = await write(rig, RS, data)
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    rig.scripts[rig.stores[2]].vanished = True
    with pytest.raises(TooFewShardsAnswer):
        await read_all(rig, [written.extent])
    assert not rig.damage
    rig.attached.update(away)
    assert await read_all(rig, [written.extent]) == data
    for store in rig.stores[3:5]:
        rig.memories[store].wipe()
    with pytest.raises(TooFewShardsAnswer):
        await read_all(rig, [written.extent])
    rig.memories[rig.stores[5]].wipe()
    with pytest.raises(TooManyShardsLost):
        await read_all(rig, [written.extent])


async def test_rows_are_remembered_by_what_they_weigh() -> None:
    rig = build_rig()
    rows = PackRows(rig.index, places_max=20)
    packs = [(await write(rig, RS, bytes(50_000))).extent.pack for _ in range(5)]
    for pack in [*packs, *packs[:2], packs[1]]:
        await rows.fresh(pack)
    assert [pack for pack in packs if rows.cached(pack)] == [packs[0], packs[1], packs[4]]
    rows.forget(packs[4])
    await rows.fresh(packs[3])
    assert [pack for pack in packs if rows.cached(pack)] == [packs[0], packs[1], packs[3]]


async def test_what_is_in_memory_is_rebuilt_at_once_and_verified_like_any_other() -> None:
    rig = build_rig()
    data = random.Random(4).randbytes(200_000)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    known = await rig.packs.rows.get(pack)
    for store, memory in rig.memories.items():
        memory.latency_s = (0.0, 0.0)  # a store that answers a peek
        rig.attached[store] = memory
    del rig.attached[known.places[0].store]
    first = Extent(pack, 0, 4096)
    assert bytes(await rig.packs.read_small(first)) == data[:4096]
    spoiled = known.places[2]
    name = shard_name(pack, 2, spoiled.attempt)
    for offset in range(0, 8192, 512):
        rig.memories[spoiled.store].damage(name, offset, 0xFF)
    assert bytes(await rig.packs.read_small(first)) == data[:4096]
    assert [shard for _, shard, _ in rig.damage] == [2]


async def test_a_late_read_is_rebuilt_although_its_time_cannot_be_told_exactly() -> None:
    """Begun at a moment after which 150 ms are a little less than 150 ms, once rounded."""
    rig = build_rig()
    written = await write(rig, RS, bytes(9000))
    began = next(
        moment / 10
        for moment in range(10, 1000)
        if (moment / 10 + UNCONDITIONAL_S) - moment / 10 < UNCONDITIONAL_S
    )
    await rig.clock.sleep(began - rig.clock.monotonic())
    assert rig.clock.monotonic() == began
    while rig.packs.reader.budget.spend():
        pass
    known = await rig.packs.rows.get(written.extent.pack)
    rig.scripts[known.places[0].store].hang = True
    assert await read_all(rig, [written.extent]) == bytes(9000)
    assert rig.clock.monotonic() < began + 0.25
