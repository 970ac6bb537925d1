"""A bucket's scheme changes while it is in use: every pack follows, and no promise is weaker on the way."""

import asyncio

import msgspec
import pytest

from holdfast.base.errors import InvalidInput
from holdfast.base.ids import PackId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.collect import Collect
from holdfast.chores.rescheme import REST_S, Rescheme, Waiting
from holdfast.index.port import Row, Transaction, prefix_end
from holdfast.objects import keys, rows
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    CopyObject,
    CreateUpload,
    PutObject,
    ReadObject,
    UploadPart,
)
from holdfast.objects.rescheming import decide
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.model import DebtReason, DebtRow, debt_row
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import decode_row
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from tests.kit.objects import BytesBody, content
from tests.kit.rig import Rig, build_rig

pytestmark = pytest.mark.virtual

RS, MIRROR, STRONG, WEAK = Scheme(4, 2), Scheme(1, 2), Scheme(2, 3), Scheme(1, 1)
A, B = "bucket-a", "bucket-b"


class House:
    """Two buckets of one scheme over real packs, and what should be in them."""

    def __init__(self, stores: int = 6) -> None:
        self.rig = rig = build_rig(stores)
        self.objects = Objects(
            rig.index,
            rig.packs,
            rig.clock,
            SeededRandomness(5),
            ObjectsSettings(
                default_scheme="rs-4-2",
                stores=lambda: stores,
                check_scheme=self.check,
                limits=ObjectsLimits(hashing_threads=0, part_bytes_min=1),
            ),
        )
        self.stores = stores
        self.bodies: dict[tuple[str, str], bytes] = {}
        self.chore = self.new_chore()

    def check(self, scheme: Scheme) -> None:
        if scheme.n > self.stores:
            raise InvalidInput(f"{scheme.name} needs {scheme.n} stores.")

    def new_chore(self) -> Rescheme:
        """As after a restart: nothing is known but what the index says."""
        rig = self.rig
        return Rescheme(rig.index, rig.rewriter, self.objects.rescheming(rig.clock), lambda: 0, rig.clock)

    async def open(self) -> "House":
        await self.objects.create_bucket(A, None)
        await self.objects.create_bucket(B, None)
        return self

    async def put(self, bucket: str, key: str, data: bytes) -> None:
        await self.objects.put_object(PutObject(bucket=bucket, key=key, body=BytesBody(data)))
        self.bodies[bucket, key] = data

    async def read(self, bucket: str, key: str) -> bytes:
        return await content(await self.objects.read_object(ReadObject(bucket=bucket, key=key)))

    async def packs(self) -> dict[PackId, Scheme]:
        found = {}
        for row in await self.rig.index.scan(b"pack/", prefix_end(b"pack/"), limit=10_000):
            assert isinstance(row, Row)
            pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
            found[pack] = decode_row(row.value).scheme
        return found

    async def run(self) -> None:
        rests = 0
        for _ in range(2000):
            if not await self.chore.step():
                rests += 1
                await self.rig.clock.sleep(REST_S + 1)
            if rests == 4:
                return
        raise AssertionError("it does not come to an end")

    async def collect(self) -> None:
        chore = Collect(self.rig.index, self.rig.packs.rows, self.rig.packs.reader.in_use)
        for _ in range(4):
            while await chore.step():
                pass

    async def assert_right(self) -> None:
        for (bucket, key), body in self.bodies.items():
            assert await self.read(bucket, key) == body
        assert all([report.state is PackHealth.WHOLE async for report in self.rig.verifier.verify_all()])

    async def marks(self) -> int:
        return len(await self.rig.index.scan(keys.RESCHEMES, prefix_end(keys.RESCHEMES), limit=100))


async def test_every_pack_of_a_bucket_follows_there_and_back() -> None:
    house = await House().open()
    for number in range(8):
        await house.put(A, f"small-{number}", b"%d" % number * 3000)
        await house.put(A, f"large-{number}", bytes([number]) * 300_000)
    for scheme in ("mirror-3", "rs-4-2"):
        assert (await house.objects.set_bucket_scheme(A, scheme)).scheme.name == scheme
        assert await house.marks() == 1
        await house.run()
        assert {found.name for found in (await house.packs()).values()} == {scheme}
        assert await house.marks() == 0
        assert not house.chore.active
        await house.assert_right()


