"""Stores are emptied, and made equally full, by chores on real packs over memory stores."""

from collections import Counter

import pytest

from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.balance import Fill
from holdfast.chores.drain import LOOK_AGAIN_S, Drain, Leaving
from holdfast.chores.rebalance import Rebalance
from holdfast.index.port import Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.model import Extent
from holdfast.packs.rows import decode_row
from holdfast.packs.storage import row_transaction
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from holdfast.topology import Location, Topology
from tests.kit.rig import Rig, build_rig

pytestmark = pytest.mark.virtual

RS = Scheme(4, 2)
MIB = 1 << 20


async def fill(rig: Rig, packs: int, size: int, *, besides: int = 0) -> dict[PackId, bytes]:
    """So many packs on all stores but the last `besides`."""
    chance, bodies = SeededRandomness(4), {}
    away = {store: rig.attached.pop(store) for store in rig.stores[len(rig.stores) - besides :]}
    for _ in range(packs):
        body = chance.token(size)
        landed = await rig.packs.writer.write(RS, [body], b"m", size)
        await rig.index.commit([row_transaction(landed)])
        bodies[landed.pack] = body
    rig.attached.update(away)
    return bodies


async def held(rig: Rig) -> Counter[StoreId]:
    count = Counter(dict.fromkeys(rig.stores, 0))
    for row in await rig.index.scan(b"pack/", prefix_end(b"pack/"), limit=10_000):
        assert isinstance(row, Row)
        known = decode_row(row.value)
        for place in known.places:
            count[place.store] += Layout(known.scheme.k, known.stored_bytes).shard_bytes
    return count


async def all_whole(rig: Rig, bodies: dict[PackId, bytes]) -> bool:
    for pack, body in bodies.items():
        found = [bytes(part) async for part in rig.packs.read([Extent(pack, 0, len(body))], 0, len(body))]
        assert b"".join(found) == body
    return all([report.state is PackHealth.WHOLE async for report in rig.verifier.verify_all()])


async def run(rig: Rig, chore: Drain | Rebalance) -> int:
    """Until it has rested a few times; how many steps did something."""
    worked = rests = 0
    while rests < 4:
        if await chore.step():
            worked += 1
            assert worked < 1000, "it does not come to an end"
        else:
            rests += 1
            await rig.clock.sleep(LOOK_AGAIN_S + 1)
    return worked


async def test_a_store_that_is_left_is_empty_and_all_packs_are_whole() -> None:
    rig = build_rig(8)
    bodies = await fill(rig, 30, 200_000)
    leaving = [Leaving(rig.stores[0]), Leaving(rig.stores[3])]
    drain = Drain(rig.index, rig.rewriter, lambda: leaving, rig.clock)
    assert drain.empty == frozenset()
    await run(rig, drain)
    assert drain.empty == {rig.stores[0], rig.stores[3]}
    now = await held(rig)
    assert now[rig.stores[0]] == now[rig.stores[3]] == 0
    assert drain.stuck == 0
    assert drain.bytes_moved > 0
    assert await all_whole(rig, bodies)


async def test_a_store_that_takes_the_place_of_another_gets_what_that_one_held() -> None:
    rig = build_rig(8)
    bodies = await fill(rig, 30, 200_000, besides=2)
    before = await held(rig)
    old, heir, other = rig.stores[2], rig.stores[6], rig.stores[7]
    drain = Drain(rig.index, rig.rewriter, lambda: [Leaving(old, into=heir)], rig.clock)
    await run(rig, drain)
    now = await held(rig)
    assert (now[old], now[heir], now[other]) == (0, before[old], 0)
    assert await all_whole(rig, bodies)


async def test_without_another_place_nothing_moves_and_it_is_said_why() -> None:
    rig = build_rig(6)
    bodies = await fill(rig, 5, 200_000)
    before = await held(rig)
    drain = Drain(rig.index, rig.rewriter, lambda: [Leaving(rig.stores[0])], rig.clock)
    await run(rig, drain)
    assert await held(rig) == before
    assert drain.empty == frozenset()
    assert drain.stuck == 5
    assert "too few other stores" in drain.reason
    assert await all_whole(rig, bodies)


async def test_where_it_is_accepted_packs_get_a_smaller_scheme_with_the_same_redundancy() -> None:
    rig = build_rig(6)
    bodies = await fill(rig, 5, 200_000)
    drain = Drain(rig.index, rig.rewriter, lambda: [Leaving(rig.stores[0], shrink=True)], rig.clock)
    await run(rig, drain)
    assert (await held(rig))[rig.stores[0]] == 0
    assert drain.empty == {rig.stores[0]}
    for pack in bodies:
        assert (await rig.packs.rows.fresh(pack)).row.scheme == Scheme(3, 2)
    assert await all_whole(rig, bodies)


async def test_a_pack_that_cannot_be_read_now_does_not_hold_up_the_others() -> None:
    rig = build_rig(7)
    bodies = await fill(rig, 10, 200_000, besides=1)
    (first, *_) = sorted(bodies)
    known = await rig.packs.rows.fresh(first)
    leaving = rig.stores[0]
    for place in known.row.places[:5]:
        for name in await rig.memories[place.store].list("", limit=100, timeout_s=1):
            if name.startswith(first.hex()):
                await rig.memories[place.store].delete(name, timeout_s=1)
    drain = Drain(rig.index, rig.rewriter, lambda: [Leaving(leaving)], rig.clock)
    await run(rig, drain)
    assert drain.stuck == 1
    assert drain.empty == frozenset()
    assert (await held(rig))[leaving] == known.layout.shard_bytes


class Balancing:
    """A chore over a rig, and the counts that it goes by."""

    def __init__(self, rig: Rig, *, busy: bool = False) -> None:
        self._rig = rig
        self._counted = 0.0
        self._fills: dict[StoreId, Fill] = {}
        topology = Topology(Location(store, device=store) for store in rig.stores)
        self.chore = Rebalance(
            rig.index,
            rig.rewriter,
            lambda: (self._counted, self._fills),
            lambda: topology,
            lambda: busy,
            rig.clock,
        )

    async def count(self) -> None:
        self._counted = self._rig.clock.monotonic()
        sizes = await held(self._rig)
        self._fills = {store: Fill(size, size + 1000 * MIB) for store, size in sizes.items()}


async def test_after_two_stores_came_all_hold_the_same_and_it_does_not_begin_again() -> None:
    rig = build_rig(8)
    bodies = await fill(rig, 64, MIB, besides=2)
    before = await held(rig)
    even = sum(before.values()) / 8
    least = sum(size - even for size in before.values() if size > even)
    balancing = Balancing(rig)
    await balancing.count()
    assert await run(rig, balancing.chore) > 0
    now = await held(rig)
    assert all(abs(size - even) < 0.05 * even for size in now.values())
    assert balancing.chore.bytes_moved <= 1.1 * least
    assert await all_whole(rig, bodies)
    assert await run(rig, balancing.chore) == 0, "by a count from before it moved anything"
    await balancing.count()
    assert await run(rig, balancing.chore) == 0


async def test_nothing_is_moved_while_something_urgent_goes_on() -> None:
    rig = build_rig(8)
    await fill(rig, 48, MIB, besides=2)
    before = await held(rig)
    balancing = Balancing(rig, busy=True)
    await balancing.count()
    assert await run(rig, balancing.chore) == 0
    assert await held(rig) == before
