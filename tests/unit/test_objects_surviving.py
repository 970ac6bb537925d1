"""A bucket that is told what to survive has a scheme that does it, and another when the stores are others."""

import msgspec
import pytest
from msgspec.structs import replace

from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.choosing import SETTLED_S, ChooseSchemes
from holdfast.index.port import Expect, Transaction, prefix_end
from holdfast.objects import keys, rows
from holdfast.objects.model import PutObject
from holdfast.objects.rows import BucketRow
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.promising import choose_scheme
from holdfast.packs.quorum import LAST_RESORT_S, STRAGGLER_S
from holdfast.scheme import Scheme
from holdfast.topology import Location, Survive, Topology
from tests.kit.objects import BytesBody
from tests.kit.rig import build_rig

pytestmark = pytest.mark.virtual

BUCKET = "bucket"
BODY = bytes(range(256)) * 400


class House:
    """A service over real packs on nine stores, of which so many are in use on three hosts."""

    def __init__(self, *per_host: int) -> None:
        self.rig = rig = build_rig(9)
        self.furnish(*per_host)
        self.objects = Objects(
            rig.index,
            rig.packs,
            rig.clock,
            SeededRandomness(5),
            ObjectsSettings(
                default_scheme="mirror-2",
                stores=lambda: len(rig.topology.stores),
                choose_scheme=lambda survive: choose_scheme(rig.topology, survive),
                learn=rig.packs.writer.promises.learn,
                limits=ObjectsLimits(hashing_threads=0),
            ),
        )
        self.chore = ChooseSchemes(
            lambda: frozenset(map(rig.topology.location, rig.topology.stores)),
            self.objects.choose_schemes,
            rig.clock,
        )

    def furnish(self, *per_host: int) -> None:
        left = iter(self.rig.memories)
        there = [(next(left), host) for host, count in enumerate(per_host) for _ in range(count)]
        self.rig.topology = Topology(Location(store, host=f"h{host}", device=store) for store, host in there)
        names = {store for store, _ in there}
        self.all = {**getattr(self, "all", {}), **self.rig.attached}
        self.rig.attached.clear()
        self.rig.attached.update({store: self.all[store] for store in self.rig.memories if store in names})

    def host(self, store: StoreId) -> str:
        location = self.rig.topology.location(store)
        assert location is not None
        return location.host

    async def marks(self) -> int:
        return len(await self.rig.index.scan(keys.RESCHEMES, prefix_end(keys.RESCHEMES), limit=100))

    async def scheme(self) -> tuple[str, str]:
        bucket = await self.objects.get_bucket(BUCKET)
        return bucket.scheme.name, bucket.survive

    async def put(self) -> tuple[float, dict[str, int]]:
        """How long it took, and what the receipt says."""
        began = self.rig.clock.monotonic()
        stored = await self.objects.put_object(PutObject(bucket=BUCKET, key="k", body=BytesBody(BODY)))
        assert stored.receipt is not None
        return self.rig.clock.monotonic() - began, stored.receipt.survives


async def test_a_bucket_is_made_for_what_it_shall_survive() -> None:
    house = House(2, 2, 2)
    made = await house.objects.create_bucket(BUCKET, None, survive="host")
    assert (made.scheme, made.survive) == (Scheme(4, 2), "host")
    _, survives = await house.put()
    assert survives["host"] == 1
    with pytest.raises(InvalidInput):
        await house.objects.create_bucket("both", "mirror-2", survive="host")
    with pytest.raises(InvalidInput) as raised:
        await house.objects.create_bucket("too-much", None, survive="host:3")
    assert "4 of them" in str(raised.value)


