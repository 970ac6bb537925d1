"""What is acknowledged survives the loss of a region wherever the scheme promises that."""

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.ids import StoreId
from holdfast.packs.layout import Layout, choose_scheme
from holdfast.packs.model import debt_row
from holdfast.packs.promising import required
from holdfast.packs.quorum import LAST_RESORT_S, PATIENCE_S, Attempt, Verdict, WriteRound
from holdfast.packs.rewriting import Reason, Rewritten
from holdfast.packs.spread import can_keep, fitting_scheme, without_slow
from holdfast.scheme import Scheme, parse_scheme
from holdfast.topology import ANY_REGION, Level, Location, Topology, keeps, place
from tests.kit.rig import build_rig
from tests.unit.test_packs_storage import write

RS42 = Scheme(4, 2)
LARGE = 8 << 20


def regions(*stores: int) -> Topology:
    """So many stores in each region."""
    return Topology(
        Location(StoreId(f"{chr(97 + region)}{number}"), region=chr(97 + region), host=f"h{number}")
        for region, count in enumerate(stores)
        for number in range(count)
    )


def survives_any_region(topology: Topology, stores: Sequence[StoreId], needed: int) -> bool:
    """By trying each."""
    at = [topology.domain(store, Level.REGION) for store in stores]
    return all(sum(region != lost for region in at) >= needed for lost in {*at, ("none",)})


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
schemes = st.sampled_from([Scheme(k, m) for k in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("scheme", "shape", "promised"),
    [
        ("rs-2-1", (1, 1, 1), True),
        ("rs-4-2", (2, 2, 2), True),
        ("rs-4-2", (3, 3, 3), True),
        ("rs-4-2", (4, 1, 1), False),
        ("rs-4-2", (3, 3), False),
        ("mirror-3", (1, 1, 1), True),
        ("mirror-2", (3, 3), True),
        ("mirror-2", (6,), False),
        ("raid0", (1, 1, 1), False),
    ],
)
def test_which_schemes_promise_a_region(scheme: str, shape: tuple[int, ...], promised: bool) -> None:
    assert (required(regions(*shape), parse_scheme(scheme, sum(shape))) == (ANY_REGION,)) is promised


@pytest.mark.parametrize(
    ("scheme", "shape", "left"),
    [
        ("rs-2-1", (1, 1, 1), "mirror-2"),
        ("rs-4-2", (2, 2, 2), "rs-2-2"),
        ("rs-4-2", (3, 3, 3), "rs-2-2"),
        ("mirror-3", (1, 1, 1), None),
        ("mirror-3", (2, 2, 2), "mirror-3"),
    ],
)
def test_what_new_packs_are_when_a_region_is_lost_as_the_page_says(
    scheme: str, shape: tuple[int, ...], left: str | None
) -> None:
    topology = regions(*shape)
    there = [store for store in topology.stores if not store.startswith("a")]
    found = fitting_scheme(parse_scheme(scheme, sum(shape)), LARGE, there, topology)
    assert (found and found.name) == left


@given(shapes, schemes, st.integers(1, LARGE), st.data())
def test_while_two_regions_can_be_written_a_promised_region_is_kept(
    shape: list[int], promised: Scheme, stored: int, data: st.DataObject
) -> None:
    topology = regions(*shape)
    candidates = data.draw(st.permutations(topology.stores))
    candidates = candidates[: data.draw(st.integers(0, len(candidates)))]
    chosen = fitting_scheme(promised, stored, candidates, topology)
    most = choose_scheme(promised, stored, len(candidates))
    assert (chosen is None) == (most is None)
    if chosen is None or most is None:
        return
    assert chosen.m == promised.m
    assert chosen.k <= most.k
    if not required(topology, promised):
        assert chosen == most
        return
    needed = Layout(chosen.k, stored).real_data_shards
    homes = place(topology, needed + chosen.m, candidates)
    two = len({topology.domain(store, Level.REGION) for store in candidates}) > 1
    assert survives_any_region(topology, homes, needed) is two


@given(shapes.filter(lambda shape: len(shape) > 1), schemes, st.data())
def test_no_order_of_answers_is_acknowledged_before_a_region_may_go(
    shape: list[int], promised: Scheme, data: st.DataObject
) -> None:
    topology = regions(*shape)
    scheme = fitting_scheme(promised, LARGE, topology.stores, topology)
    if scheme is None or not required(topology, promised):
        return
    candidates = data.draw(st.permutations(topology.stores))
    homes = place(topology, scheme.n, candidates)
    write = WriteRound(
        dict(enumerate(homes)),
        scheme.k,
        [store for store in candidates if store not in homes],
        frozenset(data.draw(st.lists(st.sampled_from(homes), max_size=2))),
        stores_min=scheme.m + 1,
        now=0.0,
        keeps=partial(keeps, topology, (ANY_REGION,), needed=scheme.k),
        fits=partial(can_keep, topology, promised, (ANY_REGION,)),
    )
    pending: list[Attempt] = write.start()
    now = 0.0
    while write.verdict is None:
        now += data.draw(st.sampled_from([0.0, 0.001, 0.03, 0.09]))
        what = data.draw(st.sampled_from(["lands", "lands", "lands", "fails", "time"])) if pending else "time"
        if what == "time":
            now = max(now, write.wake()) if not pending else now
            pending += write.at(now)
            assert now < 3 * PATIENCE_S, "a round ends"
            continue
        attempt = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
        if what == "lands":
            write.succeeded(attempt, now)
        else:
            pending += write.erred(attempt, now)
    durable = [attempt.store for attempt in write.durable.values()]
    if write.verdict is Verdict.ACKNOWLEDGE:
        assert survives_any_region(topology, durable, scheme.k)
    elif write.verdict is Verdict.RETRY:
        assert write.exclude, "another round would be the same"
    assert len({*write.durable.values(), *write.surplus, *write.failed}) == len(write.ended)


def a_round(
    topology: Topology, scheme: Scheme, spares: Sequence[str] = ()
) -> tuple[WriteRound, list[Attempt]]:
    chosen = place(topology, scheme.n, [store for store in topology.stores if store not in spares])
    write = WriteRound(
        dict(enumerate(chosen)),
        scheme.k,
        [StoreId(spare) for spare in spares],
        frozenset(),
        stores_min=scheme.m + 1,
        now=0.0,
        keeps=partial(keeps, topology, (ANY_REGION,), needed=scheme.k),
    )
    return write, write.start()


def test_five_of_rs_4_2_over_three_regions_are_not_enough() -> None:
    write, attempts = a_round(regions(2, 2, 2), RS42)
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.002)
    write.at(0.081)
    assert write.verdict is Verdict.RETRY
    assert write.exclude == {attempts[5].store}


