"""One run of several nodes from one seed: clients at all of them, troubles, and in the end the proofs."""

import asyncio
from unittest.mock import patch

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.randomness import SeededRandomness
from tests.simulation.book import Violation
from tests.simulation.clients import SHARED_KEYS
from tests.simulation.cluster_clients import ClusterBook, ClusterClient
from tests.simulation.cluster_faults import ClusterTroubles, IndexFault, MachineFault
from tests.simulation.cluster_loop import run_pausable
from tests.simulation.cluster_operator import ClusterOperator
from tests.simulation.cluster_proofs import prove, until_settled, until_whole
from tests.simulation.cluster_world import ClusterSettings, ClusterWorld, Machine
from tests.simulation.run import BUCKETS, SCRUB_PASS_S, explained, on_its_own

CLIENTS = 4
LAYOUTS = (
    ClusterSettings(machines=3, disks=2, losses=2, scheme="rs-4-2", other_scheme="mirror-3"),
    ClusterSettings(machines=3, disks=1, losses=1, scheme="rs-2-1", other_scheme="mirror-2"),
    ClusterSettings(
        machines=4, disks=1, losses=1, scheme="rs-3-1", other_scheme="mirror-2", inline_bytes_max=200
    ),
)
SCHEMES = (
    ("rs-4-2", "mirror-3", "rs-2-2", "rs-3-2"),
    ("rs-2-1", "mirror-2"),
    ("rs-3-1", "mirror-2", "rs-2-1"),
)
"""What operators change schemes to, by layout."""

COMPACT_EVERY_S = (0.1, 0.5, 3.0)
UNEVEN_BYTES = 50_000
"""What is worth moving: far less than for disks that last for years."""


class Finished(Struct, frozen=True):
    """What a run came to."""

    seed: int
    digest: str
    requests: int
    acknowledged: int
    failed: int
    crashes: int
    landed_late: int
    tried_again: int
    forgotten: int
    troubles: dict[str, int]
    virtual_s: float


def run_cluster_seed(seed: int) -> Finished:
    """Raises SeedFailed."""
    with on_its_own(), patch("holdfast.chores.balance.BEGIN_BYTES", UNEVEN_BYTES):
        return run_pausable(_run(seed))


async def _run(seed: int) -> Finished:
    plan = SeededRandomness(f"{seed}/cluster plan")
    layout = plan.below(len(LAYOUTS))
    every = COMPACT_EVERY_S[plan.below(len(COMPACT_EVERY_S))]
    settings = replace(
        LAYOUTS[layout], compact_every_s=every, scrub_pass_s=SCRUB_PASS_S[plan.below(len(SCRUB_PASS_S))]
    )
    world = ClusterWorld(f"cluster {seed}", settings)
    book, troubles = ClusterBook(), ClusterTroubles(world)
    async with explained(seed, world, "test_cluster_seeds.py"):
        await world.start()
        await make_buckets(world)
        clients = [ClusterClient(world, book, number, BUCKETS) for number in range(CLIENTS)]
        operator = ClusterOperator(world, world.chance("operator"), BUCKETS, SCHEMES[layout], troubles.counts)
        for _ in range(2 + plan.below(2)):
            await _phase(world, troubles, clients, operator, plan)
            await until_settled(world, book)
            await until_whole(world)
            operator.may_lose = True
        await operator.finish()
        await prove(world, book, clients[0], BUCKETS, SHARED_KEYS)
    return finished(seed, world, book, troubles)


def finished(seed: int, world: ClusterWorld, book: ClusterBook, troubles: ClusterTroubles) -> Finished:
    """What a run has come to."""
    return Finished(
        seed,
        world.trace.digest,
        book.requests,
        book.acknowledged,
        sum(bool(one.error) for one in book.answered),
        len(world.crashes),
        world.service.landed_late,
        book.tried_again,
        book.forgotten,
        troubles.counts,
        world.clock.monotonic(),
    )


async def make_buckets(world: ClusterWorld) -> None:
    """Each with a scheme of its own."""
    for bucket, scheme in zip(BUCKETS, (world.cluster.scheme, world.cluster.other_scheme), strict=True):
        await world.call(lambda node, name=bucket, way=scheme: node.objects.create_bucket(name, way))


async def _phase(
    world: ClusterWorld,
    troubles: ClusterTroubles,
    clients: list[ClusterClient],
    operator: ClusterOperator,
    plan: SeededRandomness,
) -> None:
    """Clients at work while one machine, and perhaps the index, has its troubles. Sometimes they fight over
    one key, and a node sleeps meanwhile: what it goes on with afterwards has long been done by another."""
    fight = plan.below(3) == 0
    machine = world.machines[plan.below(len(world.machines))]
    if plan.below(2):
        # Where most is under way: the first to start has all leases.
        machine = next((one for one in world.running if _does_chores(one)), machine)
    todo = []
    length_s = 4.0 + 10.0 * plan.fraction()
    if plan.below(8):
        fault = tuple(MachineFault)[plan.below(len(MachineFault))]
        if fight and plan.below(2):
            fault = MachineFault.STOP
        todo.append(_later(world, plan.fraction(), troubles.machine(machine, fault, plan, length_s)))
    if plan.below(2):
        trouble = tuple(IndexFault)[plan.below(len(IndexFault))]
        todo.append(_later(world, 3 * plan.fraction(), troubles.index(trouble, plan, length_s / 2)))
    if plan.below(3) == 0:
        todo.append(_later(world, plan.fraction(), troubles.weather(length_s)))
    if plan.below(2):
        todo.append(operator.work(1 + plan.below(3), length_s))
    tasks = [asyncio.ensure_future(one) for one in todo]
    requests = 12 + plan.below(16)
    for client in clients:
        client.keys = SHARED_KEYS[:1] if fight else SHARED_KEYS
        client.pause_s = (0.0, 2 * length_s / requests)
    await asyncio.gather(*[client.work(requests) for client in clients])
    await asyncio.gather(*tasks)
    if plan.below(4) == 0:
        # Two at once: nothing that was acknowledged may be gone, though nothing may be served meanwhile.
        machine = world.machines[plan.below(len(world.machines))]
        await machine.crash()
        await machine.start()
    if world.failures:
        raise Violation(f"a task of a node failed: {world.failures[0]!r}") from world.failures[0]
    world.trace.note("healed")


def _does_chores(machine: Machine) -> bool:
    return machine.node is not None and machine.node.chores.is_here("compact")


async def _later(world: ClusterWorld, seconds: float, what) -> None:  # type: ignore[no-untyped-def]
    await world.clock.sleep(seconds)
    await what