async def test_a_bucket_in_use_is_told_and_its_packs_are_marked() -> None:
    house = House(2, 2, 2)
    await house.objects.create_bucket(BUCKET, None)
    told = await house.objects.set_bucket_survive(BUCKET, "host:1")
    assert (told.scheme.name, told.survive) == ("rs-4-2", "host")
    assert await house.marks() == 1
    await house.objects.set_bucket_survive(BUCKET, "none")
    assert await house.scheme() == ("rs-4-2", "")
    await house.objects.set_bucket_survive(BUCKET, "host:2")
    assert await house.scheme() == ("mirror-3", "host:2")
    await house.objects.set_bucket_scheme(BUCKET, "mirror-3")
    assert await house.scheme() == ("mirror-3", ""), "who names a scheme has chosen"


async def test_the_scheme_is_chosen_again_when_the_house_has_settled() -> None:
    house = House(1, 1, 1)
    await house.objects.create_bucket(BUCKET, None, survive="host")
    assert await house.scheme() == ("rs-2-1", "host")

    async def wait(seconds: float) -> None:
        for _ in range(int(seconds / house.chore.interval_s)):
            assert not await house.chore.step()
            await house.rig.clock.sleep(house.chore.interval_s)

    await wait(2 * SETTLED_S)
    assert await house.marks() == 0
    house.furnish(2, 2, 2)
    await wait(SETTLED_S / 2)
    house.furnish(2, 2, 1)
    await wait(SETTLED_S / 2)
    house.furnish(2, 2, 2)
    await wait(SETTLED_S - 1)
    assert await house.scheme() == ("rs-2-1", "host"), "somebody is still at work"
    await wait(3 * house.chore.interval_s)
    assert await house.scheme() == ("rs-4-2", "host")
    assert await house.marks() == 1
    house.furnish(3)
    await wait(2 * SETTLED_S)
    assert await house.scheme() == ("rs-4-2", "host"), "nothing does it: better what there is than nothing"
    assert "takes stores in 2" in house.chore.failed[BUCKET]
    assert BUCKET in house.chore.progress().detail


async def test_hosts_are_kept_while_stores_are_late_if_that_was_said() -> None:
    for told, host in ((None, 0), ("host", 1)):
        house = House(2, 2, 2)
        await house.objects.create_bucket(BUCKET, "rs-4-2" if told is None else None, survive=told)
        house.rig.scripts[house.rig.stores[5]].hang = True
        took, survives = await house.put()
        assert survives["host"] == host
        assert took < 3 * STRAGGLER_S < LAST_RESORT_S
        assert survives["store"] >= 1


async def test_a_row_of_before_survives_nothing_in_particular_and_is_told() -> None:
    house = House(2, 2, 2)
    await house.objects.create_bucket(BUCKET, None)
    (found,) = await house.rig.index.get([keys.bucket_row(BUCKET)])
    assert found is not None
    row = rows.decode_bucket(found.value)
    old = rows.encode(row)
    assert rows.encode(replace(row, survive="")) == old

    fields = msgspec.msgpack.decode(old)
    assert rows.decode_bucket(msgspec.msgpack.encode(fields[:7])) == row
    assert isinstance(row, BucketRow)
    assert house.rig.packs.writer.promises.of(Scheme(4, 2)) == ()
    await house.objects.set_bucket_survive(BUCKET, "host")
    await house.put()
    assert house.rig.packs.writer.promises.of(Scheme(4, 2)) == (Survive("host"),)
    await house.objects.set_bucket_survive(BUCKET, "none")
    await house.put()
    assert house.rig.packs.writer.promises.of(Scheme(4, 2)) == ()


async def test_a_word_of_a_later_version_is_no_reason_to_refuse_a_bucket() -> None:
    house = House(2, 2, 2)
    await house.objects.create_bucket(BUCKET, None, survive="host")
    key = keys.bucket_row(BUCKET)
    (found,) = await house.rig.index.get([key])
    assert found is not None
    later = rows.encode(replace(rows.decode_bucket(found.value), survive="continent"))
    await house.rig.index.commit([Transaction((Expect(key, found.revision),), ((key, later),))])
    _, survives = await house.put()
    assert survives["host"] == 1, "by its scheme, while all is well"
    assert "continent" in (await house.objects.choose_schemes())[BUCKET]
