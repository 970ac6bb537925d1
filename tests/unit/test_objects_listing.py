"""Listings against a dumb reference: sort, roll up, skip, cut."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.base.clock import SystemClock
from holdfast.base.ids import UploadId
from holdfast.objects.errors import InvalidKey, NoSuchBucket
from holdfast.objects.model import CreateUpload, ListedObject, ListObjects
from tests.kit.objects import BUCKET, Desk

names = st.text(alphabet="ab/é\x01😀", min_size=1, max_size=5)
parts = st.text(alphabet="ab/é", max_size=3)


def rolled(
    keys: Iterable[str], prefix: str, delimiter: str, after: str, *, cut_off: bool = False
) -> list[str]:
    """Keys and common prefixes, in the order of their UTF-8 bytes, greater than `after`; or, `cut_off`, of
    keys that are greater."""
    found = set()
    for key in keys:
        if not key.startswith(prefix) or (cut_off and key.encode() <= after.encode()):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        found.add(key if at < 0 else key[: at + len(delimiter)])
    if cut_off:
        return sorted(found, key=str.encode)
    skipped = after
    if delimiter and after.startswith(prefix) and (at := after.find(delimiter, len(prefix))) >= 0:
        skipped = after[: at + len(delimiter)]
    limit = max(after.encode(), skipped.encode())
    return sorted((name for name in found if name.encode() > limit), key=str.encode)


def shown(entries: Iterable[object]) -> list[str]:
    return [entry if isinstance(entry, str) else entry.key for entry in entries]  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(
    st.sets(names, max_size=12),
    parts,
    st.sampled_from(["", "/", "a", "b/", "é"]),
    parts,
    st.integers(1, 4),
    st.booleans(),
)
def test_a_listing_is_what_sorting_and_rolling_up_gives(
    keys: set[str], prefix: str, delimiter: str, after: str, limit: int, cut_off: bool
) -> None:
    async def run() -> None:
        desk = await Desk(SystemClock()).bucket()
        await desk.bucket("bucket-b")
        await asyncio.gather(*(desk.put(key, key.encode()) for key in keys))
        await desk.put("other", b"", bucket="bucket-b")
        found: list[str] = []
        marker = after
        for _ in range(30):
            page = await desk.objects.list_objects(
                ListObjects(
                    bucket=BUCKET,
                    prefix=prefix,
                    delimiter=delimiter,
                    after=marker,
                    cut_off=cut_off and not found,
                    limit=limit,
                )
            )
            found += shown(page.entries)
            assert len(page.entries) <= limit
            if not page.truncated:
                assert page.next_after == ""
                break
            assert len(page.entries) == limit
            marker = page.next_after
        assert found == rolled(keys, prefix, delimiter, after, cut_off=cut_off)

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(names, st.integers(0, 1)), max_size=8),
    parts,
    st.sampled_from(["", "/", "a", "0"]),
    parts,
    st.integers(1, 3),
)
def test_a_listing_of_uploads_is_what_sorting_and_rolling_up_gives(
    wanted: list[tuple[str, int]], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    async def run() -> None:
        desk = await Desk(SystemClock()).bucket()
        made: list[tuple[str, UploadId]] = []
        for key, more in wanted:
            for _ in range(1 + more):
                upload = await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key=key))
                made.append((key, upload.upload))
        expected: list[tuple[str, str]] = []
        for name in rolled({key for key, _ in made}, prefix, delimiter, after):
            ids = sorted(upload for key, upload in made if key == name)
            rolls = delimiter and name.find(delimiter, len(prefix)) >= 0
            expected += [(name, "")] if rolls else [(name, upload) for upload in ids]
        found: list[tuple[str, str]] = []
        key, upload_ = after, ""
        for _ in range(40):
            page = await desk.objects.list_uploads(BUCKET, prefix, delimiter, key, upload_, limit)
            found += [
                (entry, "") if isinstance(entry, str) else (entry.key, entry.upload) for entry in page.entries
            ]
            assert len(page.entries) <= limit
            if not page.truncated:
                break
            key, upload_ = page.next_key, page.next_upload
        assert found == expected

    asyncio.run(run())


async def test_a_listing_shows_what_each_object_is() -> None:
    desk = await Desk(SystemClock()).bucket()
    stored = await desk.put("key", b"hello")
    (entry,) = (await desk.objects.list_objects(ListObjects(bucket=BUCKET))).entries
    assert not isinstance(entry, str)
    assert (entry.key, entry.size, entry.etag) == ("key", 5, stored.etag)
    assert (entry.modified_ms, entry.checksum, entry.storage_class) == (
        stored.modified_ms,
        stored.checksum,
        "STANDARD",
    )


async def test_a_listing_of_nothing_and_of_a_bucket_that_is_not() -> None:
    desk = await Desk(SystemClock()).bucket()
    await desk.put("key", b"")
    for limit in (0, -1):
        page = await desk.objects.list_objects(ListObjects(bucket=BUCKET, limit=limit))
        assert (page.entries, page.truncated) == ((), False)
    for name in ("bucket-z", "", "x" * 100, "ünï", "a/b"):
        with pytest.raises(NoSuchBucket):
            await desk.objects.list_objects(ListObjects(bucket=name))
    with pytest.raises(InvalidKey):
        await desk.objects.list_objects(ListObjects(bucket=BUCKET, prefix="\ud800"))
    assert not (await desk.objects.list_objects(ListObjects(bucket=BUCKET, prefix="k" * 3000))).entries


async def test_twenty_thousand_keys_are_listed_each_once_and_in_order() -> None:
    clock = SystemClock()
    desk = await Desk(clock).bucket()
    for start in range(0, 20_000, 500):
        await asyncio.gather(*(desk.put(f"k{start + at:06}", b"x") for at in range(500)))
    keys: list[str] = []
    after = ""
    while True:
        page = await desk.objects.list_objects(ListObjects(bucket=BUCKET, after=after))
        keys += [entry.key for entry in page.entries if isinstance(entry, ListedObject)]
        if not page.truncated:
            break
        after = page.next_after
    assert keys == [f"k{number:06}" for number in range(20_000)]


async def test_buckets_are_listed_by_name_and_page() -> None:
    desk = Desk(SystemClock())
    for name in ("beta", "alpha", "alpine", "gamma"):
        await desk.objects.create_bucket(name, None)

    async def listed(prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
        return [bucket.name for bucket in await desk.objects.list_buckets(prefix, after, limit)]

    assert await listed() == ["alpha", "alpine", "beta", "gamma"]
    assert await listed("al") == ["alpha", "alpine"]
    assert await listed("", "alpha", 2) == ["alpine", "beta"]
    assert await listed("al", "b") == []
    assert await listed(limit=0) == []