async def test_what_a_bucket_wants_again_in_the_middle_of_a_walk_is_not_weakened_on_the_way() -> None:
    house = await House().open()
    for number in range(6):
        await asyncio.gather(*[house.put(bucket, f"{number}", b"x" * 90_000) for bucket in (A, B)])
    for bucket in (A, B):
        await house.objects.set_bucket_scheme(bucket, "mirror-2")
    await house.chore.step()
    await house.objects.set_bucket_scheme(B, "rs-4-2")
    before = await house.packs()
    while await house.chore.step():
        now = await house.packs()
        for number in range(6):
            (row,) = await house.rig.index.get([keys.head_row(B, str(number).encode())])
            assert row is not None
            (extent,) = rows.decode_head(row.value).current.extents
            assert now[extent.pack].m >= before.get(extent.pack, RS).m, f"{number} of {B} has less now"
    await house.run()
    assert WEAK in (await house.packs()).values()
    await house.assert_right()


async def test_a_reader_sees_the_right_bytes_all_the_time() -> None:
    house = await House().open()
    for number in range(4):
        await house.put(A, f"key-{number}", bytes([number]) * 150_000)
    done = False
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not done:
            for (bucket, key), body in house.bodies.items():
                assert await house.read(bucket, key) == body
                reads += 1
            await house.rig.clock.sleep(0.01)

    reading = asyncio.create_task(read())
    for scheme in ("mirror-3", "rs-4-2", "rs-2-3"):
        await house.objects.set_bucket_scheme(A, scheme)
        while await house.marks():
            await house.chore.step()
    done = True
    await reading
    assert reads > 20
    assert set((await house.packs()).values()) == {STRONG}


async def test_it_goes_on_after_a_restart_in_the_middle() -> None:
    house = await House().open()
    for number in range(8):
        await house.put(A, f"key-{number}", bytes([number]) * 300_000)
    await house.objects.set_bucket_scheme(A, "mirror-3")
    while house.chore.rewritten < 3:
        await house.chore.step()
    assert {RS, MIRROR} == set((await house.packs()).values())
    house.chore = house.new_chore()
    assert house.chore.active, "nobody may mix packs before the marks were looked for"
    await house.run()
    assert set((await house.packs()).values()) == {MIRROR}
    assert house.chore.rewritten == 5, "what was done is not done again"
    await house.assert_right()


async def test_a_pack_that_two_buckets_share_is_divided_and_the_other_bucket_stays_as_it_is() -> None:
    house = await House().open()
    await asyncio.gather(
        *(
            house.put(bucket, f"key-{number}", bytes([number]) * 5000)
            for number in range(12)
            for bucket in (A, B)
        )
    )
    before = await house.packs()
    assert len(before) < 12, "they share packs"
    await house.objects.set_bucket_scheme(A, "mirror-3")
    await house.run()
    await house.collect()
    assert await house.marks() == 0
    for bucket, scheme in ((A, MIRROR), (B, RS)):
        for number in range(12):
            assert await schemes_of(house, bucket, f"key-{number}") == {scheme}
    await house.assert_right()


async def schemes_of(house: House, bucket: str, key: str) -> set[Scheme]:
    """The schemes of the packs that an object lies in."""
    (row,) = await house.rig.index.get([keys.head_row(bucket, key.encode())])
    assert row is not None
    record = rows.decode_head(row.value).current
    return {(await house.rig.packs.rows.fresh(extent.pack)).row.scheme for extent in record.extents}


async def test_a_copy_in_another_bucket_keeps_what_that_bucket_promises() -> None:
    house = await House().open()
    await house.put(A, "key", b"x" * 300_000)
    await house.objects.copy_object(CopyObject(source_bucket=A, source_key="key", bucket=B, key="copy"))
    house.bodies[B, "copy"] = house.bodies[A, "key"]
    assert len(await house.packs()) == 1, "they share their bytes"
    await house.objects.set_bucket_scheme(A, "mirror-2")
    await house.run()
    await house.collect()
    assert await schemes_of(house, A, "key") == {WEAK}
    assert await schemes_of(house, B, "copy") == {RS}
    # And a later copy does not lean on the weaker one.
    await house.objects.copy_object(CopyObject(source_bucket=A, source_key="key", bucket=B, key="later"))
    assert await schemes_of(house, B, "later") == {RS}
    await house.assert_right()


