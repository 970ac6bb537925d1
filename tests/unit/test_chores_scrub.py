"""Scrub: everything is read again in time, oldest first, at the rate that was set; what is wrong is found."""

from contextlib import suppress

import msgspec
import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.chores.runner import ChoreRunner
from holdfast.chores.scrub import Scrub
from holdfast.chores.scrub_times import RANGES, TOGETHER_MAX, At, is_due, look, range_keys
from holdfast.index.port import Row, prefix_end
from holdfast.packs.quorum import Attempt
from holdfast.packs.rows import KnownPack
from holdfast.packs.verifying import PackReport
from holdfast.packs.writing import encode
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, write

pytestmark = pytest.mark.virtual

DAY_S = 86_400.0


class Scrubbed:
    """A scrub over a rig, and what it has found."""

    def __init__(self, rig: Rig, pass_s: float = DAY_S, rate_bytes: int = 0) -> None:
        self.rig = rig
        self.found: list[PackReport] = []
        self.scrub = Scrub(
            rig.attached,
            lambda: rig.stores,
            rig.index,
            rig.verifier,
            rig.clock,
            self.found.append,
            pass_s=pass_s,
            rate_bytes=rate_bytes,
        )
        self.runner = ChoreRunner([self.scrub], rig.clock, lambda *_: None, index=rig.index, holder="a")

    async def for_s(self, seconds: float) -> None:
        self.runner.start()
        await self.rig.clock.sleep(seconds)
        await self.runner.close()


async def scrub_rows(rig: Rig) -> list[Row]:
    rows = await rig.index.scan(b"scrub/", prefix_end(b"scrub/"), limit=1000)
    return [row for row in rows if isinstance(row, Row)]


async def test_all_that_was_never_read_is_read_at_once_and_then_spread_over_the_pass() -> None:
    rig = build_rig()
    for _ in range(40):
        await write(rig, RS, bytes(9000))
    it = Scrubbed(rig)
    await it.for_s(60)
    assert it.scrub.packs_read == 40
    assert it.scrub.oldest_age_s is not None
    assert it.scrub.oldest_age_s <= 61
    assert (it.found, it.scrub.faults_found) == ([], 0)
    await it.for_s(0.5 * DAY_S)
    assert 40 + 10 <= it.scrub.packs_read <= 40 + 30
    await it.for_s(0.52 * DAY_S)
    assert it.scrub.packs_read == pytest.approx(80, abs=2)
    assert it.scrub.oldest_age_s <= 1.05 * DAY_S


async def test_what_is_written_down_does_not_grow_with_packs() -> None:
    rig = build_rig()
    it = Scrubbed(rig)
    await it.for_s(130)
    before, revision = await scrub_rows(rig), rig.index.status().revision
    for _ in range(50):
        await write(rig, RS, bytes(9000))
    written = rig.index.status().revision - revision
    await it.for_s(1.05 * DAY_S)
    after = await scrub_rows(rig)
    assert 50 <= it.scrub.packs_read <= 60
    assert [row.key for row in after] == [row.key for row in before]
    assert len(after) == 1 + len(rig.stores)
    assert max(len(row.value) for row in after) < 2000
    assert rig.index.status().revision - revision - written <= 1.5 * RANGES


