"""A bucket that fails: what is asked again, what is told to whom, and what is never told."""

from collections.abc import Iterator

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Damaged, HoldfastError, InvalidInput
from holdfast.stores.cloud import S3Access, S3Credentials, parse_address
from holdfast.stores.cloud.address import open_bucket
from holdfast.stores.cloud.requests import THROTTLED_MAX
from holdfast.stores.cloud.retrying import RetryLimits
from holdfast.stores.cloud.store import CloudStore
from holdfast.stores.port import (
    Range,
    ShardExists,
    ShardMissing,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
)
from tests.kit.clouds import CREDENTIALS, cloud_store
from tests.kit.fake_cloud import FakeCloud, Refusal, fake_cloud

T = 60.0
QUICK = RetryLimits(first_s=0.001, most_s=0.002)
SLOW_DOWN = Refusal(503, "SlowDown")


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def store(cloud: FakeCloud) -> CloudStore:
    return cloud_store(cloud.port, "bucket", retries=QUICK)


async def test_throttling_and_bursts_of_errors_are_outlived(cloud: FakeCloud, store: CloudStore) -> None:
    cloud.refusals = [SLOW_DOWN, Refusal(500, "InternalError"), Refusal(502, "")]
    await store.put("blob", [b"content"], timeout_s=T)
    cloud.refusals = [SLOW_DOWN, SLOW_DOWN]
    assert await store.get("blob", [Range(0, 7)], timeout_s=T) == [b"content"]


async def test_a_put_whose_answer_was_lost_is_no_name_that_is_taken(
    cloud: FakeCloud, store: CloudStore
) -> None:
    for content in (b"content", b""):
        cloud.blobs.clear()
        cloud.refusals = [Refusal(500, "InternalError", done=True)]
        await store.put("blob", [content], timeout_s=T)
        assert list(cloud.blobs.values()) == [content]


async def test_a_name_that_another_took_meanwhile_is_taken(cloud: FakeCloud, store: CloudStore) -> None:
    for theirs in (b"another", b"longer than ours"):
        cloud.blobs = {"/bucket/a/store/shards/blob": theirs}
        cloud.refusals = [Refusal(500, "InternalError")]
        with pytest.raises(ShardExists):
            await store.put("blob", [b"content"], timeout_s=T)
        assert list(cloud.blobs.values()) == [theirs]


async def test_a_provider_that_refuses_everything_is_not_asked_ever_more(
    cloud: FakeCloud, store: CloudStore
) -> None:
    cloud.always = SLOW_DOWN
    calls = 60
    for number in range(calls):
        # Who says that once is busy; who says nothing else has failed, and is to sit out.
        with pytest.raises(StoreBusy if number < THROTTLED_MAX else StoreFailed):
            await store.get("blob", [Range(0, 1)], timeout_s=T)
    cloud.always = None
    with pytest.raises(ShardMissing):
        await store.get("blob", [Range(0, 1)], timeout_s=T)
    cloud.always = SLOW_DOWN
    with pytest.raises(StoreBusy):
        await store.get("blob", [Range(0, 1)], timeout_s=T)
    cloud.requests -= 2
    assert calls < cloud.requests <= calls + QUICK.budget


@pytest.mark.parametrize("refusal", [Refusal(404, "NoSuchBucket"), Refusal(403, "ExpiredToken")])
async def test_a_bucket_that_is_gone_or_closed_is_a_store_that_failed(
    cloud: FakeCloud, store: CloudStore, refusal: Refusal
) -> None:
    """Never blobs that are missing: repair would write all of them again."""
    cloud.always = refusal
    before = cloud.requests
    for call in (
        store.put("blob", [b"x"], timeout_s=T),
        store.get("blob", [Range(0, 1)], timeout_s=T),
        store.size("blob", timeout_s=T),
        store.delete("blob", timeout_s=T),
        store.list("", limit=10, timeout_s=T),
        store.usage(timeout_s=T),
        store.probe(timeout_s=T),
    ):
        with pytest.raises(StoreFailed):
            await call
    assert cloud.requests - before <= 9


async def test_nothing_secret_is_in_an_error(cloud: FakeCloud, store: CloudStore) -> None:
    """Providers repeat keys and signatures in what they answer."""
    for status in (400, 401, 403, 404, 409, 412, 416, 429, 500, 503):
        cloud.always = Refusal(status, "Whatever")
        with pytest.raises(HoldfastError) as caught:
            await store.get("blob", [Range(0, 1)], timeout_s=T)
        error: BaseException | None = caught.value
        told = f"{error} {error!r} {caught.value.facts} {store!r}"
        assert error is not None
        assert error.__suppress_context__
        assert "secret+for" not in told
        assert CREDENTIALS.access_key_id not in told
    assert "secret+for" not in repr(CREDENTIALS)
    assert "secret+for" not in repr(S3Access("r", "", CREDENTIALS))


