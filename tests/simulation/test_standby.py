"""A standby is, once it is whole, at each moment a state that the active had.

That holds whatever fails, and wherever its process ends. `HOLDFAST_STANDBY_SEEDS` says how many seeds are
run.
"""

import asyncio
import os
from collections.abc import Coroutine

import pytest

from holdfast.base.errors import Fenced
from holdfast.index.memory.index import Fault, Mishap
from holdfast.index.port import Transaction
from holdfast.sites.rows import STATE_ROW
from tests.kit.virtual import run_virtual
from tests.simulation.standby_world import StandbyWorld, all_rows, state_of

SEEDS = int(os.environ.get("HOLDFAST_STANDBY_SEEDS", "45"))
CHUNK = 15


async def beside(world: StandbyWorld, work: Coroutine[None, None, None]) -> None:
    """`work`, while the standby follows; then until it has all of it."""
    following = asyncio.get_running_loop().create_task(world.follow())
    try:
        await work
        await world.caught_up()
    finally:
        assert not following.done() or following.result() is None
        following.cancel()


async def busy(world: StandbyWorld, seconds: float) -> None:
    end = world.clock.monotonic() + seconds
    while world.clock.monotonic() < end:
        await world.changes(world.random.randint(1, 6))
        if world.random.random() < 0.2:
            world.standby.faults.append(
                Fault(world.random.choice(list(Mishap)), world.random.uniform(0, 0.3))
            )
        if world.random.random() < 0.1:
            world.crash_at = world.calls + world.random.randint(1, 30)
        await world.clock.sleep(world.random.uniform(0, 0.3))


async def all_of_it(seed: int) -> StandbyWorld:
    world = StandbyWorld(seed, failing=(seed % 3) * 0.01)
    await world.changes(world.random.randint(0, 60))
    await beside(world, busy(world, 10))
    return world


@pytest.mark.virtual
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_a_standby_is_what_the_active_was(first: int) -> None:
    seeds = range(first, min(first + CHUNK, SEEDS))
    checks = sum(run_virtual(all_of_it(seed)).checks for seed in seeds)
    assert checks > 20 * len(seeds), "it was whole long enough to be looked at"


async def crashed_at(call: int) -> bool:
    """A follower whose process ends at its call number `call`, and its successor; whether it came to that."""
    world = StandbyWorld(3, page=5)
    await world.changes(40)
    world.crash_at = call
    await beside(world, world.changes(25))
    return world.calls >= call


@pytest.mark.virtual
def test_a_crash_at_any_call_is_gone_on_from() -> None:
    call = 1
    while run_virtual(crashed_at(call)) and call < 400:
        call += 3
    assert call > 100, "it was to be all the way"


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(5))
def test_a_feed_that_was_cut_is_made_up_for_by_comparing(seed: int) -> None:
    async def scenario() -> None:
        world = StandbyWorld(seed, changes_max=40)
        await world.changes(30)
        await beside(world, world.changes(10))
        before = set(world.seen)
        await world.changes(150)  # nobody follows, and the feed forgets
        await beside(world, world.changes(20))
        new = world.seen - before
        assert new
        assert min(new) > max(before) + 100, "it was no state of the active until it had compared all"

    run_virtual(scenario())


@pytest.mark.virtual
def test_an_index_of_another_incarnation_is_compared_whole() -> None:
    async def scenario() -> None:
        world = StandbyWorld(7)
        await world.changes(60)
        await beside(world, world.changes(10))
        landed = set(world.landed)
        world.active_rows.incarnation = "made again"
        world.landed.clear()
        await beside(world, world.changes(3))
        assert not landed & set(world.landed), "packs that are here are not copied again"

    run_virtual(scenario())


@pytest.mark.virtual
@pytest.mark.parametrize("mishap", [Mishap.APPLIED_LATER, Mishap.APPLIED, Mishap.NOT_APPLIED])
def test_a_site_that_serves_takes_nothing_more(mishap: Mishap) -> None:
    async def scenario() -> None:
        world = StandbyWorld(4)
        await world.changes(40)
        await beside(world, world.changes(5))
        following = asyncio.get_running_loop().create_task(world.follower().run())
        await world.clock.sleep(3)
        await world.changes(5)
        world.standby.faults.append(Fault(mishap, 2.0))
        await world.clock.sleep(0.3)
        world.standby_rows.apply([Transaction((), ((STATE_ROW, b"active"),))])
        served = state_of(all_rows(world.standby_rows))
        await world.changes(20)
        await world.clock.sleep(5)
        with pytest.raises(Fenced):
            await following
        assert state_of(all_rows(world.standby_rows)) == served

    run_virtual(scenario())


@pytest.mark.virtual
def test_how_far_behind_it_is() -> None:
    async def scenario() -> None:
        world = StandbyWorld(5)
        await world.changes(30)
        follower = world.follower()
        following = asyncio.get_running_loop().create_task(follower.run())
        assert follower.caught_up is None
        await world.caught_up()
        await world.clock.sleep(5)
        assert follower.caught_up is not None
        assert world.clock.aging() - follower.caught_up < 2
        world.failing = 1.0  # the connection is gone
        await world.changes(20)
        await world.clock.sleep(30)
        assert world.clock.aging() - follower.caught_up > 25
        following.cancel()

    run_virtual(scenario())


@pytest.mark.virtual
def test_packs_are_copied_side_by_side() -> None:
    async def scenario() -> None:
        world = StandbyWorld(6)
        following = asyncio.get_running_loop().create_task(world.follow())
        await world.caught_up()
        await world.changes(200)
        await world.caught_up()
        following.cancel()
        assert world.landing_most > 1, "each before its row: the world looks at every commit"

    run_virtual(scenario())


@pytest.mark.virtual
def test_only_one_follows() -> None:
    async def scenario() -> None:
        world = StandbyWorld(8)
        await world.changes(30)
        one = asyncio.get_running_loop().create_task(world.follow())
        other = asyncio.get_running_loop().create_task(world.follow())
        await world.changes(100)
        await world.caught_up()
        one.cancel()
        other.cancel()

    run_virtual(scenario())