def test_two_copies_in_two_regions_are_enough_and_in_one_are_not() -> None:
    topology = regions(2, 1)
    for landed, verdict in ((("a", "b"), Verdict.ACKNOWLEDGE), (("a", "a"), Verdict.FAIL)):
        write, attempts = a_round(topology, Scheme(1, 2))
        left = list(attempts)
        for region in landed:
            attempt = next(one for one in left if one.store.startswith(region))
            left.remove(attempt)
            write.succeeded(attempt, 0.002)
        write.at(0.081)
        assert write.verdict in (verdict, None)
        write.at(PATIENCE_S + 0.001)
        assert write.verdict is verdict


def test_another_region_that_hangs_is_waited_for_a_moment_and_no_longer() -> None:
    # Two copies, one in each of two regions: the one that is here is durable, the other region says nothing.
    topology, promised = regions(2, 2), Scheme(1, 1)
    write = WriteRound(
        {0: StoreId("a0"), 1: StoreId("b0")},
        1,
        [StoreId("a1"), StoreId("b1")],
        frozenset(),
        stores_min=2,
        now=0.0,
        keeps=partial(keeps, topology, (ANY_REGION,), needed=1),
        fits=partial(can_keep, topology, promised, (ANY_REGION,)),
    )
    here, _ = write.start()
    write.succeeded(here, 0.002)
    (spare,) = write.at(0.041)
    assert spare.store == "b1", "another one here would not keep the region"
    while write.verdict is None:
        now = write.wake()
        write.at(now)
    assert write.verdict is Verdict.RETRY
    assert now == LAST_RESORT_S
    assert write.exclude == {"b0", "b1"}


