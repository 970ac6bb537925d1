"""Both sites are compared while both go on: what is wrong is found, and nothing else; and it is mended."""

import asyncio
from collections.abc import Callable

import pytest

from holdfast.base.errors import Busy, Unavailable
from holdfast.index.port import Row, Transaction
from holdfast.sites.following import Follower
from holdfast.sites.verifying import Compared, Comparison
from tests.kit.virtual import run_virtual
from tests.simulation.standby_world import ActiveSource, StandbyWorld, all_rows


class Pair:
    """A follower that is started anew when it ends, and comparisons beside it."""

    def __init__(self, world: StandbyWorld) -> None:
        self.world = world
        self.follower: Follower = world.follower()
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await self.follower.run()
            except (Unavailable, Busy):
                self.follower = self.world.follower()
                await self.world.clock.sleep(0.05)

    async def compare(self) -> Compared:
        while True:
            comparison = Comparison(
                ActiveSource(self.world),
                self.world.standby,
                lambda: self.follower.checkpoint,
                self.world.clock,
                page=7,
            )
            try:
                return await comparison.run()
            except Unavailable:
                continue


def change_one(world: StandbyWorld, prefix: bytes, change: Callable[[Row], Transaction]) -> bytes:
    """A row of the standby goes wrong, without anybody having written it."""
    row = next(row for row in all_rows(world.standby_rows) if row.key.startswith(prefix))
    world.damaging = True
    world.standby_rows.apply([change(row)])
    return row.key


WRONG: dict[str, Callable[[StandbyWorld], bytes]] = {
    "another value": lambda world: change_one(
        world, b"share/", lambda row: Transaction((), ((row.key, b"wrong"),))
    ),
    "missing": lambda world: change_one(world, b"share/", lambda row: Transaction((), (), (row.key,))),
    "a part missing": lambda world: change_one(
        world, b"part/", lambda row: Transaction((), (), (row.key,))
    ).rsplit(b"/", 1)[0],
    "too much": lambda world: (
        change_one(world, b"share/", lambda row: Transaction((), ((b"share/too much", b"x"),)))
        and b"share/too much"
    ),
}


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(6))
def test_sites_that_are_alike_are_found_alike_while_they_change(seed: int) -> None:
    async def scenario() -> None:
        world = StandbyWorld(seed, failing=(seed % 2) * 0.005)
        await world.changes(60)
        pair = Pair(world)
        await world.caught_up()
        changing = asyncio.get_running_loop().create_task(world.changes(300))
        for _ in range(4):
            compared = await pair.compare()
            assert not compared.diverged
            assert compared.pages > 5
        changing.cancel()
        pair.task.cancel()

    run_virtual(scenario())


@pytest.mark.virtual
@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("seed", range(3))
def test_what_is_different_is_found_and_mended(seed: int, wrong: str) -> None:
    async def scenario() -> None:
        world = StandbyWorld(seed + 20)
        await world.changes(80)
        pair = Pair(world)
        await world.caught_up()
        group = WRONG[wrong](world)
        compared = await pair.compare()
        assert compared.diverged == [group]
        pair.follower.mend(compared.diverged)
        await world.clock.sleep(5)
        assert (await pair.compare()).diverged == []
        world.damaging = False
        await world.changes(30)  # each state is looked at again from here on
        await world.caught_up()
        pair.task.cancel()

    run_virtual(scenario())
