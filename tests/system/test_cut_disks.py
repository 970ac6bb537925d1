"""Drills 11 and 12: the power is cut under load, and all disks of a node at once lose what was not synced.

Whatever was acknowledged is there, byte for byte; nothing is there that nobody wrote; and the node comes back
by itself. On real file systems that are shut down, where that can be had, and on a recording of what was
synced, which is harder (`tests/kit/power.py`): one says that Holdfast and a file system understand each
other, the other that nothing rests on a sync that happened to take something else along.
"""

import asyncio
import os
import random
from functools import partial
from pathlib import Path

import pytest

from tests.kit.drill import Drill, DrillNode, Load
from tests.kit.power import Ext4Disks, Recording, power_of

pytestmark = pytest.mark.slow

CUTS = int(os.environ.get("HOLDFAST_CUTS", "2"))
RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "40"))


@pytest.mark.parametrize("way", [Ext4Disks.name, Recording.name])
async def test_power_cuts_with_unsynced_data_lost_on_all_disks(tmp_path: Path, way: str) -> None:
    chance = random.Random(f"cut {way}")
    with (
        power_of(tmp_path, way, chance) as power,
        DrillNode(tmp_path, power.environment, power.prefix) as node,
    ):
        load = Load(node.ask, rate=RATE, seed=way)
        await load.begin()
        for number in range(CUTS):
            drill = Drill(node, load, seconds=0.2 + chance.random())
            outcome = await drill.cut(f"12 power cut {number}, {power.name}", partial(power.cut, node))
            outcome.check()
        assert power.taken > 0, "nothing was lost that was not synced: what was drilled?"
        assert await asyncio.to_thread(node.stop) == 0


async def test_a_node_whose_syncs_do_nothing_loses_what_it_acknowledged(tmp_path: Path) -> None:
    """Else the drill would prove nothing."""
    power = Recording(tmp_path, random.Random(12), unsynced=True)
    with DrillNode(tmp_path, power.environment) as node:
        load = Load(node.ask, rate=RATE, seed="unsynced")
        await load.begin()
        power.cut(node)
        try:
            await asyncio.to_thread(node.start)
        except AssertionError as error:
            assert "instead of serving" in str(error)  # noqa: PT017
        else:
            assert await load.read_back() != []
