"""What no row names is found and removed; what somebody may still come for is not."""

import pytest

from holdfast.chores.collect import Sweep
from holdfast.chores.strays import STRAY_AGE_S, WALK_EVERY_S, FindStrays
from holdfast.index.port import Committed, Conflict
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import ManifestEntry, Written
from holdfast.packs.quorum import Attempt
from holdfast.packs.verifying import PackHealth
from holdfast.packs.writing import encode
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, read_all, write

pytestmark = pytest.mark.virtual

BODY = bytes(range(256)) * 400


async def blobs(rig: Rig) -> int:
    return sum([len(await memory.list("", limit=10_000, timeout_s=1)) for memory in rig.memories.values()])


async def graves(rig: Rig) -> int:
    return len(await rig.index.scan(b"buried/", b"buried0", limit=100))


async def uncommitted(rig: Rig) -> Written:
    """As of an upload that is under way, or of a node that crashed."""
    return await rig.packs.write(RS, [BODY], lambda e: [ManifestEntry("b", "k", "v", 0, e.length)])


async def live(rig: Rig, seconds: float, *chores: FindStrays | Sweep) -> None:
    """Let the chores work, with hours between."""
    until = rig.clock.monotonic() + seconds
    while rig.clock.monotonic() < until:
        for chore in chores:
            while await chore.step():
                pass
        await rig.clock.sleep(WALK_EVERY_S / 2)


def start(rig: Rig) -> tuple[FindStrays, Sweep]:
    strays = FindStrays(rig.attached, rig.index, rig.clock)
    return strays, Sweep(Disposal(rig.attached, rig.index, is_awaited=strays.is_awaited))


async def test_orphans_go_after_a_day_and_nothing_else_does() -> None:
    rig = build_rig()
    kept = await write(rig, RS, BODY)
    await uncommitted(rig)
    chores = start(rig)
    await live(rig, STRAY_AGE_S - WALK_EVERY_S, *chores)
    assert await blobs(rig) == 12
    await live(rig, 3 * WALK_EVERY_S, *chores)
    assert await blobs(rig) == 6
    assert chores[0].found == 6
    assert await read_all(rig, [kept.extent]) == BODY


async def test_a_writer_that_comes_after_its_pack_was_buried_is_turned_away() -> None:
    rig = build_rig()
    written = await uncommitted(rig)
    chores = start(rig)
    await live(rig, STRAY_AGE_S + 3 * WALK_EVERY_S, *chores)
    assert await blobs(rig) == 0
    (outcome,) = await rig.index.commit(written.transactions)
    assert isinstance(outcome, Conflict)


async def test_a_writer_that_comes_in_time_keeps_its_pack() -> None:
    rig = build_rig()
    written = await uncommitted(rig)
    chores = start(rig)
    await live(rig, STRAY_AGE_S - WALK_EVERY_S, *chores)
    (outcome,) = await rig.index.commit(written.transactions)
    assert isinstance(outcome, Committed)
    await live(rig, 2 * STRAY_AGE_S, *chores)
    assert await read_all(rig, [written.extent]) == BODY


async def test_graves_that_wait_for_writers_end_with_the_process() -> None:
    rig = build_rig()
    await uncommitted(rig)
    await live(rig, STRAY_AGE_S + 3 * WALK_EVERY_S, *start(rig))
    assert await graves(rig) == 1
    await live(rig, WALK_EVERY_S, *start(rig))
    assert await graves(rig) == 0


async def test_a_stray_beside_a_pack_that_lives_goes_alone() -> None:
    rig = build_rig(7)
    written = await write(rig, RS, BODY)
    known = await rig.packs.rows.fresh(written.extent.pack)
    (free,) = set(rig.stores) - {place.store for place in known.row.places}
    stripe = (await rig.packs.reader.stripes(known, 0, 1))[0]
    encoded = await encode(RS, [stripe], known.row.stored_bytes, rig.clock)
    await rig.packs.writer.put_shard(known.pack, known.row, encoded, Attempt(2, free, 77))
    assert await blobs(rig) == 7
    await live(rig, STRAY_AGE_S + 3 * WALK_EVERY_S, *start(rig))
    assert await blobs(rig) == 6
    assert (await rig.verifier.verify(await rig.packs.rows.fresh(known.pack))).state is PackHealth.WHOLE


async def test_a_store_that_does_not_answer_is_passed_over() -> None:
    rig = build_rig()
    await uncommitted(rig)
    rig.scripts[rig.stores[0]].vanished = True
    chores = start(rig)
    await live(rig, STRAY_AGE_S + 3 * WALK_EVERY_S, *chores)
    assert await blobs(rig) == 1
    rig.scripts[rig.stores[0]].vanished = False
    await live(rig, STRAY_AGE_S + 3 * WALK_EVERY_S, *chores)
    assert await blobs(rig) == 0
