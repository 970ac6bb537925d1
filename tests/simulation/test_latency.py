"""Losing up to m stores is no reason to fail a request, or to take longer than 250 ms for it.

Stores vanish, hang, become slow, full, old or wrong, under clients that go on as if nothing were. Times are
those of the virtual clock, without what the client itself takes to send its body.
"""

import asyncio

import pytest

from holdfast.base.randomness import SeededRandomness
from tests.kit.virtual import run_virtual
from tests.simulation.book import Answered, Book
from tests.simulation.faults import DiskFault, Troubles, after, end
from tests.simulation.proofs import until_whole
from tests.simulation.run import LAYOUTS, begin_clients
from tests.simulation.world import World

LIMIT_S = 0.250
ROUNDS = 3
LARGE = 1 << 20
FAULTS = tuple(DiskFault)


async def _lose_stores(seed: int) -> list[Answered]:
    plan = SeededRandomness(f"{seed}/latency")
    world = World(f"latency {seed}", LAYOUTS[seed % len(LAYOUTS)])
    book, troubles = Book(), Troubles(world)
    clients = await begin_clients(world, book)
    for client in clients:
        client.bytes_max = LARGE
    for _ in range(ROUNDS):
        for client in clients:
            client.pause_s = (0.0, 0.1)
        slots = list(world.slots)
        losses = []
        for _ in range(1 + plan.below(world.settings.losses)):
            slot, fault = slots.pop(plan.below(len(slots))), FAULTS[plan.below(len(FAULTS))]
            losses.append(
                after(world, 2.0 * plan.fraction(), lambda s=slot, f=fault: troubles.disk(s, f, plan))
            )
        await asyncio.gather(*[client.work(60) for client in clients], *losses)
        for slot in world.slots:
            end(slot)
        await until_whole(world)
    book.check()
    assert not world.failures
    await world.stop()
    return book.answered


@pytest.mark.parametrize("seed", range(1, 9))
def test_losing_stores_fails_nothing_and_delays_little(seed: int) -> None:
    answered = run_virtual(_lose_stores(seed))
    assert [one for one in answered if one.error] == []
    late = sorted((one for one in answered if one.took_s > LIMIT_S), key=lambda one: -one.took_s)
    assert late == []
