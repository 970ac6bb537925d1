"""A named pack is found and read by what lies on the stores alone, whatever m of them do."""

import asyncio
from itertools import combinations

import pytest

from holdfast.base.errors import Damaged, Unavailable
from holdfast.base.ids import StoreId, parse_shard_name
from holdfast.chores.strays import STRAY_AGE_S, WALK_EVERY_S, FindStrays
from holdfast.packs.named import Missing, NamedPacks, Tended, find_names, parse_named_shard
from holdfast.scheme import Scheme
from holdfast.stores.port import Range
from tests.kit.rig import Rig, build_rig

RS = Scheme(4, 2)
pytestmark = pytest.mark.virtual


def named(rig: Rig, scheme: Scheme = RS) -> NamedPacks:
    topology = rig.packs.writer._topology
    return NamedPacks(rig.attached, topology, rig.health, rig.clock, rig.randomness, lambda: scheme)


def blobs(rig: Rig) -> dict[StoreId, set[str]]:
    return {store: set(memory._blobs) for store, memory in rig.memories.items()}


@pytest.mark.parametrize("length", [1, 4096, 40_000, 3_000_000])
async def test_a_name_reads_back_from_any_stores_but_m(length: int) -> None:
    rig = build_rig()
    packs = named(rig)
    data = rig.randomness.token(length)
    await packs.write("index-a", [data[: length // 2], data[length // 2 :]])
    await asyncio.sleep(1)
    for lost in combinations(rig.stores, 2):
        gone = {store: rig.attached.pop(store) for store in lost}
        assert await packs.read("index-a") == data
        assert await packs.check("index-a") == data
        rig.attached.update(gone)


async def test_with_too_few_shards_it_says_so_and_guesses_nothing() -> None:
    rig = build_rig()
    packs = named(rig)
    await packs.write("index-a", [rig.randomness.token(60_000)])
    await asyncio.sleep(1)
    for store in rig.stores[:3]:
        rig.attached.pop(store)
    with pytest.raises(Unavailable, match="needs 4 shards and has 3"):
        await packs.read("index-a")
    with pytest.raises(Missing):
        await packs.read("index-b")
    rig.attached.clear()
    with pytest.raises(Unavailable, match="No store can be listed"):
        await packs.read("index-a")


async def test_names_are_listed_by_their_beginning_and_removed_one_by_one() -> None:
    rig = build_rig()
    packs = named(rig)
    for name in ("index-a", "index-ab", "index-b", "ledger-a"):
        await packs.write(name, [name.encode()])
    assert await packs.list("index-") == ["index-a", "index-ab", "index-b"]
    assert await packs.list("index-a") == ["index-a", "index-ab"]
    assert await packs.remove("index-a") == 3
    assert await packs.list("") == ["index-ab", "index-b", "ledger-a"]
    assert await packs.read("index-ab") == b"index-ab"


async def test_more_names_than_a_page_are_listed() -> None:
    rig = build_rig(latency_s=(0.0, 0.0001))
    packs = named(rig, Scheme(1, 5))
    wanted = [f"index-{number:04d}" for number in range(510)]
    for name in wanted:
        await packs.write(name, [b"x"])
    assert await packs.list("index-") == wanted


async def test_a_wrong_block_is_passed_over_and_tending_mends_it() -> None:
    rig = build_rig()
    packs = named(rig)
    data = rig.randomness.token(60_000)
    await packs.write("index-a", [data])
    await asyncio.sleep(1)
    for store in rig.stores[:2]:
        (name,) = rig.memories[store]._blobs
        rig.memories[store].damage(name, 5000, 1)
    assert await packs.read("index-a") == data
    before = blobs(rig)
    assert await packs.tend("index-a") is Tended.REWRITTEN
    assert await packs.tend("index-a") is Tended.WHOLE
    assert all(len(now) == 1 and not now & before[store] for store, now in blobs(rig).items())
    for store in rig.stores[2:5]:
        (name,) = rig.memories[store]._blobs
        rig.memories[store].damage(name, 5000, 1)
    with pytest.raises(Damaged):
        await packs.read("index-a")
    with pytest.raises(Damaged):
        await packs.tend("index-a")


async def test_a_name_that_lost_stores_is_written_anew_on_those_that_are_left() -> None:
    rig = build_rig()
    packs = named(rig)
    data = rig.randomness.token(60_000)
    await packs.write("index-a", [data])
    await asyncio.sleep(1)
    for store in rig.stores[:2]:
        rig.attached.pop(store)
        rig.health.vanished(store, rig.clock.monotonic(), "gone")
    assert await packs.tend("index-a") is Tended.REWRITTEN  # in rs-2-2: m is kept
    assert await packs.tend("index-a") is Tended.WHOLE
    for store in rig.stores[2:4]:
        rig.attached.pop(store)
    assert await packs.read("index-a") == data


async def test_a_store_that_is_to_leave_is_emptied_of_them() -> None:
    rig = build_rig()
    data = rig.randomness.token(60_000)
    await named(rig).write("index-a", [data])
    leaving = rig.stores[0]
    topology = rig.packs.writer._topology
    packs = NamedPacks(
        rig.attached,
        topology,
        rig.health,
        rig.clock,
        rig.randomness,
        lambda: RS,
        room=lambda store: store != leaving,
    )
    assert await packs.tend("index-a") is Tended.REWRITTEN
    assert blobs(rig)[leaving] == set()
    assert await packs.tend("index-a") is Tended.WHOLE
    assert await packs.read("index-a") == data


async def test_what_a_write_that_was_given_up_has_left_does_no_harm_and_goes() -> None:
    rig = build_rig()
    packs = named(rig)
    task = asyncio.create_task(packs.write("index-a", [rig.randomness.token(60_000)]))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(5)
    data = rig.randomness.token(100)
    await packs.write("index-b", [data])
    assert await packs.read("index-b") == data
    await packs.remove("index-a")
    assert await packs.list("") == ["index-b"]


async def test_the_search_for_strays_never_takes_them_for_its_own() -> None:
    rig = build_rig()
    packs = named(rig)
    await packs.write("index-a", [b"kept"])
    before = blobs(rig)
    strays = FindStrays(rig.attached, rig.index, rig.clock)
    for _ in range(3):
        while await strays.step():
            pass
        await asyncio.sleep(max(STRAY_AGE_S, WALK_EVERY_S) + 1)
    assert strays.found == 0
    assert blobs(rig) == before
    for held in before.values():
        for name in held:
            assert parse_shard_name(name) is None
            parsed = parse_named_shard(StoreId("s"), name)
            assert parsed is not None
            assert parsed[0] == "index-a"


async def test_a_shard_under_another_name_is_not_believed() -> None:
    rig = build_rig()
    packs = named(rig)
    await packs.write("index-a", [b"of a"])
    found = await find_names(rig.attached, "index-a.")
    for shards in found.shards["index-a"].values():
        for shard in shards:
            (blob,) = await rig.attached[shard.store].get(shard.name, [Range(0, 8192)], timeout_s=1)
            await rig.attached[shard.store].put(shard.name.replace("index-a", "index-b"), [blob], timeout_s=1)
    with pytest.raises(Damaged, match="says that it is"):
        await packs.read("index-b")
