"""A pack of another site is laid over the stores that there are, under the id that it has there."""

import msgspec
import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, parse_shard_name
from holdfast.index.port import Committed, prefix_end
from holdfast.packs.model import DebtRow, Extent, ManifestEntry, PackRow, debt_row, pack_row
from holdfast.packs.rows import decode_row
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import run_virtual

pytestmark = pytest.mark.virtual

PACK = PackId(b"a pack elsewhere")
SCHEME = Scheme(4, 2)
DATA = bytes(range(256)) * 1000
ENTRIES = (ManifestEntry("b", "k", "v", 0, len(DATA), record=b"r"),)


async def adopted(rig: Rig) -> PackRow:
    """Adopts the pack, and makes it known."""
    change = await rig.packs.adopt(PACK, SCHEME, [DATA], ENTRIES, len(DATA))
    (outcome,) = await rig.index.commit([change])
    assert isinstance(outcome, Committed)
    (row,) = await rig.index.get([pack_row(PACK)])
    assert row is not None
    return decode_row(row.value)


async def content(rig: Rig) -> bytes:
    extent = Extent(PACK, 0, len(DATA))
    return b"".join([bytes(piece) async for piece in rig.packs.read((extent,), 0, len(DATA))])


async def rows(rig: Rig, prefix: bytes) -> list[bytes]:
    return [row.key for row in await rig.index.scan(prefix, prefix_end(prefix), limit=100)]


def names(rig: Rig) -> set[str]:
    return {name for memory in rig.memories.values() for name in memory._blobs}


def test_it_has_its_id_and_its_payload() -> None:
    async def scenario() -> None:
        rig = build_rig(6)
        row = await adopted(rig)
        assert (row.scheme, row.payload_bytes, row.object_bytes) == (SCHEME, len(DATA), len(DATA))
        assert await content(rig) == DATA
        (entry,) = await rig.packs.manifest(PACK)
        assert (entry.bucket, entry.key, entry.record) == ("b", "k", b"r")
        assert entry.moved, "it makes no object, when the index is lost"

    run_virtual(scenario())


def test_a_try_that_a_crash_ended_is_not_in_the_way() -> None:
    async def scenario() -> None:
        rig = build_rig(6)
        await rig.packs.adopt(PACK, SCHEME, [DATA], ENTRIES, len(DATA))
        before = names(rig)
        row = await adopted(rig)
        assert len(names(rig) - before) == SCHEME.n, "no name was used twice"
        named = {(place.shard, place.attempt) for place in row.places}
        assert not named & {parsed[1:] for name in before if (parsed := parse_shard_name(name))}
        assert await content(rig) == DATA

    run_virtual(scenario())


def test_fewer_stores_than_at_the_other_site_mean_debt() -> None:
    async def scenario() -> None:
        rig = build_rig(4)
        row = await adopted(rig)
        assert row.scheme == Scheme(2, 2)
        (debt,) = await rig.index.get([debt_row(PACK)])
        assert debt is not None
        assert msgspec.msgpack.decode(debt.value, type=DebtRow).promised == SCHEME
        assert await content(rig) == DATA

    run_virtual(scenario())


def test_a_store_that_fails_costs_its_shards_and_not_the_id() -> None:
    async def scenario() -> None:
        rig = build_rig(6)
        rig.scripts[rig.stores[2]].write_errors = 1.0
        row = await adopted(rig)
        assert rig.stores[2] not in {place.store for place in row.places}
        await rig.clock.sleep(60)
        assert await rows(rig, b"buried/") == [], "the id lives"
        named = {f"{PACK.hex()}.{place.shard}.{place.attempt}" for place in row.places}
        trash = {key.decode().rsplit("/", 1)[1] for key in await rows(rig, b"trash/")}
        assert names(rig) - named <= trash, "what nobody names is to be removed"
        assert not named & trash
        assert await content(rig) == DATA

    run_virtual(scenario())


def test_a_shard_that_lands_late_enters_the_row() -> None:
    async def scenario() -> None:
        rig = build_rig(6)
        rig.scripts[rig.stores[0]].delay_s = (5.0, 5.0)
        change = await rig.packs.adopt(PACK, SCHEME, [DATA], ENTRIES, len(DATA))
        await rig.clock.sleep(20)  # it lands before anybody knows the pack
        await rig.index.commit([change])
        await rig.clock.sleep(120)
        (row,) = await rig.index.get([pack_row(PACK)])
        assert row is not None
        assert len(decode_row(row.value).places) == SCHEME.n
        assert await rows(rig, b"debt/") == []

    run_virtual(scenario())


def test_too_few_stores_leave_nothing_known() -> None:
    async def scenario() -> None:
        rig = build_rig(6)
        for store in rig.stores[:4]:
            rig.scripts[store].vanished = True
        with pytest.raises(Unavailable):
            await rig.packs.adopt(PACK, SCHEME, [DATA], ENTRIES, len(DATA))
        await rig.clock.sleep(60)
        assert await rows(rig, b"buried/") == []
        for store in rig.stores[:4]:
            rig.scripts[store].vanished = False
        await rig.clock.sleep(60)
        await adopted(rig)
        assert await content(rig) == DATA

    run_virtual(scenario())