async def test_every_kind_of_damage_is_found() -> None:
    rig = build_rig()
    packs = [await rig.packs.rows.fresh((await write(rig, RS, bytes(500_000))).extent.pack) for _ in range(6)]
    flipped, truncated, missing, misdirected, other, stale = packs

    def content(known: KnownPack, shard: int) -> bytes:
        at = known.places[shard]
        return rig.memories[at.store].medium[shard_name(known.pack, shard, at.attempt)]

    def spoil(known: KnownPack, shard: int, content: bytes | None) -> None:
        at = known.places[shard]
        rig.memories[at.store].spoil(shard_name(known.pack, shard, at.attempt), content)

    whole = content(flipped, 1)
    spoil(flipped, 1, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    spoil(truncated, 2, content(truncated, 2)[:-1])
    spoil(missing, 3, None)
    spoil(misdirected, 4, content(flipped, 4))
    encoded = await encode(RS, [bytes([7]) * 500_000], other.row.stored_bytes, rig.clock)
    for known, shard in ((other, 5), (stale, 0)):
        spoil(known, shard, None)
        at = known.places[shard]
        await rig.packs.writer.put_shard(known.pack, known.row, encoded, Attempt(shard, at.store, at.attempt))
    it = Scrubbed(rig)
    await it.for_s(60)
    faults = {(report.pack, fault.shard) for report in it.found for fault in report.faults}
    wanted = [(flipped, 1), (truncated, 2), (missing, 3), (misdirected, 4), (other, 5), (stale, 0)]
    assert faults == {(known.pack, shard) for known, shard in wanted}
    assert {report.pack: report.condemned for report in it.found if report.condemned} == {
        other.pack: (5,),
        stale.pack: (0,),
    }
    # All of these are told to heal, too.
    assert {(pack, shard) for pack, shard, _ in rig.damage} == faults


async def test_it_reads_no_faster_than_it_was_told() -> None:
    rig = build_rig()
    for _ in range(10):
        await write(rig, RS, bytes(4_000_000))
    it = Scrubbed(rig, rate_bytes=1 << 20)
    await it.for_s(20)
    assert 19 <= it.scrub.bytes_read / (1 << 20) <= 45  # a batch of four packs is begun before it is counted
    await it.for_s(60)
    assert it.scrub.packs_read == 10


async def test_a_pack_that_the_index_kept_from_being_judged_is_read_again() -> None:
    rig = build_rig()
    for _ in range(8 * RANGES):
        await write(rig, Scheme(1, 1), b"small")
    it = Scrubbed(rig)
    read: list[PackId] = []
    failed: list[PackId] = []
    verify = rig.verifier.verify

    async def verify_with_trouble(known: KnownPack, unread: object) -> PackReport:
        if known.pack not in read and len(read) % 97 == 0:
            read.append(known.pack)
            failed.append(known.pack)
            raise Unavailable("The index is away.")
        read.append(known.pack)
        return await verify(known)

    rig.verifier.verify = verify_with_trouble  # type: ignore[method-assign]
    while it.scrub.oldest_age_s is None:
        with suppress(Unavailable):
            await it.scrub.step()
    assert len(failed) > 10
    assert it.scrub.packs_read >= 8 * RANGES
    assert all(read.count(pack) >= 2 for pack in failed)


async def test_a_restart_goes_on_where_it_was() -> None:
    rig = build_rig()
    for _ in range(60):
        await write(rig, RS, bytes(1_000_000))
    first = Scrubbed(rig, rate_bytes=1 << 20)
    await first.for_s(75)
    assert 20 <= first.scrub.packs_read < 59
    second = Scrubbed(rig)
    await second.for_s(60)
    assert second.scrub.oldest_age_s is not None
    assert second.scrub.packs_read < 60 - first.scrub.packs_read + 20


async def test_a_store_that_was_away_keeps_its_age_and_is_read_when_it_is_back() -> None:
    rig = build_rig()
    for _ in range(30):
        await write(rig, RS, bytes(9000))
    it = Scrubbed(rig)
    await it.for_s(60)
    sick = rig.stores[0]
    store = rig.attached.pop(sick)
    await it.for_s(2 * DAY_S)
    assert it.scrub.oldest_age_s is not None
    assert it.scrub.oldest_age_s > 1.9 * DAY_S
    assert it.found == [], "a store that is away is not damage"
    rig.attached[sick] = store
    await it.for_s(3700)
    assert it.scrub.oldest_age_s < 1.1 * DAY_S


async def test_a_store_that_does_not_answer_does_not_hold_up_the_others() -> None:
    rig = build_rig()
    for _ in range(30):
        await write(rig, RS, bytes(9000))
    rig.scripts[rig.stores[0]].read_errors = 1.0
    it = Scrubbed(rig)
    await it.for_s(3000)
    assert it.scrub.packs_read == 30
    assert it.scrub.oldest_age_s is None
    rig.scripts[rig.stores[0]].read_errors = 0.0
    await it.for_s(4000)
    assert it.scrub.oldest_age_s is not None


def test_the_range_that_was_read_longest_ago_at_any_store_comes_next() -> None:
    a, b = StoreId("a"), StoreId("b")
    times = {a: list(range(1000, 1000 + RANGES)), b: list(range(1000, 1000 + RANGES))}
    assert look(times, [a, b], 5000, 4050).range == 0
    times[b][17] = 900
    assert look(times, [a, b], 5000, 4050).range == 17
    assert look(times, [a], 5000, 4050).range == 0
    times[a][200] = 6000  # of a clock that was ahead
    assert look(times, [a, b], 5000, 4050).range == 200
    assert look(times, [a, b], 5000, 4050).oldest_s == float("inf")
    assert look(times, [b], 5000, 4050).oldest_s == 4100
    assert look(times, [b], 5000, 4050).overdue == 1


def test_overdue_ranges_side_by_side_are_read_as_one() -> None:
    a, b = StoreId("a"), StoreId("b")
    times = {a: [5000] * RANGES, b: [5000] * RANGES}
    assert look(times, [a, b], 5100, 200).together == 1
    times[a][7], times[b][8], times[a][10] = 10, 20, 30
    found = look(times, [a, b], 5100, 200)
    assert (found.range, found.together, found.overdue) == (7, 2, 3)
    never = {a: [0] * RANGES}
    assert look(never, [a], 5100, 200).together == TOGETHER_MAX
    never[a][: RANGES - 3] = [5000] * (RANGES - 3)
    assert look(never, [a], 5100, 200)[:1] + look(never, [a], 5100, 200)[3:] == (RANGES - 3, 3)
    assert range_keys(RANGES - 3, 3) == (b"pack/fd", b"pack/g")
    assert range_keys(3, 2) == (b"pack/03", b"pack/05")


def test_where_an_earlier_version_was_reading_is_understood() -> None:
    earlier = msgspec.msgpack.encode([1, 7, "07ab", 123, ["a"]])
    at = msgspec.msgpack.decode(earlier, type=At)
    assert (at.range, at.together, at.covered) == (7, 1, ["a"])


def test_ranges_begin_evenly_or_at_once_when_overdue() -> None:
    assert is_due(float("inf"), 0.0, 256.0)
    assert is_due(300.0, 0.0, 256.0)
    assert not is_due(100.0, 0.5, 256.0)
    assert is_due(100.0, 1.0, 256.0)


def test_ranges_cover_every_pack_once() -> None:
    keys = [range_keys(number) for number in range(RANGES)]
    assert keys[0][0] <= b"pack/" + b"00" * 16
    assert keys[-1][1] > b"pack/" + b"ff" * 16
    assert [end for _, end in keys[:-1]] == [start for start, _ in keys[1:]]


async def test_what_costs_money_is_not_read_and_still_missed_when_it_is_gone() -> None:
    rig = build_rig()
    packs = [await write(rig, RS, bytes(range(256)) * 400) for _ in range(3)]
    assert packs
    dear = rig.stores[0]
    it = Scrubbed(rig)
    it.scrub._unread = lambda: (dear,)
    reads: list[str] = []
    real = rig.attached[dear].get

    async def get(name: str, *arguments: object, **named: object) -> object:
        reads.append(name)
        return await real(name, *arguments, **named)  # type: ignore[arg-type]

    rig.attached[dear].get = get  # type: ignore[method-assign, assignment]
    await it.for_s(60)
    assert (it.scrub.packs_read, it.found, reads) == (3, [], [])
    (gone, *_) = await rig.attached[dear].list("", limit=1000, timeout_s=9)
    await rig.attached[dear].delete(gone, timeout_s=9)
    await it.for_s(2 * DAY_S)
    assert it.found
    assert all(fault.store == dear for report in it.found for fault in report.faults)
    assert not reads
