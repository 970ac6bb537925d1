"""The rows of nodes: what is written is read, what is newer or spoiled is refused."""

import msgspec
import pytest

from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.cluster.rows import (
    FORMAT,
    BeatRow,
    ClusterRow,
    FenceRow,
    MemberStore,
    NodeRow,
    beat_row,
    decode,
    encode,
    fence_row,
    name_of,
    node_row,
    rows_of,
)
from holdfast.index.port import Row

STORE = MemberStore("disk1", StoreId("a-store"), "eu", "a", "n1", "sda", "ready", path="/mnt/disk1")
NODE = NodeRow(
    FORMAT,
    "ab" * 16,
    "cd" * 8,
    "1.0",
    (1,),
    "http://h:9000",
    "h:9100",
    "eu",
    "a",
    "n1",
    False,
    False,
    (STORE,),
    5,
)
BEAT = BeatRow(FORMAT, "cd" * 8, 7, 40, True)


@pytest.mark.parametrize("row", [NODE, BEAT, FenceRow(FORMAT, "cd" * 8), ClusterRow(FORMAT, "c", b"x", 1)])
def test_what_is_written_is_read(row: NodeRow | BeatRow | FenceRow | ClusterRow) -> None:
    assert decode(type(row), encode(row)) == row


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    raw = msgspec.msgpack.encode([FORMAT + 1, "something", "else"])
    with pytest.raises(Damaged, match="Update this node"):
        decode(BeatRow, raw)


@pytest.mark.parametrize("raw", [b"", b"\xc1", msgspec.msgpack.encode([]), msgspec.msgpack.encode([1, 2, 3])])
def test_what_cannot_be_read_is_damage(raw: bytes) -> None:
    with pytest.raises(Damaged):
        decode(BeatRow, raw)


def test_fields_that_a_later_version_adds_at_the_end_are_passed_over() -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode(BEAT)), "new"])
    assert decode(BeatRow, longer) == BEAT


def test_a_scan_becomes_rows_by_node() -> None:
    found = [Row(node_row("n1"), encode(NODE), 12)]
    assert rows_of(found, NodeRow) == {"n1": (NODE, 12)}
    assert name_of(beat_row("n-2")) == name_of(fence_row("n-2", "0a")) == "n-2"
