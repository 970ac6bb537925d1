"""What commands did to the stores is laid over the configuration, which has the last word on what it says
anew."""

from pathlib import Path

from holdfast.base.ids import StoreId
from holdfast.node.cluster import REMOVED, REPLACED, Cluster, Draining, Labels, Retired, Slot
from holdfast.node.config import StorePlace
from holdfast.node.placing import place_stores

A, B, C, D = (Path(f"/mnt/{name}") for name in "abcd")
BASE = Cluster("ours", {"disk1": Slot(str(A), StoreId("one")), "disk2": Slot(str(B), StoreId("two"))})
NAMED = (StorePlace(A, "disk1"), StorePlace(B, "disk2"))
UNNAMED = (StorePlace(A), StorePlace(B))


def paths(places: tuple[StorePlace, ...]) -> dict[str, str]:
    return {place.slot: str(place.path) for place in places}


def removed(slot: str, path: Path, how: str = REMOVED) -> Retired:
    return Retired(slot, str(path), StoreId("old"), how, 0.0)


def test_without_commands_it_is_the_configuration() -> None:
    assert place_stores(NAMED, BASE) == (NAMED, BASE, ())


def test_an_added_store_is_there_with_its_labels() -> None:
    cluster = BASE.with_slot("disk3", Slot(str(C), StoreId("three"), added=Labels(zone="z")))
    placed = place_stores(NAMED, cluster)
    assert placed.places[2] == StorePlace(C, "disk3", zone="z")
    assert placed.remarks == ()


def test_an_added_store_that_is_configured_since_is_what_the_configuration_says() -> None:
    cluster = BASE.with_slot("disk3", Slot(str(C), StoreId("three"), added=Labels(zone="z")))
    for third in (StorePlace(C, "disk3", zone="other"), StorePlace(C)):
        placed = place_stores((*NAMED, third), cluster)
        assert placed.places == (*NAMED, third)
        assert placed.cluster.slots["disk3"].added is None
        # Taken out of the configuration again, it is not there.
        assert paths(place_stores(NAMED, placed.cluster).places) == {"disk1": "/mnt/a", "disk2": "/mnt/b"}


def test_a_removed_store_stays_away_and_that_is_said() -> None:
    cluster = BASE.without_slot("disk2").with_retired(removed("disk2", B))
    for configured in (NAMED, UNNAMED):
        placed = place_stores(configured, cluster)
        assert [place.path for place in placed.places] == [A]
        assert "disk2 at /mnt/b was removed" in placed.remarks[0]


def test_the_slot_of_a_removed_store_can_be_configured_with_another_disk() -> None:
    cluster = BASE.without_slot("disk2").with_retired(removed("disk2", B))
    configured = (StorePlace(A, "disk1"), StorePlace(C, "disk2"))
    assert place_stores(configured, cluster) == (configured, cluster, ())


def test_a_path_that_was_taken_into_use_again_is_used() -> None:
    cluster = BASE.with_retired(removed("disk2", B))
    assert place_stores(UNNAMED, cluster).places == UNNAMED


def test_a_replaced_store_is_at_its_new_path_while_the_configuration_names_the_old_one() -> None:
    cluster = BASE.with_slot("disk2", Slot(str(C), StoreId("new"), instead_of=str(B)))
    cluster = cluster.with_retired(removed("disk2", B, REPLACED))
    for configured in (NAMED, UNNAMED):
        placed = place_stores(configured, cluster)
        assert placed.places[1] == StorePlace(C, "disk2")
        assert "the configuration says /mnt/b: write the new path there" in placed.remarks[0]


def test_the_new_path_or_a_third_one_in_the_configuration_needs_no_remark() -> None:
    cluster = BASE.with_slot("disk2", Slot(str(C), StoreId("new"), instead_of=str(B)))
    for path in (C, D):
        configured = (StorePlace(A, "disk1"), StorePlace(path, "disk2"))
        placed = place_stores(configured, cluster)
        assert (placed.places, placed.remarks) == (configured, ())
    assert placed.cluster.slots["disk2"].instead_of == ""


def test_a_store_that_was_replaced_and_is_not_empty_yet_is_there_too() -> None:
    cluster = BASE.with_slot("disk2", Slot(str(C), StoreId("new"), instead_of=str(B)))
    leaving = Slot(str(B), StoreId("two"), added=Labels(), draining=Draining.YES, known_as="disk2")
    placed = place_stores(NAMED, cluster.with_slot("disk2-old", leaving))
    assert paths(placed.places) == {"disk1": "/mnt/a", "disk2": "/mnt/c", "disk2-old": "/mnt/b"}
    assert placed.cluster.slots["disk2-old"].known_as == "disk2"


def test_a_replaced_store_stays_on_its_way_out_when_its_replacement_is_removed() -> None:
    leaving = Slot(str(B), StoreId("two"), added=Labels(), draining=Draining.YES, known_as="disk2")
    cluster = BASE.without_slot("disk2").with_slot("disk2-old", leaving).with_retired(removed("disk2", C))
    for configured in (NAMED, UNNAMED):
        placed = place_stores(configured, cluster)
        assert paths(placed.places)["disk2-old"] == "/mnt/b"
        assert [place.path for place in placed.places] == [A, B]
        assert placed.cluster == cluster
        assert "/mnt/b was replaced and is still being emptied" in placed.remarks[0]
    empty = cluster.without_slot("disk2-old").with_retired(removed("disk2", B, REPLACED))
    for configured in (NAMED, UNNAMED):
        placed = place_stores(configured, empty)
        assert [place.path for place in placed.places] == [A]
        assert "disk2 at /mnt/b was removed" in placed.remarks[0]


def test_a_line_of_a_store_on_its_way_out_that_has_lost_its_labels_is_placed_all_the_same() -> None:
    leaving = Slot(str(B), StoreId("two"), draining=Draining.YES, known_as="disk2")
    placed = place_stores(NAMED, BASE.without_slot("disk2").with_slot("disk2-old", leaving))
    assert paths(placed.places) == {"disk1": "/mnt/a", "disk2-old": "/mnt/b"}
