"""Silent corruption of what an index is made again from, by the book: every region of the shard files of
journal and snapshots, every harm, in one store, in as many as the scheme can lose, and in all of them.

What is promised: the same rows with the same revisions, and what was spoiled is whole again once it was
looked at; beyond the promise rows of a moment that there was, with what is missing said, and never a mix.
"""

import asyncio
import random

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.packs.format import decode_header
from tests.kit.harm import Harm, harmed
from tests.kit.kept import RS, Kept, delete, put
from tests.kit.regions import shard_regions

pytestmark = pytest.mark.virtual

Medium = dict[StoreId, dict[str, bytes]]


async def kept_history() -> Kept:
    """Two snapshots, and a journal behind them."""
    kept, chance = Kept(), random.Random(1)
    while kept.snapshots.made < 2:
        for _ in range(10):
            key = f"head/b/{chance.randrange(30)}"
            changed = delete(key) if chance.random() < 0.3 else put(key, chance.randbytes(150))
            await kept.commit(changed)
        await kept.run_all()
    await kept.commit(put("last", b"journaled"))
    await kept.run_all()
    await asyncio.sleep(1)
    return kept


def medium_of(kept: Kept) -> Medium:
    return {store: memory.medium for store, memory in kept.rig.memories.items()}


def put_back(kept: Kept, medium: Medium) -> None:
    for store, memory in kept.rig.memories.items():
        memory.wipe()
        for name, content in medium[store].items():
            memory.spoil(name, content)


def harm_to(
    kept: Kept, medium: Medium, harm: Harm, turn: int, stores: list[StoreId], *, step: int = 1
) -> None:
    """One region of every shard of these stores, `step` regions on from one shard to the next."""
    for store in stores:
        for number, (name, content) in enumerate(sorted(medium[store].items())):
            regions = shard_regions(decode_header(content, name).layout.blocks)
            region = regions[(turn + step * number) % len(regions)]
            other = next(iter(medium[store].values()))
            kept.rig.memories[store].spoil(name, harmed(content, harm, region.start, region.end, other))


async def tend(kept: Kept) -> None:
    """As the chore does it: read all of it now."""
    kept.upkeep.look_now()
    assert kept.upkeep.left_to_read
    while kept.upkeep.left_to_read:
        try:
            await kept.upkeep.step()
        except HoldfastError:
            continue  # told, and the next one comes


@pytest.mark.parametrize("count", [1, RS.m])
async def test_journal_and_snapshots_spoiled_in_up_to_m_stores_are_read_right_and_mended(count: int) -> None:
    kept = await kept_history()
    medium = medium_of(kept)
    regions = len(shard_regions(1))
    for harm in Harm:
        for turn in range(0, regions, 3 if harm in (Harm.FLIP, Harm.ZERO, Harm.TRUNCATE) else regions):
            put_back(kept, medium)
            stores = [kept.rig.stores[(turn + step) % 6] for step in range(count)]
            harm_to(kept, medium, harm, turn, stores)
            loaded, rows = await kept.loaded()
            assert (loaded.revision, rows, loaded.gap) == (kept.rows.revision, kept.now(), ""), (harm, turn)
            await tend(kept)
            assert not kept.upkeep.lost
            # Whatever else is lost now: nothing leans on what was spoiled.
            others = [store for store in kept.rig.stores if store not in stores][: RS.m]
            gone = {store: kept.rig.attached.pop(store) for store in others}
            loaded, rows = await kept.loaded()
            assert (loaded.revision, rows, loaded.gap) == (kept.rows.revision, kept.now(), ""), (harm, turn)
            kept.rig.attached.update(gone)


async def test_spoiled_in_all_stores_it_is_said_and_no_row_is_made_up() -> None:
    kept = await kept_history()
    medium = medium_of(kept)
    said = 0
    for harm in Harm:
        for turn in range(len(shard_regions(1))):
            put_back(kept, medium)
            harm_to(kept, medium, harm, turn, kept.rig.stores, step=0)
            try:
                loaded, rows = await kept.loaded()
            except HoldfastError as error:
                told, moment = str(error), None
            else:
                told, moment = loaded.gap, loaded.revision
                assert rows == kept.states[moment]
            assert told or moment == kept.rows.revision, (harm, turn)
            said += bool(told)
    assert said > 10
