"""Stores that seem to be lost and are not: disks not mounted yet, cables that are out for a minute."""

import shutil
from pathlib import Path

import pytest

from holdfast.base.errors import Fenced
from holdfast.base.ids import StoreId
from holdfast.node.changing import Changes
from holdfast.node.housekeeping import SPARE_PATIENCE_S, Housekeeping
from tests.unit.test_node_changing import made
from tests.unit.test_node_keeper import CLOCK, configured, is_well, running


async def test_a_start_before_the_disks_are_mounted_does_not_cost_the_disks(tmp_path: Path) -> None:
    """A machine starts, and the node is quicker than its mounts: below the mount points are empty folders."""
    stores = [made(tmp_path / name) for name in ("a", "b", "c", "d", "e", "f")]
    config = configured(tmp_path, *stores)
    async with running(config) as house:
        ids = {slot: house.id(slot) for slot in house.keeper.held}
        await house.keeper.note("it", 5)
    disks = tmp_path / "disks"
    disks.mkdir()
    for store in stores:
        store.rename(disks / store.name)
        store.mkdir()
    with pytest.raises(Fenced, match="Are the disks mounted"):
        async with running(config):
            pass
    # Now they are mounted.
    for store in stores:
        shutil.rmtree(store)
        (disks / store.name).rename(store)
    async with running(config) as house:
        assert all(is_well(state) for state in house.states().values()), house.states()
        assert {slot: house.id(slot) for slot in house.keeper.held} == ids


async def test_a_replaced_store_that_is_away_for_a_minute_is_not_given_up_while_it_is_needed(
    tmp_path: Path,
) -> None:
    """It holds the only other shard of a pack (here nobody even asks): a cable that is out for 61 s."""
    config = configured(tmp_path)
    async with running(config) as house:
        changes = Changes(house.keeper, CLOCK)
        old = house.id("disk2")
        await house.store("disk2").put("aa.0.0", [b"the only one"], timeout_s=60)
        assert await changes.replace("disk2", made(tmp_path / "two")) == "disk2-old"
        (tmp_path / "data" / "disk2").rename(tmp_path / "unplugged")
        await house.rounds()
        CLOCK.ahead_s += SPARE_PATIENCE_S + 1

        async def is_needed(store: StoreId) -> bool:
            return store == old

        keeping = Housekeeping(
            house.keeper,
            house.health,
            changes,
            lambda _: False,
            CLOCK,
            house.told.append,
            is_needed=is_needed,
        )
        await keeping.step()
        (tmp_path / "unplugged").rename(tmp_path / "data" / "disk2")
        await house.rounds()
        assert not house.keeper.is_gone(old)
        assert old in house.keeper.attached
