"""A deletion that was acknowledged has deleted, whatever it met on its way."""

import asyncio

import pytest

from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory.index import MemoryIndex
from holdfast.objects.errors import NoSuchKey, PreconditionFailed
from holdfast.objects.model import Conditions
from holdfast.objects.settings import ObjectsLimits
from tests.kit.memory_packs import MemoryPacks
from tests.kit.objects import Desk
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

LIMITS = ObjectsLimits(hashing_threads=0, part_bytes_min=1)


@pytest.mark.parametrize("late_s", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003])
async def test_a_deletion_beside_a_conditional_write_comes_after_it_or_makes_it_fail(late_s: float) -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock, commit_delay_s=0.002)
    desk = Desk(clock, index=index, packs=MemoryPacks(index, SeededRandomness(1)), limits=LIMITS)
    await desk.bucket()
    first = await desk.put("key", b"first")

    async def replace() -> bool:
        try:
            await desk.put("key", b"second", Conditions(if_match=(first.etag,)))
        except (PreconditionFailed, NoSuchKey):
            return False
        return True

    async def delete() -> None:
        await clock.sleep(late_s)
        await desk.delete("key")

    replaced, _ = await asyncio.gather(replace(), delete())
    assert await desk.rows(b"head/") == [], f"deleted, and there although replaced is {replaced}"
    await desk.audit()
