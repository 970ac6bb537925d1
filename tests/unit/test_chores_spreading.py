"""Packs that were healed onto the regions that were left are spread again when the region is back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.ids import PackId, StoreId
from holdfast.chores.spreading import SETTLED_S, Respread, respread
from holdfast.index.port import Row, prefix_end
from holdfast.packs.layout import Layout, real_shards
from holdfast.packs.model import PackRow, Place
from holdfast.packs.promising import required
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import decode_row
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from holdfast.topology import ANY_REGION, Location, Survive, Topology, keeps, place, survived
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import piece

RS = Scheme(4, 2)
LARGE = 1 << 24
BODY = bytes(range(256)) * 400


def regions(*stores: int) -> Topology:
    return Topology(
        Location(StoreId(f"{chr(97 + region)}{number}"), region=chr(97 + region), device=f"{region}{number}")
        for region, count in enumerate(stores)
        for number in range(count)
    )


def row_on(scheme: Scheme, homes: list[StoreId]) -> PackRow:
    return PackRow(scheme, LARGE, 0, LARGE, tuple(Place(shard, at, 0) for shard, at in enumerate(homes)))


def after(row: PackRow, moves: tuple[tuple[int, StoreId], ...]) -> list[StoreId]:
    return [dict(moves).get(place_.shard, place_.store) for place_ in row.places]


def test_as_few_shards_move_as_have_to() -> None:
    topology = regions(3, 3, 3)
    row = row_on(RS, [StoreId(name) for name in ("a0", "a1", "a2", "b0", "b1", "b2")])
    moves = respread(topology, row, topology.stores, (ANY_REGION,))
    assert len(moves) == 2
    assert survived(topology, after(row, moves), 4) == survived(
        topology, place(topology, 6, topology.stores), 4
    )


def test_what_lies_well_or_lacks_shards_or_has_no_room_is_left_alone() -> None:
    topology = regions(3, 3, 3)
    well = row_on(RS, place(topology, 6, topology.stores))
    assert respread(topology, well, topology.stores, (ANY_REGION,)) == ()
    dense = row_on(RS, [StoreId(name) for name in ("a0", "a1", "a2", "b0", "b1", "b2")])
    assert respread(topology, dense, topology.stores, ()) == ()
    assert respread(topology, dense, [StoreId("c0")], (ANY_REGION,)) == (), "one store more does not do it"
    lacking = PackRow(RS, LARGE, 0, LARGE, dense.places[:5])
    assert respread(topology, lacking, topology.stores, (ANY_REGION,)) == ()


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.sampled_from([Scheme(4, 2), Scheme(2, 1), Scheme(1, 2), Scheme(1, 1), Scheme(6, 3)]),
    st.sampled_from([(), (Survive("host"),), (Survive("region", 2),)]),
    st.randoms(),
)
def test_wherever_a_pack_lies_it_comes_to_keep_what_it_must(
    shape: list[int], scheme: Scheme, told: tuple[Survive, ...], chance: object
) -> None:
    topology = regions(*shape)
    if len(topology.stores) < scheme.n:
        return
    stores = list(topology.stores)
    chance.shuffle(stores)  # type: ignore[attr-defined]
    row = row_on(scheme, stores[: scheme.n])
    wanted = required(topology, scheme, told)
    moves = respread(topology, row, topology.stores, wanted)
    homes = after(row, moves)
    assert len(set(homes)) == scheme.n
    assert keeps(topology, wanted, homes, scheme.k)


async def all_packs(rig: Rig) -> list[tuple[PackId, PackRow]]:
    found = await rig.index.scan(b"pack/", prefix_end(b"pack/"), limit=1000)
    return [
        (PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())), decode_row(row.value))
        for row in found
        if isinstance(row, Row)
    ]


async def survives_a_region(rig: Rig) -> list[bool]:
    return [
        keeps(
            rig.topology,
            (ANY_REGION,),
            [place_.store for place_ in row.places],
            Layout(row.scheme.k, row.stored_bytes).real_data_shards,
        )
        for _, row in await all_packs(rig)
    ]


@pytest.mark.virtual
async def test_a_region_goes_its_packs_are_healed_and_spread_when_it_returns() -> None:
    rig = build_rig(9)
    region = {store: number % 3 for number, store in enumerate(rig.stores)}
    rig.topology = Topology(Location(store, region=f"r{region[store]}", device=store) for store in rig.stores)
    for number in range(10):
        await rig.packs.append(RS, piece(f"k{number}", BODY))
    assert all(await survives_a_region(rig))
    away = {store: rig.attached.pop(store) for store in rig.stores if region[store] == 2}
    for pack, row in await all_packs(rig):
        assert len(real_shards(row.scheme, row.stored_bytes)) == 6
        outcome = await rig.rewriter.rewrite(pack, Reason.HEAL, Target(gone=frozenset(away)))
        assert outcome is Rewritten.DONE
    assert not any(await survives_a_region(rig)), "six shards lie in two regions, three in each"

    chore = Respread(
        rig.index,
        rig.rewriter,
        lambda: frozenset(rig.attached),
        lambda: rig.topology,
        lambda: False,
        rig.clock,
    )

    async def work(seconds: float) -> None:
        until = rig.clock.monotonic() + seconds
        while rig.clock.monotonic() < until:
            if not await chore.step():
                await rig.clock.sleep(chore.interval_s)

    await work(3 * SETTLED_S)
    assert chore.moved == 0, "with two regions there is nowhere to go"
    rig.attached.update(away)
    await work(SETTLED_S / 2)
    assert chore.moved == 0, "it has not settled"
    await work(2 * SETTLED_S)
    assert all(await survives_a_region(rig))
    assert chore.moved == 10
    assert all([report.state is PackHealth.WHOLE async for report in rig.verifier.verify_all()])
    await work(3 * SETTLED_S)
    assert chore.moved == 10, "and that is that"