def test_a_spare_of_a_region_that_is_full_of_the_pack_is_not_taken() -> None:
    write, attempts = a_round(regions(3, 2, 3), RS42, ["a2", "c2"])
    lost = next(attempt for attempt in attempts if attempt.store == "c0")
    (again,) = write.erred(lost, 0.001)
    assert again.store == "c2"
    lost = next(attempt for attempt in attempts if attempt.store == "b0")
    assert write.erred(lost, 0.001) == []
    assert write.verdict is Verdict.RETRY


def test_a_store_that_sits_out_is_left_out_where_the_others_keep_the_region() -> None:
    topology = regions(2, 2, 2)
    assert without_slow(RS42, LARGE, topology.stores, lambda store: store != "a0", topology) == [
        store for store in topology.stores if store != "a0"
    ]
    one_left = without_slow(RS42, LARGE, topology.stores, lambda store: store.startswith("a"), topology)
    assert one_left == list(topology.stores)


@pytest.mark.virtual
@pytest.mark.parametrize("broken", ["", "s0", "s0 s3", "s0 s1", "s0 s2 s4"])
async def test_packs_are_acknowledged_so_that_any_region_may_go(broken: str) -> None:
    rig = build_rig(6)
    rig.topology = topology = Topology(
        Location(store, region=f"r{number // 2}", host=f"h{number}", device=f"d{number}")
        for number, store in enumerate(rig.stores)
    )
    for store in broken.split():
        rig.scripts[rig.stores[int(store[1:])]].delay_s = (60.0, 60.0)
    for size in (10, 5_000, 300_000, 3 << 20):
        for _ in range(3):
            written = await write(rig, RS42, bytes(size))
            known = await rig.packs.rows.fresh(written.extent.pack)
            homes = [at.store for at in known.row.places]
            assert survives_any_region(topology, homes, known.layout.real_data_shards)
            assert written.receipt.survives["region"] >= 1


@pytest.mark.virtual
@pytest.mark.parametrize("scheme", [Scheme(2, 1), RS42])
async def test_what_a_lost_region_cost_is_paid_when_it_is_back(scheme: Scheme) -> None:
    rig = build_rig(6)
    rig.topology = topology = Topology(
        Location(store, region=f"r{number // 2}", host=f"h{number}", device=f"d{number}")
        for number, store in enumerate(rig.stores)
    )
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    packs = []
    for size in (10, 5_000, 50_000, 300_000, 3 << 20):
        written = await write(rig, scheme, bytes(size))
        packs.append(written.extent.pack)
        known = await rig.packs.rows.fresh(packs[-1])
        homes = [at.store for at in known.row.places]
        assert survives_any_region(topology, homes, known.layout.real_data_shards)
    owing = [pack for pack in packs if (await rig.index.get((debt_row(pack),)))[0] is not None]
    assert owing
    for pack in owing:
        assert await rig.rewriter.rewrite(pack, Reason.DEBT) is not Rewritten.DONE
    rig.attached.update(away)
    for pack in owing:
        assert await rig.rewriter.rewrite(pack, Reason.DEBT) is Rewritten.DONE
        known = await rig.packs.rows.fresh(pack)
        assert known.row.scheme == scheme
        homes = [at.store for at in known.row.places]
        assert survives_any_region(topology, homes, known.layout.real_data_shards)
        assert (await rig.index.get((debt_row(pack),)))[0] is None


@pytest.mark.virtual
@pytest.mark.parametrize("scheme", [Scheme(1, 1), Scheme(1, 2)])
async def test_a_region_that_hangs_does_not_take_the_other_with_it(scheme: Scheme) -> None:
    rig = build_rig(6)
    rig.topology = Topology(
        Location(store, region=f"r{number // 3}", host=f"h{number}", device=f"d{number}")
        for number, store in enumerate(rig.stores)
    )
    for store in rig.stores[3:]:
        rig.scripts[store].delay_s = (60.0, 60.0)
    for _ in range(5):
        written = await write(rig, scheme, bytes(100_000))
        known = await rig.packs.rows.fresh(written.extent.pack)
        assert {at.store for at in known.row.places} <= set(rig.stores[:3])