async def test_an_upload_that_was_open_follows_when_it_is_complete() -> None:
    house = await House().open()
    upload = (await house.objects.create_upload(CreateUpload(bucket=A, key="key"))).upload
    await house.objects.set_bucket_scheme(A, "mirror-3")
    await house.run()
    assert await house.marks() == 0
    data = b"y" * 300_000
    part = UploadPart(bucket=A, key="key", upload=upload, number=1, body=BytesBody(data))
    etag = (await house.objects.upload_part(part)).etag
    assert RS in (await house.packs()).values()
    await house.objects.complete_upload(
        CompleteUpload(bucket=A, key="key", upload=upload, parts=(CompletePart(1, etag),))
    )
    house.bodies[A, "key"] = data
    assert await house.marks() == 1
    await house.run()
    assert await schemes_of(house, A, "key") == {MIRROR}
    await house.assert_right()


async def test_a_write_under_way_during_the_change_is_not_forgotten() -> None:
    house = await House().open()
    writing = [
        asyncio.create_task(house.put(A, f"key-{number}", bytes([number]) * 200_000)) for number in range(6)
    ]
    await house.rig.clock.sleep(0.0005)
    await house.objects.set_bucket_scheme(A, "mirror-3")
    await house.run()
    await asyncio.gather(*writing)
    await house.run()
    for number in range(6):
        assert await schemes_of(house, A, f"key-{number}") == {MIRROR}
    assert await house.marks() == 0


async def test_what_too_few_stores_allow_is_done_and_the_rest_is_owed() -> None:
    house = await House(7).open()
    await house.put(A, "key", b"z" * 300_000)
    rig: Rig = house.rig
    for store in rig.stores[5:]:
        rig.attached.pop(store)
    await house.objects.set_bucket_scheme(A, "rs-4-3")
    await house.run()
    assert await schemes_of(house, A, "key") == {Scheme(2, 3)}
    assert await house.marks() == 0
    assert len(await rig.index.scan(b"debt/", prefix_end(b"debt/"), limit=10)) == 1
    assert await house.read(A, "key") == house.bodies[A, "key"]


async def test_a_scheme_that_is_no_scheme_or_needs_more_stores_is_refused() -> None:
    house = await House().open()
    for wrong in ("rs-9", "rs-8-3"):
        with pytest.raises(InvalidInput):
            await house.objects.set_bucket_scheme(A, wrong)
    assert (await house.objects.get_bucket(A)).scheme == RS
    assert await house.marks() == 0


def test_a_mixed_pack_is_never_promised_less_than_any_bucket_in_it_wants() -> None:
    assert decide(RS, {}, divisible=True).promised == RS
    assert decide(RS, {A: MIRROR}, divisible=True).promised == MIRROR
    mixed = decide(RS, {A: MIRROR, B: RS}, divisible=True)
    assert (mixed.promised, mixed.leaving) == (RS, {MIRROR: frozenset({A})})
    mixed = decide(RS, {A: STRONG, B: RS}, divisible=True)
    assert (mixed.promised, mixed.leaving) == (STRONG, {RS: frozenset({B})})
    whole = decide(RS, {A: STRONG, B: RS, "c": WEAK}, divisible=False)
    assert (whole.promised, whole.leaving) == (STRONG, {})


async def test_a_chore_that_waits_does_nothing_meanwhile() -> None:
    house = await House().open()
    await house.put(A, "key", b"x")
    await house.objects.set_bucket_scheme(A, "mirror-3")
    busy = True
    waiting = Waiting(house.chore, lambda: busy)
    for _ in range(5):
        assert not await waiting.step()
    assert house.chore.rewritten == 0
    busy = False
    assert await waiting.step()


async def test_what_was_owed_and_is_paid_during_the_walk_is_not_taken_for_what_was_there_before() -> None:
    house = await House().open()
    await house.put(A, "one", b"1" * 5000)
    await house.put(A, "two", b"2" * 5000)
    first, second = sorted(await house.packs())
    # The bucket was given mirror-3, for which there were too few stores then, and now has rs-4-2 again.
    owed = msgspec.msgpack.encode(DebtRow(MIRROR, DebtReason.SCHEME))
    await house.rig.index.commit([Transaction((), ((debt_row(second), owed),))])
    await house.objects.set_bucket_scheme(A, "mirror-3")
    await house.objects.set_bucket_scheme(A, "rs-4-2")
    assert await house.chore.step(), "the first, while the second is owed"
    assert await house.rig.rewriter.rewrite(second, Reason.DEBT, Target()) is Rewritten.DONE
    assert (await house.packs())[second] == MIRROR
    await house.run()
    assert await house.packs() == {first: RS, second: RS}
    await house.assert_right()
