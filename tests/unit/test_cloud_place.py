"""Who lives in a bucket: recognised as on a disk, made once, and never made to have seen less."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Damaged, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.cloud import Attached, CloudAddress, CloudOptions, S3Access, Sealing, attach, inspect
from holdfast.stores.cloud.place import Resident, decode_resident, encode_resident, newest, note_name
from holdfast.stores.cloud.retrying import RetryLimits
from holdfast.stores.identity import Expected, Identity, Noted
from holdfast.stores.port import Attachment, StoreFailed
from tests.kit.clouds import CREDENTIALS
from tests.kit.fake_cloud import FakeCloud, Refusal, fake_cloud

T = 60.0
KEY, OTHER_KEY = "0" * 32, "1" * 32
QUICK = CloudOptions(retries=RetryLimits(first_s=0.001, most_s=0.002))
ADDRESS = CloudAddress("bucket", "p")


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


class Chance:
    """Another seed each time: no two stores of a test are one."""

    number = 0

    @classmethod
    def next(cls) -> SeededRandomness:
        cls.number += 1
        return SeededRandomness(f"place {cls.number}")


async def attached(
    cloud: FakeCloud,
    expected: Expected,
    *,
    sealing: Sealing = Sealing(True, (KEY,)),  # noqa: B008 - a value
    initialise: bool = True,
) -> Attached:
    return await attach(
        ADDRESS,
        S3Access("us-east-1", f"http://127.0.0.1:{cloud.port}", CREDENTIALS),
        expected,
        sealing,
        clock=SystemClock(),
        randomness=Chance.next(),
        options=QUICK,
        initialise=initialise,
        timeout_s=T,
    )


async def test_an_empty_bucket_is_moved_into_once_and_known_again(cloud: FakeCloud) -> None:
    ours = Expected("c", "cloud1")
    looked = await attached(cloud, ours, initialise=False)
    assert looked.judgement.attachment is Attachment.NEW
    assert not cloud.blobs, "nothing is touched by a look"
    made = await attached(cloud, ours)
    assert made.store is not None
    again = await attached(cloud, ours)
    assert again.judgement.attachment is Attachment.READY
    assert again.store is not None
    assert again.store.id == made.store.id
    for expected, found in (
        (Expected("another", "cloud1"), Attachment.FOREIGN),
        (Expected("c", "cloud2"), Attachment.SWAPPED),
        (Expected("c", "cloud1", StoreId("another")), Attachment.SWAPPED),
        (Expected("c", "cloud1", made.store.id, Noted("i", 1)), Attachment.STALE),
    ):
        refused = await attached(cloud, expected)
        assert refused.judgement.attachment is found
        assert refused.store is None


async def test_what_is_somebody_elses_or_damaged_is_never_moved_into(cloud: FakeCloud) -> None:
    for blobs in (
        {"/bucket/p/letters/a": b"theirs"},
        {"/bucket/p/shards/x.0.0": b"a shard without who it belongs to"},
        {"/bucket/p/holdfast-store.json": b"{}"},
        {"/bucket/p/holdfast-store.json": b""},
    ):
        cloud.blobs = dict(blobs)
        found = await attached(cloud, Expected("c", "s"))
        assert found.judgement.attachment is Attachment.FOREIGN, blobs
        assert cloud.blobs == blobs
    # What a probe left behind is nobody's.
    cloud.blobs = {f"/bucket/p/probe/{number}": b"" for number in range(5)}
    assert (await attached(cloud, Expected("c", "s"))).store is not None


async def test_a_provider_that_writes_over_names_is_refused_before_anything_is_kept(cloud: FakeCloud) -> None:
    cloud.overwrites = True
    with pytest.raises(InvalidInput, match="writes over"):
        await attached(cloud, Expected("c", "s"))
    assert not cloud.blobs


@pytest.mark.parametrize(
    ("sealing", "said"),
    [
        (Sealing(False), "is sealed"),
        (Sealing(True, ()), "not in the key ring"),
        (Sealing(True, (OTHER_KEY,)), "not in the key ring"),
    ],
)
async def test_a_bucket_is_used_as_it_was_begun(cloud: FakeCloud, sealing: Sealing, said: str) -> None:
    assert (await attached(cloud, Expected("c", "s"))).store is not None
    with pytest.raises(InvalidInput, match=said):
        await attached(cloud, Expected("c", "s"), sealing=sealing)
    both = await attached(cloud, Expected("c", "s"), sealing=Sealing(True, (KEY, OTHER_KEY)))
    assert both.store is not None


async def test_one_that_is_not_sealed_stays_so(cloud: FakeCloud) -> None:
    assert (await attached(cloud, Expected("c", "s"), sealing=Sealing(False))).store is not None
    with pytest.raises(InvalidInput, match="is not sealed"):
        await attached(cloud, Expected("c", "s"))


async def test_a_bucket_that_cannot_be_looked_at_is_not_taken_for_an_empty_one(cloud: FakeCloud) -> None:
    for refusal in (Refusal(404, "NoSuchBucket"), Refusal(403, "AccessDenied"), Refusal(404, "")):
        cloud.always = refusal
        with pytest.raises(StoreFailed):
            await inspect(
                ADDRESS,
                S3Access("us-east-1", f"http://127.0.0.1:{cloud.port}", CREDENTIALS),
                clock=SystemClock(),
                randomness=Chance.next(),
                options=QUICK,
                timeout_s=T,
            )


async def test_what_was_noted_never_goes_back_whoever_notes(cloud: FakeCloud) -> None:
    ours = Expected("c", "s")
    first, second = (await attached(cloud, ours)).store, (await attached(cloud, ours)).store
    assert first is not None
    assert second is not None
    await first.note_revision("i", 70, timeout_s=T)
    await second.note_revision("i", 60, timeout_s=T)
    assert second.identity.noted == first.identity.noted == Noted("i", 70)
    assert len([name for name in cloud.blobs if "/noted/" in name]) == 1
    # Another within the hour costs nothing, and is not claimed.
    before = cloud.requests
    await first.note_revision("i", 90, timeout_s=T)
    assert cloud.requests == before
    assert first.identity.noted == Noted("i", 70)
    # A new incarnation is younger than any revision of the one before.
    await first.note_revision("j", 3, timeout_s=T)
    third = await attached(cloud, ours)
    assert third.identity is not None
    assert third.identity.noted == Noted("j", 3)


def test_names_of_notes_are_in_the_order_of_what_they_say() -> None:
    names: list[str] = []
    for noted in (Noted("i", 9), Noted("i", 10), Noted("a", 2), Noted("a", 200)):
        name = note_name(names, noted)
        assert not names or name > names[-1]
        names.append(name)
        assert newest(names) == noted
    assert newest([]) is None


def test_every_byte_of_who_lives_there_is_looked_at() -> None:
    resident = Resident(Identity(StoreId("s"), "c", "cloud1"), KEY)
    raw = encode_resident(resident)
    assert decode_resident(raw) == resident
    with pytest.raises(Damaged, match="format 2"):
        decode_resident(raw.replace(b'"format": 1', b'"format": 2'))
    for at in range(len(raw)):
        spoiled = bytearray(raw)
        spoiled[at] ^= 1
        with maybe(Damaged):
            assert decode_resident(bytes(spoiled)) == resident


@contextmanager
def maybe(kind: type[HoldfastError]) -> Iterator[None]:
    """Right, or refused."""
    try:
        yield
    except kind:
        return
