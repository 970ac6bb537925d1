"""One run of a cluster over three regions, far from each other: a region goes, and comes back.

While it is gone, clients in the others write and read; then each of them reads everything that there is,
and is answered: what was acknowledged before survives the region, what is written meanwhile is there, too.
When the region is back, the same proofs hold as for any cluster; and every pack survives the loss of a
region again.
"""

import asyncio
from unittest.mock import patch

from msgspec.structs import replace

from holdfast.base.randomness import SeededRandomness
from holdfast.packs.layout import Layout
from holdfast.packs.rows import decode_row
from holdfast.topology import ANY_REGION, keeps
from tests.simulation.book import Violation
from tests.simulation.clients import SHARED_KEYS
from tests.simulation.cluster_clients import ClusterBook, ClusterClient
from tests.simulation.cluster_faults import ClusterTroubles, RegionFault
from tests.simulation.cluster_loop import run_pausable
from tests.simulation.cluster_proofs import prove, until_settled, until_whole
from tests.simulation.cluster_run import UNEVEN_BYTES, Finished, finished, make_buckets
from tests.simulation.cluster_world import ClusterSettings, ClusterWorld, Machine
from tests.simulation.proofs import scan
from tests.simulation.run import BUCKETS, explained, on_its_own

CLIENTS = 3
OUT_OF_USE_S = 6.0
"""By then everybody has noticed that the region is gone."""

SPREAD_WITHIN_S = 400.0

LAYOUTS = (
    ClusterSettings(machines=3, disks=2, losses=2, scheme="rs-4-2", other_scheme="mirror-3"),
    ClusterSettings(machines=3, disks=1, losses=1, scheme="rs-2-1", other_scheme="mirror-2"),
    ClusterSettings(machines=6, disks=1, losses=2, scheme="rs-4-2", other_scheme="mirror-3"),
    ClusterSettings(machines=3, disks=3, losses=2, scheme="rs-4-2", other_scheme="mirror-3"),
)


def trips(near: float, far: float, across: float) -> tuple[tuple[float, ...], ...]:
    """Between three regions."""
    return ((0.0, near, far), (near, 0.0, across), (far, across, 0.0))


TRIPS_S = (trips(0.030, 0.080, 0.090), trips(0.080, 0.150, 0.200), trips(0.002, 0.150, 0.150))


class RegionClient(ClusterClient):
    """One that goes to certain machines only."""

    among: list[Machine]

    def _machine(self) -> Machine:
        return self.among[self._chance.below(len(self.among))]


def run_region_seed(seed: int) -> Finished:
    """Raises SeedFailed."""
    with on_its_own(), patch("holdfast.chores.balance.BEGIN_BYTES", UNEVEN_BYTES):
        return run_pausable(_run(seed))


async def _run(seed: int) -> Finished:
    plan = SeededRandomness(f"{seed}/regions plan")
    settings = replace(LAYOUTS[plan.below(len(LAYOUTS))], trips_s=TRIPS_S[plan.below(len(TRIPS_S))])
    world = ClusterWorld(f"regions {seed}", settings)
    book, troubles = ClusterBook(), ClusterTroubles(world)
    async with explained(seed, world, "test_cluster_regions.py"):
        await world.start()
        await make_buckets(world)
        clients = [RegionClient(world, book, number, BUCKETS) for number in range(CLIENTS)]
        for client in clients:
            client.among = world.machines
        await _work(clients, plan, 6.0)
        await until_settled(world, book)
        await until_whole(world)
        await _lose_a_region(world, book, troubles, clients, plan)
        await until_settled(world, book)
        await until_whole(world)
        await _until_spread(world)
        world.far = False
        await prove(world, book, clients[0], BUCKETS, SHARED_KEYS)
    return finished(seed, world, book, troubles)


async def _work(clients: list[RegionClient], plan: SeededRandomness, length_s: float) -> None:
    requests = 8 + plan.below(10)
    for client in clients:
        client.pause_s = (0.0, 2 * length_s / requests)
    await asyncio.gather(*[client.work(requests) for client in clients])


async def _lose_a_region(
    world: ClusterWorld,
    book: ClusterBook,
    troubles: ClusterTroubles,
    clients: list[RegionClient],
    plan: SeededRandomness,
) -> None:
    # The index is the simulation's own, and its loss is no matter here: any region may go.
    region = plan.below(3)
    others = [machine for machine in world.machines if world.region(machine.name) != region]
    at_work = asyncio.ensure_future(_work(clients, plan, 3.0))
    await world.clock.sleep(0.5 + plan.fraction())
    disks = [slot for machine in others for slot in machine.slots]
    late = disks[plan.below(len(disks))]
    if plan.below(3):
        # What is acknowledged without this disk has to survive the region all the same.
        world.trace.note("hangs", late.memory.id)
        late.script.hang = True
        await world.clock.sleep(1.2 * plan.fraction())
    await troubles.lose(region, tuple(RegionFault)[plan.below(len(RegionFault))])
    for client in clients:
        client.among = others
    await world.clock.sleep(1.0)
    late.script.hang = False
    await at_work
    await world.clock.sleep(OUT_OF_USE_S)
    failed = len([one for one in book.answered if one.error])
    names = {key.partition("/")[2] for key in book.histories} | set(SHARED_KEYS)
    for client in clients:
        for bucket in BUCKETS:
            for name in sorted(names - {""}):
                await client.read_all(bucket, name)
    if more := [one for one in book.answered if one.error][failed:]:
        raise Violation(f"with a region gone, {len(more)} reads were not answered: {more[0]}")
    await _work(clients, plan, 4.0)
    await world.clock.sleep(30.0 * plan.below(3))
    await troubles.return_(region)
    for client in clients:
        client.among = world.machines
    if world.failures:
        raise Violation(f"a task of a node failed: {world.failures[0]!r}") from world.failures[0]


async def _until_spread(world: ClusterWorld) -> None:
    """Wait until every pack that can survives the loss of any region."""
    deadline = world.clock.monotonic() + SPREAD_WITHIN_S
    dense: list[str] = []
    while world.clock.monotonic() < deadline:
        topology = world.node.topology()
        dense = []
        for row in scan(world, b"pack/"):
            pack = decode_row(row.value)
            needed = Layout(pack.scheme.k, pack.stored_bytes).real_data_shards
            homes = [place.store for place in pack.places]
            if pack.scheme.m and not keeps(topology, (ANY_REGION,), homes, needed):
                dense.append(row.key.decode())
        if not dense:
            return
        await world.clock.sleep(5.0)
    raise Violation(f"{len(dense)} packs do not survive the loss of a region: {dense[:3]}")
