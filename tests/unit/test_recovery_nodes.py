"""What a new index begins with of the nodes of the old one, and where it is not begun."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.cluster.rows import (
    CLUSTER_ROW,
    FORMAT,
    STOPPING_ROW,
    ClusterRow,
    FenceRow,
    NodeRow,
    RemovedRow,
    StoppingRow,
    beat_row,
    decode,
    encode,
    fence_row,
    node_row,
    removed_row,
)
from holdfast.index.copying import RECOVERY, Kind, Standing
from holdfast.index.port import Row, lease_row
from holdfast.node.recovering import held_at_most
from holdfast.node.recovering_shared import refused
from holdfast.recovery.nodes import known_nodes, settle_nodes
from holdfast.recovery.scratch import Scratch
from holdfast.scheme import Scheme
from holdfast.topology import Location
from tests.unit.test_cluster_rows import BEAT, NODE

CLUSTER = "holdfast-0123456789abcdef"
CHECK = b"c" * 32
OURS = "ab" * 16


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    scratch = Scratch(None)
    yield scratch
    scratch.close()


def put(scratch: Scratch, key: bytes, value: bytes) -> None:
    scratch.put_rows([Row(key, value, 7)])


def settle(scratch: Scratch, **present: str) -> list[str]:
    return settle_nodes(scratch, CLUSTER, [CHECK], present, 1, iter(range(100, 200)).__next__)


def test_members_stay_and_what_tells_of_processes_goes(scratch: Scratch) -> None:
    cluster = encode(ClusterRow(FORMAT, CLUSTER, CHECK, 5))
    put(scratch, CLUSTER_ROW, cluster)
    for name in ("n1", "n2"):
        put(scratch, node_row(name), encode(replace(NODE, ahead=name == "n2")))
        put(scratch, beat_row(name), encode(BEAT))
        put(scratch, fence_row(name, "1"), encode(FenceRow(FORMAT, "cd" * 8)))
    put(scratch, removed_row("n3"), encode(RemovedRow(FORMAT, "ef" * 16)))
    put(scratch, STOPPING_ROW, encode(StoppingRow(FORMAT, "n1", "cd" * 8, 3)))
    put(scratch, lease_row("repair"), b"somebody")
    put(scratch, b"bucket/b", b"a row of objects")

    assert settle(scratch, n1=NODE.uuid) == []
    kept = {row.key: row.value for row in scratch.scan(b"")}
    assert kept == {
        CLUSTER_ROW: cluster,
        node_row("n1"): encode(NODE),
        # What its stores had seen was of the index that is gone.
        node_row("n2"): encode(NODE),
        removed_row("n3"): encode(RemovedRow(FORMAT, "ef" * 16)),
        b"bucket/b": b"a row of objects",
    }
    assert [node.name for node in known_nodes(scratch)] == ["n1", "n2"]


def test_a_node_that_lost_its_data_folder_joins_anew(scratch: Scratch) -> None:
    put(scratch, node_row("n1"), encode(NODE))
    put(scratch, node_row("n2"), encode(NODE))
    (told,) = settle(scratch, n1="99" * 16, n2="")
    assert "node n1 has another data folder" in told
    assert [node.name for node in known_nodes(scratch)] == ["n2"]


def test_the_secret_is_that_of_the_nodes(scratch: Scratch) -> None:
    settle(scratch)
    (row,) = scratch.get([CLUSTER_ROW])
    assert row is not None
    assert decode(ClusterRow, row.value) == ClusterRow(FORMAT, CLUSTER, CHECK, 1)
    put(scratch, CLUSTER_ROW, encode(ClusterRow(FORMAT, CLUSTER, b"another", 5)))
    (told,) = settle(scratch)
    assert "another secret" in told
    (row,) = scratch.get([CLUSTER_ROW])
    assert row is not None
    assert decode(ClusterRow, row.value) == ClusterRow(FORMAT, CLUSTER, CHECK, 5)
    put(scratch, CLUSTER_ROW, encode(ClusterRow(FORMAT, "holdfast-another", CHECK, 5)))
    with pytest.raises(InvalidInput, match="holdfast-another"):
        settle(scratch)


@pytest.mark.parametrize(
    ("standing", "rows", "force", "sentence"),
    [
        (Standing(Kind.EMPTY), False, False, ""),
        (Standing(Kind.FILLING, "x", RECOVERY + OURS), False, False, ""),
        (Standing(Kind.FILLING, "x", OURS), False, True, "a copy of an index that was not finished"),
        (Standing(Kind.MOVED, OURS, "x", "etcd://there"), True, True, "was moved to etcd://there"),
        (Standing(Kind.OPEN, "founded by a node that was started too early"), False, False, ""),
        (Standing(Kind.OPEN, OURS), True, False, "The index is there"),
        (Standing(Kind.OPEN, OURS), True, True, ""),
        (Standing(Kind.OPEN, "somebody else's"), True, True, "is not empty"),
    ],
)
def test_where_an_index_is_not_made_again(standing: Standing, rows: bool, force: bool, sentence: str) -> None:
    why = refused(standing, "etcd://here", {OURS}, has_rows=rows, force=force)
    assert (why is None) == (sentence == "")
    assert sentence in str(why)


def location(node: int, store: int) -> Location:
    return Location(StoreId(f"{node}/{store}"), "eu", "a", f"n{node}", f"{node}{store}")


def test_a_node_is_missing_with_as_many_shards_as_it_may_hold() -> None:
    spread = [location(node, store) for node in (1, 2, 3) for store in range(3)]
    every = {one.store for one in spread}
    third = {one.store for one in spread if one.host == "n3"}
    # Three stores, but two shards of six each: as many as rs-4-2 can do without.
    assert held_at_most(spread, Scheme(4, 2), third, every - third) == 2
    assert held_at_most(spread, Scheme(1, 2), third, every - third) == 1
    two = third | {StoreId("2/0")}
    assert held_at_most(spread, Scheme(4, 2), two, every - two) == 3
    # One that no row tells the place of may hold one of each.
    unknown = third | {StoreId("removed")}
    assert held_at_most(spread, Scheme(4, 2), unknown, every - third) == 3
    assert held_at_most(spread, Scheme(4, 2), set(), every) == 0


def test_rows_of_a_newer_version_are_not_guessed_at(scratch: Scratch) -> None:
    row: NodeRow = replace(NODE, format=FORMAT + 1)
    put(scratch, node_row("n1"), encode(row))
    with pytest.raises(Exception, match="Update this node"):
        settle(scratch)
