"""A swapped, stale, foreign or empty disk is recognised for what it is."""

import json

import pytest

from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.stores.identity import (
    Expected,
    Found,
    Identity,
    Noted,
    decode_identity,
    encode_identity,
    index_went_back,
    judge,
)
from holdfast.stores.port import Attachment

ME = Identity(StoreId("uuid-1"), "cluster-a", "disk1", Noted("i1", 70))
EXPECTED = Expected("cluster-a", "disk1", StoreId("uuid-1"), Noted("i1", 60))


def judged(found: Found, expected: Expected = EXPECTED) -> Attachment:
    return judge(found, expected).attachment


def test_the_store_that_was_expected_is_ready() -> None:
    assert judged(Found(True, ME)) is Attachment.READY
    assert judged(Found(True, ME), Expected("cluster-a", "disk1")) is Attachment.READY


def test_no_directory_is_missing_and_an_empty_one_is_new() -> None:
    assert judged(Found(False)) is Attachment.MISSING
    assert judged(Found(True)) is Attachment.NEW


def test_another_clusters_store_is_foreign() -> None:
    judgement = judge(Found(True, ME), Expected("cluster-b", "disk1"))
    assert judgement.attachment is Attachment.FOREIGN
    assert "'cluster-a'" in judgement.reason


def test_a_directory_with_other_things_in_it_is_foreign() -> None:
    judgement = judge(Found(True, strangers=("photos",)), EXPECTED)
    assert judgement.attachment is Attachment.FOREIGN
    assert "photos" in judgement.reason
    assert "empty directory" in judgement.reason


def test_an_identity_that_cannot_be_read_is_foreign_and_says_why() -> None:
    judgement = judge(Found(True, problem="Its identity file is damaged."), EXPECTED)
    assert (judgement.attachment, judgement.reason) == (Attachment.FOREIGN, "Its identity file is damaged.")


def test_another_slot_or_another_store_in_this_slot_is_swapped() -> None:
    assert judged(Found(True, ME), Expected("cluster-a", "disk2")) is Attachment.SWAPPED
    assert judged(Found(True, ME), Expected("cluster-a", "disk1", StoreId("uuid-2"))) is Attachment.SWAPPED


@pytest.mark.parametrize("noted", [None, Noted("i1", 59), Noted("i0", 1000)])
def test_a_store_that_shows_less_than_it_had_noted_is_stale(noted: Noted | None) -> None:
    old = Identity(ME.store, ME.cluster, ME.slot, noted)
    assert judged(Found(True, old)) is Attachment.STALE


def test_an_index_that_shows_less_than_a_store_has_seen_went_back() -> None:
    assert index_went_back(ME, Noted("i1", 69))
    assert not index_went_back(ME, Noted("i1", 70))
    assert not index_went_back(ME, Noted("i2", 1))
    assert not index_went_back(Identity(ME.store, ME.cluster, ME.slot), Noted("i1", 1))


@pytest.mark.parametrize("identity", [ME, Identity(StoreId("u"), "ü cluster", "s")])
def test_an_identity_survives_its_file(identity: Identity) -> None:
    assert decode_identity(encode_identity(identity)) == identity


def test_the_file_is_json_with_the_documented_fields() -> None:
    fields = json.loads(encode_identity(ME))
    assert list(fields) == [
        "kind", "format", "store", "cluster", "slot", "incarnation", "revision", "crc32c"
    ]  # fmt: skip
    assert (fields["kind"], fields["format"], fields["revision"]) == ("holdfast-store", 1, 70)


def test_no_changed_byte_of_the_file_goes_unnoticed() -> None:
    raw = encode_identity(ME)
    for position in range(len(raw)):
        for mask in (0x01, 0x10):
            spoiled = bytearray(raw)
            spoiled[position] ^= mask
            try:
                assert decode_identity(bytes(spoiled)) == ME  # white space between fields
            except Damaged:
                continue


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"\xff", b'{"kind": "holdfast-store", "format": 1}'])
def test_a_file_that_is_none_is_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        decode_identity(raw)


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    fields = json.loads(encode_identity(ME)) | {"format": 2}
    with pytest.raises(Damaged, match=r"format 2.*newer"):
        decode_identity(json.dumps(fields).encode())
