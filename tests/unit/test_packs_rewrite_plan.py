"""A plan never makes a pack worse, never puts two shards on a store, and comes to what was wanted."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Row
from holdfast.packs.layout import choose_scheme, real_shards
from holdfast.packs.model import DebtReason, DebtRow, PackRow, Place, debt_row
from holdfast.packs.rewrite_plan import Plan, Reason, Step, Target, plan_rewrite
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from holdfast.topology import Location, Topology
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, read_all, write

STORES = [StoreId(f"s{number}") for number in range(10)]
TOPOLOGY = Topology(Location(store, device=store) for store in STORES)
BIG = 4 << 20


def row_of(scheme: Scheme, stores: list[StoreId], stored: int = BIG) -> PackRow:
    shards = real_shards(scheme, stored)
    places = tuple(Place(shard, store, 0) for shard, store in zip(shards, stores, strict=False))
    return PackRow(scheme, stored, 0, stored, places)


def plan(
    row: PackRow,
    target: Target,
    *,
    lost: tuple[int, ...] = (),
    owed: Scheme | None = None,
    candidates: list[StoreId] = STORES,
    in_doubt: bool = False,
) -> Plan:
    return plan_rewrite(row, frozenset(lost), target, owed, candidates, TOPOLOGY, in_doubt=in_doubt)


def test_a_whole_pack_needs_nothing() -> None:
    assert plan(row_of(RS, STORES), Target()).step is Step.NOTHING


def test_what_could_not_be_looked_at_is_looked_at_again() -> None:
    assert plan(row_of(RS, STORES), Target(bad=(1,)), in_doubt=True).step is Step.NOT_NOW


def test_lost_shards_go_to_stores_that_have_none() -> None:
    planned = plan(row_of(RS, STORES), Target(), lost=(1, 5))
    assert planned.step is Step.REPLACE
    assert planned.homes.keys() == {1, 5}
    assert not set(planned.homes.values()) & {STORES[0], *STORES[2:5]}
    assert not planned.copied


def test_with_one_home_for_two_lost_shards_data_comes_first() -> None:
    planned = plan(row_of(RS, STORES), Target(), lost=(1, 5), candidates=STORES[2:5] + STORES[6:7])
    assert planned.homes == {1: STORES[6]}


def test_shards_leave_a_store_that_is_drained_as_copies() -> None:
    planned = plan(row_of(RS, STORES), Target(leave=frozenset(STORES[2:3])))
    assert planned.step is Step.REPLACE
    assert planned.copied == {2}
    assert planned.homes[2] in STORES[6:]


def test_a_drain_waits_without_another_home_unless_a_smaller_scheme_is_allowed() -> None:
    row, leave = row_of(RS, STORES), frozenset(STORES[2:3])
    assert plan(row, Target(leave=leave), candidates=STORES[:6]).step is Step.NOT_NOW
    planned = plan(row, Target(leave=leave, shrink=True), candidates=STORES[:6])
    assert (planned.step, planned.scheme, planned.promised) == (Step.ANEW, Scheme(3, 2), RS)
    assert set(planned.homes.values()) == set(STORES[:6]) - leave


def test_a_pack_gets_its_redundancy_back_with_fewer_stores_in_a_smaller_scheme() -> None:
    row = row_of(RS, STORES)
    assert plan(row, Target(), lost=(0,), candidates=STORES[1:6]).step is Step.NOT_NOW
    planned = plan(row, Target(shrink=True), lost=(0,), candidates=STORES[1:6])
    assert (planned.step, planned.scheme) == (Step.ANEW, Scheme(3, 2))
    # Once there, nothing more can be done with five stores, and a sixth brings it all back.
    smaller = row_of(Scheme(3, 2), STORES[1:6])
    assert plan(smaller, Target(shrink=True), owed=RS, candidates=STORES[1:6]).step is Step.NOT_NOW
    assert plan(smaller, Target(), owed=RS, candidates=STORES[:6]).scheme == RS


def test_a_move_is_made_only_while_it_makes_sense() -> None:
    row = row_of(RS, STORES)
    moved = plan(row, Target(moves=((3, STORES[8]),)))
    assert (moved.step, moved.homes, moved.copied) == (Step.REPLACE, {3: STORES[8]}, {3})
    assert plan(row, Target(moves=((3, STORES[0]),))).step is Step.NOTHING
    assert plan(row, Target(moves=((9, STORES[8]),))).step is Step.NOTHING
    assert plan(row, Target(moves=((3, STORES[8]),)), candidates=STORES[:8]).step is Step.NOTHING
    assert set(plan(row, Target(moves=((3, STORES[8]),)), lost=(0,)).homes) == {0}


@pytest.mark.parametrize(
    ("has", "wanted", "stores", "becomes"),
    [
        (Scheme(4, 2), Scheme(1, 2), 6, Scheme(1, 2)),
        (Scheme(1, 2), Scheme(4, 2), 6, Scheme(4, 2)),
        (Scheme(4, 2), Scheme(7, 3), 10, Scheme(7, 3)),
        (Scheme(7, 3), Scheme(4, 2), 10, Scheme(4, 2)),
        (Scheme(4, 2), Scheme(8, 2), 8, Scheme(6, 2)),
        (Scheme(8, 2), Scheme(4, 2), 5, Scheme(3, 2)),
    ],
)
def test_a_scheme_changes_both_ways(has: Scheme, wanted: Scheme, stores: int, becomes: Scheme) -> None:
    planned = plan(row_of(has, STORES), Target(promised=wanted), candidates=STORES[:stores])
    assert (planned.step, planned.scheme, planned.promised) == (Step.ANEW, becomes, wanted)


def test_a_new_promise_that_cannot_be_kept_yet_goes_on_record() -> None:
    row = row_of(RS, STORES)
    assert plan(row, Target(promised=Scheme(5, 4)), candidates=STORES[:4]).step is Step.OWE
    assert plan(row, Target(promised=Scheme(5, 4)), owed=Scheme(5, 4), candidates=[]).step is Step.NOT_NOW
    assert plan(row, Target(promised=Scheme(8, 2)), candidates=STORES[:6]).step is Step.OWE


def test_a_pack_that_has_what_was_promised_never_shrinks() -> None:
    assert plan(row_of(RS, STORES), Target(promised=RS), candidates=STORES[:5]).step is Step.NOTHING
    assert plan(row_of(RS, STORES), Target(), owed=RS, candidates=STORES[:5]).step is Step.FORGIVE


schemes = st.builds(Scheme, st.integers(1, 6), st.integers(1, 3))
stores = st.lists(st.sampled_from(STORES), unique=True)


@given(
    scheme=schemes,
    stored=st.sampled_from([1, 5000, 9000, BIG]),
    homes=st.permutations(STORES),
    lost=st.sets(st.integers(0, 8)),
    candidates=stores,
    leave=st.frozensets(st.sampled_from(STORES)),
    promised=st.none() | schemes,
    owed=st.none() | schemes,
    moves=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(STORES)), max_size=3),
    shrink=st.booleans(),
)
def test_no_plan_makes_a_pack_worse(
    scheme: Scheme,
    stored: int,
    homes: list[StoreId],
    lost: set[int],
    candidates: list[StoreId],
    leave: frozenset[StoreId],
    promised: Scheme | None,
    owed: Scheme | None,
    moves: list[tuple[int, StoreId]],
    shrink: bool,
) -> None:
    row = row_of(scheme, homes, stored)
    real = real_shards(scheme, stored)
    gone = frozenset(lost & set(real))
    target = Target(promised=promised, leave=leave, moves=tuple(moves), shrink=shrink)
    planned = plan_rewrite(row, gone, target, owed, candidates, TOPOLOGY)
    used = list(planned.homes.values())
    assert len(set(used)) == len(used)
    assert set(used) <= set(candidates) - leave
    assert not planned.copied & gone
    if planned.step is Step.ANEW:
        assert sorted(planned.homes) == real_shards(planned.scheme, stored)
        assert planned.scheme.m == planned.promised.m
        assert planned.scheme.k <= planned.promised.k
    elif planned.step is Step.REPLACE:
        assert planned.scheme == scheme
        assert planned.homes
        stay = [place.store for place in row.places if place.shard not in planned.homes]
        assert not set(stay) & set(used)
        assert set(planned.homes) <= set(real)
    else:
        assert not planned.homes
    # What a plan leads to is a state in which the same plan finds less to do, or nothing.
    if planned.step is Step.ANEW:
        after = row_of(planned.scheme, [planned.homes[shard] for shard in sorted(planned.homes)], stored)
        settled = Target(promised=planned.promised, leave=leave)
        again = plan_rewrite(after, frozenset(), settled, planned.promised, candidates, TOPOLOGY)
        assert again.step in (Step.FORGIVE, Step.NOT_NOW)


@given(schemes, st.integers(1, BIG), st.integers(0, 12))
def test_the_scheme_that_is_chosen_fits_and_keeps_its_redundancy(
    promised: Scheme, stored: int, count: int
) -> None:
    chosen = choose_scheme(promised, stored, count)
    if chosen is None:
        assert count <= promised.m
        return
    assert chosen.m == promised.m
    assert len(real_shards(chosen, stored)) <= count


async def whole(rig: Rig, pack: PackId) -> bool:
    return (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE


@pytest.mark.virtual
@pytest.mark.parametrize("size", [700, 300_000, 3_000_000])
async def test_a_pack_changes_its_scheme_there_and_back_and_reads_the_same(size: int) -> None:
    rig = build_rig(stores=9)
    data = random.Random(3).randbytes(size)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    for scheme in (Scheme(1, 2), Scheme(6, 3), RS):
        assert await rig.rewriter.rewrite(pack, Reason.SCHEME, Target(promised=scheme)) is Rewritten.DONE
        assert (await rig.packs.rows.fresh(pack)).row.scheme == scheme
        assert await read_all(rig, [written.extent]) == data
        assert await whole(rig, pack)
        assert await rig.index.get([debt_row(pack)]) == [None]


@pytest.mark.virtual
async def test_a_drained_store_is_read_only_for_its_own_shards() -> None:
    rig = build_rig(stores=7)
    data = random.Random(3).randbytes(3_000_000)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    known = await rig.packs.rows.fresh(pack)
    leaving = known.places[1].store
    before = {store: rig.health.counts(store).bytes_read for store in rig.stores}
    target = Target(leave=frozenset([leaving]))
    assert await rig.rewriter.rewrite(pack, Reason.DRAIN, target) is Rewritten.DONE
    after = await rig.packs.rows.fresh(pack)
    assert leaving not in after.stores
    new = after.places[1].store
    read = {store for store in rig.stores if rig.health.counts(store).bytes_read > before[store]}
    assert read == {leaving, new}, "the shard was copied and read back, nothing else was read"
    assert await read_all(rig, [written.extent]) == data
    assert await whole(rig, pack)


@pytest.mark.virtual
async def test_a_drained_store_with_a_wrong_shard_costs_a_rebuild_and_nothing_else() -> None:
    rig = build_rig(stores=7)
    data = random.Random(3).randbytes(3_000_000)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    leaving = (await rig.packs.rows.fresh(pack)).places[1].store
    rig.memories[leaving].wipe()
    target = Target(leave=frozenset([leaving]))
    assert await rig.rewriter.rewrite(pack, Reason.DRAIN, target) is Rewritten.DONE
    assert await read_all(rig, [written.extent]) == data
    assert await whole(rig, pack)


@pytest.mark.virtual
async def test_a_store_that_is_gone_for_long_costs_space_and_no_redundancy() -> None:
    rig = build_rig()
    data = random.Random(3).randbytes(3_000_000)
    written = await write(rig, RS, data)
    pack = written.extent.pack
    gone = rig.stores[0]
    away = rig.attached.pop(gone)
    target = Target(gone=frozenset([gone]), shrink=True)
    assert await rig.rewriter.rewrite(pack, Reason.HEAL, target) is Rewritten.DONE
    row = (await rig.packs.rows.fresh(pack)).row
    assert row.scheme == Scheme(3, 2)
    assert gone not in [place.store for place in row.places]
    (owed,) = await rig.index.get([debt_row(pack)])
    assert isinstance(owed, Row)
    debt = msgspec.msgpack.decode(owed.value, type=DebtRow)
    assert (debt.promised, debt.reason) == (RS, DebtReason.STORES_MISSING)
    assert await read_all(rig, [written.extent]) == data
    rig.attached[gone] = away
    assert await rig.rewriter.rewrite(pack, Reason.DEBT) is Rewritten.DONE
    assert (await rig.packs.rows.fresh(pack)).row.scheme == RS
    assert await read_all(rig, [written.extent]) == data
    assert await whole(rig, pack)
