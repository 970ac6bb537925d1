"""Slots: a directory is who it is, then where it was, and only then something new."""

from pathlib import Path

import pytest

from holdfast.base.errors import Damaged, Fenced
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.node.cluster import (
    FILE_NAME,
    Cluster,
    Draining,
    Slot,
    assign_slots,
    cluster_from,
    new_cluster,
    read_cluster,
    write_cluster,
)
from holdfast.node.config import StorePlace
from holdfast.stores.identity import Identity, Noted

A, B, C = Path("/mnt/a"), Path("/mnt/b"), Path("/mnt/c")


def places(*paths: Path) -> tuple[StorePlace, ...]:
    return tuple(StorePlace(path) for path in paths)


def identity(slot: str, cluster: str = "ours") -> Identity:
    return Identity(StoreId(f"id-{slot}"), cluster, slot)


def slots(assigned: tuple[StorePlace, ...]) -> dict[str, str]:
    return {str(place.path): place.slot for place in assigned}


def test_new_directories_are_numbered_in_order() -> None:
    assert slots(assign_slots(places(B, A), Cluster("ours", {}), {})) == {
        "/mnt/b": "disk1",
        "/mnt/a": "disk2",
    }


def test_names_of_the_configuration_stay() -> None:
    named = (StorePlace(A), StorePlace(B, slot="disk1"))
    assert slots(assign_slots(named, Cluster("ours", {}), {})) == {"/mnt/a": "disk2", "/mnt/b": "disk1"}


def test_a_store_that_was_being_replaced_and_its_heir_are_both_used() -> None:
    """The data folder is lost while `holdfast store replace` is under way: two say that they are disk2."""
    old, new = Identity(StoreId("old"), "ours", "disk2"), Identity(StoreId("new"), "ours", "disk2")
    seen = {A: identity("disk1"), B: old, C: new}
    cluster = cluster_from(seen)
    assert cluster is not None
    assert {name: line.store for name, line in cluster.slots.items()} == {
        "disk1": "id-disk1",
        "disk2": "old",
        "disk2-old": "new",
    }
    assert slots(assign_slots(places(A, B, C), cluster, seen)) == {
        "/mnt/a": "disk1",
        "/mnt/b": "disk2",
        "/mnt/c": "disk2-old",
    }
    # Each is expected to say of itself what it says, and neither is emptied before somebody decides.
    assert cluster.slots["disk2-old"].known_as == "disk2"
    assert {line.draining for line in cluster.slots.values()} == {Draining.NO}
    # The configuration knows where the slot is now.
    named = cluster_from(seen, {C: "disk2"})
    assert named is not None
    assert {name: line.store for name, line in named.slots.items()} == {
        "disk1": "id-disk1",
        "disk2": "new",
        "disk2-old": "old",
    }
    configured = (StorePlace(A), StorePlace(B), StorePlace(C, slot="disk2"))
    assert slots(assign_slots(configured, named, seen)) == {
        "/mnt/a": "disk1",
        "/mnt/b": "disk2-old",
        "/mnt/c": "disk2",
    }


def test_disks_that_are_mounted_elsewhere_keep_their_slots() -> None:
    cluster = Cluster("ours", {"disk1": Slot("/mnt/a"), "disk2": Slot("/mnt/b")})
    seen = {A: identity("disk2"), B: identity("disk1")}
    assert slots(assign_slots(places(A, B), cluster, seen)) == {"/mnt/a": "disk2", "/mnt/b": "disk1"}


def test_a_directory_that_is_away_keeps_the_slot_of_its_path() -> None:
    cluster = Cluster("ours", {"disk1": Slot("/mnt/a"), "disk2": Slot("/mnt/b")})
    assert slots(assign_slots(places(B, A), cluster, {})) == {"/mnt/a": "disk1", "/mnt/b": "disk2"}


def test_one_more_directory_never_gets_the_slot_of_one_that_is_not_named_now() -> None:
    cluster = Cluster("ours", {"disk1": Slot("/mnt/a"), "disk2": Slot("/mnt/b")})
    assert slots(assign_slots(places(A, C), cluster, {})) == {"/mnt/a": "disk1", "/mnt/c": "disk3"}


def test_strangers_do_not_choose_slots() -> None:
    cluster = Cluster("ours", {"disk1": Slot("/mnt/a")})
    seen = {A: identity("disk7", cluster="theirs")}
    assert slots(assign_slots(places(A), cluster, seen)) == {"/mnt/a": "disk1"}


def test_two_copies_of_one_store_do_not_share_a_slot() -> None:
    seen = {A: identity("disk1"), B: identity("disk1")}
    assigned = slots(assign_slots(places(A, B), Cluster("ours", {}), seen))
    assert assigned == {"/mnt/a": "disk1", "/mnt/b": "disk2"}


def test_a_lost_data_folder_is_made_again_from_the_stores() -> None:
    noted = Noted("first", 9)
    found = cluster_from({A: identity("disk1"), B: Identity(StoreId("id-b"), "ours", "disk2", noted)})
    assert found == Cluster(
        "ours",
        {"disk1": Slot("/mnt/a", StoreId("id-disk1")), "disk2": Slot("/mnt/b", StoreId("id-b"), noted)},
    )
    assert cluster_from({}) is None


def test_stores_of_two_clusters_are_not_mixed() -> None:
    with pytest.raises(Fenced, match="2 different clusters"):
        cluster_from({A: identity("disk1"), B: identity("disk2", cluster="theirs")})


def test_the_file_says_again_what_was_written(tmp_path: Path) -> None:
    cluster = new_cluster(SeededRandomness(1)).with_slot(
        "disk1", Slot("/mnt/a", StoreId("one"), Noted("first", 7), "disk-x")
    )
    assert read_cluster(tmp_path) is None
    write_cluster(tmp_path, cluster)
    assert read_cluster(tmp_path) == cluster
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "[]", '{"cluster": 1}', '{"cluster": "x", "slots": {}, "format": 2}'])
def test_a_file_that_cannot_be_understood_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(Damaged):
        read_cluster(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == text
