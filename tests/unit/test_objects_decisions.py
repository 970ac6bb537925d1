"""The pure parts of objects, each against something dumber: conditions, ranges, keys, cuts, rows."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.errors import Damaged
from holdfast.base.ids import PackId, UploadId, VersionId
from holdfast.index.port import KEY_BYTES_MAX as ROW_KEY_BYTES_MAX
from holdfast.objects import keys, rows
from holdfast.objects.conditions import check_read, check_source, check_write
from holdfast.objects.errors import (
    InvalidBucketName,
    InvalidKey,
    InvalidRange,
    KeyTooLong,
    NoSuchKey,
    NotModified,
    PreconditionFailed,
)
from holdfast.objects.model import Checksum, Conditions, ContentHeaders, VersionRecord
from holdfast.objects.ranges import cut_extents, resolve_range, within_one
from holdfast.objects.receiving import cut, weakest
from holdfast.packs.model import PACK_BYTES_MAX, Extent, Receipt
from holdfast.scheme import Scheme


def record(etag: str = "a", modified_ms: int = 5_500, extents: tuple[Extent, ...] = ()) -> VersionRecord:
    return VersionRecord(VersionId("0" * 32), 1, 10, etag, modified_ms, ContentHeaders(), (), None, extents)


etags = st.none() | st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=2).map(tuple)
times = st.none() | st.sampled_from([4_000, 5_000, 5_500, 6_000])
conditions = st.builds(Conditions, etags, etags, times, times)


def rfc_answer(c: Conditions) -> int:
    """RFC 9110, 13.2.2, step by step, for an object with ETag "a" of second 5."""
    matches = lambda tags: "*" in tags or "a" in tags  # noqa: E731
    if c.if_match is not None:
        if not matches(c.if_match):
            return 412
    elif c.if_unmodified_since_ms is not None and c.if_unmodified_since_ms // 1000 < 5:
        return 412
    if c.if_none_match is not None:
        if matches(c.if_none_match):
            return 304
    elif c.if_modified_since_ms is not None and c.if_modified_since_ms // 1000 >= 5:
        return 304
    return 200


def outcome(check: object, *arguments: object) -> int:
    try:
        check(*arguments)  # type: ignore[operator]
    except PreconditionFailed:
        return 412
    except NotModified:
        return 304
    except NoSuchKey:
        return 404
    return 200


@given(conditions)
def test_conditions_of_reads_follow_the_rfc(c: Conditions) -> None:
    assert outcome(check_read, c, record()) == rfc_answer(c)


@given(conditions)
def test_a_copy_source_that_is_unchanged_fails_its_precondition(c: Conditions) -> None:
    expected = rfc_answer(c)
    assert outcome(check_source, c, record()) == (412 if expected == 304 else expected)


@given(conditions, st.booleans())
def test_conditions_of_writes_look_at_what_is_there(c: Conditions, exists: bool) -> None:
    if exists:
        late = (
            c.if_match is None and rfc_answer(Conditions(None, None, None, c.if_unmodified_since_ms)) == 412
        )
        mismatch = c.if_match is not None and not {"a", "*"} & set(c.if_match)
        present = c.if_none_match is not None and bool({"a", "*"} & set(c.if_none_match))
        expected = 412 if late or mismatch or present else 200
    else:
        expected = 404 if c.if_match is not None else 200
    assert outcome(check_write, c, record() if exists else None, "key") == expected


def test_a_failed_condition_names_its_header() -> None:
    with pytest.raises(PreconditionFailed) as caught:
        check_write(Conditions(if_none_match=("*",)), record(), "key")
    assert caught.value.facts["condition"] == "If-None-Match"


bounds = st.none() | st.integers(0, 30)


@given(bounds, bounds, st.integers(0, 20))
def test_a_range_names_the_bytes_that_slicing_names(first: int | None, last: int | None, size: int) -> None:
    data = bytes(range(size))
    if first is None and last is None:
        assert resolve_range((None, None), size) is None
        return
    if first is not None and last is not None and last < first:
        assert resolve_range((first, last), size) is None
        return
    if first is None:
        assert last is not None
        expected = data[size - last :] if 0 < last < size else (data if last else b"")
    else:
        expected = data[first : None if last is None else last + 1]
    if not expected:
        with pytest.raises(InvalidRange) as caught:
            resolve_range((first, last), size)
        assert caught.value.facts["size"] == size
        return
    span = resolve_range((first, last), size)
    assert span is not None
    assert data[span.first : span.first + span.length] == expected


extents = st.lists(st.integers(0, 5), max_size=6).map(
    lambda sizes: [Extent(PackId(bytes([place]) * 16), 10 * place, size) for place, size in enumerate(sizes)]
)


@given(extents, st.data())
def test_extents_are_cut_to_exactly_the_bytes_asked_for(found: list[Extent], data: st.DataObject) -> None:
    names = [(extent.pack, extent.offset + at) for extent in found for at in range(extent.length)]
    first = data.draw(st.integers(0, max(len(names) - 1, 0)))
    length = data.draw(st.integers(0, len(names) - first)) if names else 0
    pieces, inside = cut_extents(found, first, length)
    covered = [(extent.pack, extent.offset + at) for extent in pieces for at in range(extent.length)]
    assert covered[inside : inside + length] == names[first : first + length]
    assert all(extent.length for extent in pieces)
    if length:
        one = within_one(found, first, length)
        single = len({pack for pack, _ in names[first : first + length]}) == 1
        assert (one is not None) == single
        if one is not None:
            assert [(one.pack, one.offset + at) for at in range(one.length)] == names[first : first + length]


@given(st.integers(1, 200 << 20))
def test_a_body_is_cut_into_packs_that_fit_and_add_up(length: int) -> None:
    sizes = cut(length)
    assert sum(sizes) == length
    assert all(0 < size <= PACK_BYTES_MAX for size in sizes)
    assert len(sizes) <= -(-length // PACK_BYTES_MAX) + 1


@pytest.mark.parametrize("name", ["abc", "a-b.c", "0" * 63, "my.bucket-1", "a1b"], ids=lambda name: name[:12])
def test_a_bucket_can_have_this_name(name: str) -> None:
    keys.check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "ab", "a" * 64, "Abc", "a_b", "-ab", "ab-", ".ab", "a..b", "1.2.3.4", "xn--a", "a-s3alias", "a/b",
     "abc\n", "ab\0c", "ünïcode"],
)  # fmt: skip
def test_a_bucket_cannot_have_this_name(name: str) -> None:
    with pytest.raises(InvalidBucketName):
        keys.check_bucket_name(name)


@pytest.mark.parametrize("key", ["a", "../..", "//", "%2e", "a\nb", "ü" * 512, "\x01", "\uffff", "😀"])
def test_a_key_can_be_almost_anything(key: str) -> None:
    assert keys.encode_key(key).decode() == key


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", InvalidKey),
        ("a\0b", InvalidKey),
        ("\ud800", InvalidKey),
        ("a" * 1025, KeyTooLong),
        ("ü" * 513, KeyTooLong),
    ],
    ids=range(5),
)
def test_a_key_that_is_impossible_is_refused(key: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        keys.encode_key(key)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)


@given(texts, texts)
def test_rows_sort_as_keys_do_and_uploads_stay_with_their_key(one: str, other: str) -> None:
    first, second = one.encode(), other.encode()
    assert (keys.head_row("b", first) < keys.head_row("b", second)) == (first < second)
    low, high = UploadId("0" * 32), UploadId("f" * 32)
    if first < second:
        assert keys.upload_row("b", first, high) < keys.upload_row("b", second, low)
    assert keys.version_row("b", first, 7) < keys.version_row("b", first, 6)
    assert keys.version_row("b", first, 1 << 40).startswith(keys.versions("b"))


def test_the_longest_names_fit_the_index() -> None:
    bucket, key = "b" * 63, b"k" * 1024
    assert len(keys.version_row(bucket, key, 0)) <= ROW_KEY_BYTES_MAX
    assert len(keys.upload_row(bucket, key, UploadId("0" * 32))) <= ROW_KEY_BYTES_MAX


def test_a_head_row_written_in_one_go_reads_back_whole_and_as_a_listing() -> None:
    checksum = Checksum(ChecksumAlgorithm.SHA256, b"x" * 32)
    current = msgspec.structs.replace(
        record(extents=(Extent(PackId(b"p" * 16), 3, 10),)),
        metadata=(("name", "value"),),
        checksum=checksum,
        scheme=Scheme(4, 2),
        storage_class="GLACIER",
    )
    value = rows.encode_head(rows.encode_record(current), "request", ())
    head = rows.decode_head(value)
    assert (head.current, head.request, head.order) == (current, "request", 1)
    listed = rows.decode_listed(value).current
    assert (listed.size, listed.etag, listed.checksum, listed.storage_class) == (10, "a", checksum, "GLACIER")


def test_a_head_row_remembers_the_last_few_results_and_no_more() -> None:
    head = rows.decode_head(rows.encode_head(rows.encode_record(record()), "r0", ()))
    for number in range(1, 10):
        later = rows.encode_record(record(etag=str(number)))
        head = rows.decode_head(rows.encode_head(later, f"r{number}", rows.remember(head)))
    assert [result.request for result in head.earlier] == ["r8", "r7", "r6"]
    assert len(head.earlier) + 1 == rows.REMEMBERED_MAX


@pytest.mark.parametrize("value", [b"", b"\xff", b"\x91\x01", msgspec.msgpack.encode([2, 1, {}, ""])])
def test_a_row_that_cannot_be_understood_is_called_damaged(value: bytes) -> None:
    with pytest.raises(Damaged):
        rows.decode_head(value)


def test_a_row_of_another_format_is_refused_by_number() -> None:
    row = rows.DeadRow(99, 1, "cause")
    with pytest.raises(Damaged, match="format 99"):
        rows.decode_dead(rows.encode(row))


def test_the_receipt_of_several_packs_is_the_weakest_at_each_level() -> None:
    strong = Receipt(Scheme(4, 2), 6, 6, {"store": 2, "host": 2}, False)
    weak = Receipt(Scheme(4, 2), 5, 6, {"store": 1, "host": 2}, True)
    other = Receipt(Scheme(2, 2), 4, 4, {"store": 2, "host": 0}, False)
    both = weakest([strong, weak, other])
    assert both.survives == {"store": 1, "host": 0}
    assert both.debt
    assert (both.shards_durable, both.shards_total) == (5, 6)