async def test_a_bucket_that_hangs_takes_no_longer_than_allowed(cloud: FakeCloud, store: CloudStore) -> None:
    cloud.hangs = True
    for call in (
        store.put("blob", [b"x"], timeout_s=0.05),
        store.get("blob", [Range(0, 1), Range(1 << 20, 1)], timeout_s=0.05),
        store.delete("blob", timeout_s=0.05),
        store.list("", limit=10, timeout_s=0.05),
        store.probe(timeout_s=0.05),
    ):
        with pytest.raises(StoreOverdue):
            await call


async def test_a_deletion_that_was_not_done_is_never_told_as_done(
    cloud: FakeCloud, store: CloudStore
) -> None:
    await store.put("blob", [b"x"], timeout_s=T)
    cloud.keeps = True
    with pytest.raises(StoreFailed):
        await store.delete("blob", timeout_s=T)
    cloud.keeps = False
    # A server that does not know how to delete many.
    cloud.refusals = [Refusal(404, "NoSuchKey")]
    with pytest.raises(StoreFailed):
        await store.delete("blob", timeout_s=T)
    assert len(cloud.blobs) == 1
    await store.delete("blob", timeout_s=T)
    assert cloud.blobs == {}


async def test_a_page_that_is_not_found_is_no_blob_that_is_gone(cloud: FakeCloud, store: CloudStore) -> None:
    # Of a proxy, or whatever else has taken the address: repair must not take all blobs for lost.
    cloud.always = Refusal(404, "")
    with pytest.raises(StoreFailed):
        await store.get("blob", [Range(0, 1)], timeout_s=T)
    with pytest.raises(StoreFailed):
        await store.size("blob", timeout_s=T)


async def test_nobody_at_the_address_is_a_store_that_failed() -> None:
    with fake_cloud() as cloud:
        store = cloud_store(cloud.port, "bucket", retries=QUICK)
    with pytest.raises(StoreFailed):
        await store.get("blob", [Range(0, 1)], timeout_s=T)


async def test_a_server_that_writes_over_names_is_refused(cloud: FakeCloud, store: CloudStore) -> None:
    await store.prove_create_only(timeout_s=T)
    assert cloud.blobs == {}
    cloud.overwrites = True
    with pytest.raises(InvalidInput, match="writes over"):
        await store.prove_create_only(timeout_s=T)
    assert cloud.blobs == {}


async def test_a_probe_finds_bytes_that_are_wrong(cloud: FakeCloud, store: CloudStore) -> None:
    real = cloud.answer

    def lying(method: str, *rest: object) -> tuple[int, dict[str, str], bytes]:
        status, about, content = real(method, *rest)  # type: ignore[arg-type]
        return status, about, content[::-1] if method == "GET" else content

    cloud.answer = lying  # type: ignore[method-assign]
    with pytest.raises(Damaged):
        await store.probe(timeout_s=T)
    assert cloud.blobs == {}


async def test_a_bucket_is_full_where_it_was_told_to_be(cloud: FakeCloud) -> None:
    store = cloud_store(cloud.port, "bucket", bytes_max=100, bytes_reserve=10)
    await store.put("one", [b"x" * 90], timeout_s=T)
    with pytest.raises(StoreFull):
        await store.put("two", [b"x"], timeout_s=T)
    with pytest.raises(StoreFull):
        await store.probe(timeout_s=T)
    await store.put("needed", [b"x" * 5], timeout_s=T, reserve_share=0.5)
    with pytest.raises(StoreFull):
        await store.put("more", [b"x"], timeout_s=T, reserve_share=0.5)
    with pytest.raises(ShardMissing):
        await store.size("more", timeout_s=T)


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://my.bucket-1/", "my.bucket-1", ""),
        ("s3://bucket/a/b_c/", "bucket", "a/b_c"),
    ],
)
def test_addresses(url: str, bucket: str, prefix: str) -> None:
    address = parse_address(url)
    assert (address.bucket, address.prefix) == (bucket, prefix)
    assert parse_address(address.url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "https://bucket/a",
        "s3://",
        "s3:///a",
        "s3://Bucket",
        "s3://ab",
        "s3://a..b",
        "s3://id:secret+for@bucket",
        "s3://bucket//a",
        "s3://bucket/a/../b",
        "s3://bucket/a b",
        "s3://bucket/" + "x" * 600,
        "s3://bucket\n",
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_address(url)
    assert "secret+for" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "ftp://host", "http://id:secret+for@host", "http://h/p"]
)
def test_what_is_no_endpoint_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_bucket(
            parse_address("s3://bucket"), S3Access("r", endpoint, S3Credentials("a", "b")), SystemClock()
        )
    assert "secret+for" not in str(caught.value)
