"""Several nodes commit, the journal is written by whoever has the lease, and then the whole index is gone.

All machines lose their power in the middle of it, and some stores do not come back. What must hold: the
journal has the commits of all nodes, in the order in which they were decided, so that what it makes is what
the rows were at the revision at which it ends, and that was a moment ago; and nodes that go on with what
recovery made of it find every pack whole, clean up what was under way, and keep a journal of the new index.
"""

import asyncio
from collections.abc import Mapping
from unittest.mock import patch

import pytest

from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.lease import TTL_S
from holdfast.cluster.rows import BEATS, FENCES
from holdfast.index.memory import MemoryRows
from holdfast.index.port import Row, lease_row
from holdfast.packs.named import find_names
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, encode_lineage
from holdfast.recovery.loading import load, newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.recovery.scratch import Scratch
from holdfast.stores.port import Store
from tests.kit.recovery_world import recover_from
from tests.simulation.cluster_clients import ClusterBook, ClusterClient
from tests.simulation.cluster_loop import run_pausable
from tests.simulation.cluster_proofs import check_shards, until_kept, until_tidy, until_whole
from tests.simulation.cluster_run import CLIENTS, LAYOUTS, UNEVEN_BYTES, make_buckets
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.run import BUCKETS, on_its_own

LIVES = 4
BEHIND_S = 4.0
"""A journal piece is written each second."""
HEIR_S = TTL_S + BEHIND_S
"""Where the node that wrote it has died: nobody does until its lease is over."""
REQUESTS = 400


def rows_at(rows: MemoryRows, revision: int) -> dict[bytes, Row]:
    """All rows as they were, from all commits that were ever decided."""
    found: dict[bytes, Row] = {}
    for change in rows.changes(0, revision):
        found |= {key: Row(key, value, change.revision) for key, value in change.puts}
        for key in change.deletes:
            found.pop(key, None)
    return found


async def work_until_all_is_lost(
    world: ClusterWorld, plan: SeededRandomness
) -> tuple[list[tuple[float, int]], float]:
    """Clients at all nodes, one of which may die and come again; then all of them do. When the index was at
    which revision, and how far the journal may be behind it."""
    book = ClusterBook()
    clients = [ClusterClient(world, book, number, BUCKETS) for number in range(CLIENTS)]
    for client in clients:
        client.pause_s = (0.0, 0.2)
    working = [asyncio.ensure_future(client.work(REQUESTS)) for client in clients]
    seen = []
    length_s = 8.0 + 10.0 * plan.fraction()
    dies_at = 3.0 + (length_s - 3.0) * plan.fraction() if plan.below(2) else -1.0
    behind_s = BEHIND_S
    begun = world.clock.monotonic()
    while (now := world.clock.monotonic() - begun) < length_s:
        seen.append((world.clock.monotonic(), world.rows.revision))
        await world.clock.sleep(0.1)
        if 0 <= dies_at <= now:
            dies_at, behind_s = -1.0, HEIR_S
            machine = world.machines[plan.below(len(world.machines))]
            await machine.crash()
            await machine.start()
    for machine in world.machines:
        await machine.crash()
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    return seen, behind_s


def left(world: ClusterWorld, plan: SeededRandomness) -> dict[StoreId, Store]:
    """The stores, but for as many as may be lost."""
    stores: dict[StoreId, Store] = {slot.memory.id: slot.memory for slot in world.slots}
    for _ in range(plan.below(world.cluster.losses + 1)):
        stores.pop(sorted(stores)[plan.below(len(stores))])
    return stores


async def journaled(stores: Mapping[StoreId, Store]) -> tuple[int, dict[bytes, Row]]:
    """The revision at which the journal ends, and the rows that it makes."""
    scratch = Scratch(None)
    try:
        names = await find_names(stores, PREFIX)
        loaded = await load(stores, names, newest_lineage(names, ""), scratch, lambda _: None)
        assert loaded.gap == ""
        return loaded.revision, {row.key: row for row in scratch.scan(b"")}
    finally:
        scratch.close()


def take_over(world: ClusterWorld, rows: MemoryRows) -> None:
    """The new index, without what tells of processes."""
    ours: dict[bytes, Row] = {
        key: row for key, row in rows._rows.items() if not key.startswith((BEATS, FENCES, lease_row("")))
    }
    lineage = LineageRow(FORMAT, 1, (world.rows.incarnation,), 0)
    ours[LINEAGE_ROW] = Row(LINEAGE_ROW, encode_lineage(lineage), rows.revision)
    now = world.rows
    now.incarnation, now.revision = rows.incarnation, rows.revision
    now._rows, now._keys = dict(ours), sorted(ours)
    now._changes.clear()
    world.service._leases.clear()


def check_objects(lost: MemoryRows, revision: int, now: MemoryRows) -> None:
    """No object is another than it was when the journal ended, but where somebody wrote it after that."""
    before, after = rows_at(lost, revision), rows_at(lost, lost.revision)
    heads = [key for key in {*before, *now._rows} if key.startswith((b"head/", b"bucket/"))]
    assert heads
    for key in heads:
        if now.get(key) != before.get(key):
            assert key in after, key
            assert after[key].revision > revision, key


async def one_life(seed: int, *, goes_on: bool) -> None:
    plan = SeededRandomness(f"{seed}/lost index")
    world = ClusterWorld(f"lost index {seed}", LAYOUTS[seed % len(LAYOUTS)])
    try:
        await world.start()
        await make_buckets(world)
        seen, behind_s = await work_until_all_is_lost(world, plan)
        lost_at = world.clock.monotonic()
        # What is still on its way to the old index is decided there, and seen by nobody.
        while world.service.held or world.service._under_way:
            await world.clock.sleep(1.0)
        stores = left(world, plan)
        revision, found = await journaled(stores)
        assert found == rows_at(world.rows, revision)
        least = max((before for at, before in seen if at <= lost_at - behind_s), default=0)
        assert revision >= least, "the journal was further behind than it may be"
        if not goes_on:
            return
        again = await recover_from(stores, plan)
        assert (again.surveyed.short, again.applied.incomplete) == ([], [])
        check_objects(world.rows, revision, again.rows)
        take_over(world, again.rows)
        for machine in world.machines:
            await machine.start()
        await until_whole(world)
        await until_tidy(world)
        await until_kept(world)
        check_shards(world)
        assert not world.failures
    finally:
        world.trace.close()
        await world.stop()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(LIVES))
def test_all_that_the_nodes_of_a_cluster_committed_is_made_again(seed: int) -> None:
    with on_its_own(), patch("holdfast.chores.balance.BEGIN_BYTES", UNEVEN_BYTES):
        run_pausable(one_life(seed, goes_on=seed == 0))
