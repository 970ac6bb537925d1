"""Which stores a node has: what the configuration says, and what commands changed since. Pure.

The configuration (file, command line, defaults) names stores; `holdfast store` adds, removes and replaces
some while the node runs. What commands did is kept in `cluster.json` and laid over the configuration at the
next start, so that nothing that was done comes undone. What must hold: the configuration has the last word
on what it says anew, that is on a path it did not name when the command was given; and where it still names
what a command did away with, a remark says what to change in it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from holdfast.node.cluster import REMOVED, Cluster, Labels
from holdfast.node.config import StorePlace


class Placed(NamedTuple):
    """The stores to attach, the cluster's lines as they are then, and what a person should know."""

    places: tuple[StorePlace, ...]
    cluster: Cluster
    remarks: tuple[str, ...]


def place_stores(configured: Sequence[StorePlace], cluster: Cluster) -> Placed:
    """What is configured, without what was removed, with what was added, and with what was replaced at its
    new path."""
    places: list[StorePlace] = []
    remarks: list[str] = []
    for place in configured:
        if (name := _replaced(place, cluster)) is not None:
            path = cluster.slots[name].where
            remarks.append(
                f"{name} is at {path} since `holdfast store replace`; the configuration says {place.path}: "
                "write the new path there."
            )
            places.append(replace(place, slot=name, path=path))
        elif (heir := _leaving(place, cluster)) is not None:
            remarks.append(
                f"{place.path} was replaced and is still being emptied; {heir}, which took its place, was "
                "removed: take it out of the configuration."
            )
        elif (name := _removed(place, cluster)) is not None:
            remarks.append(
                f"{name} at {place.path} was removed with `holdfast store remove` and is not used: take it "
                "out of the configuration."
            )
        else:
            places.append(place)
            cluster = _as_configured(place, cluster)
    named = {place.slot for place in places} | {str(place.path) for place in places}
    for name, slot in cluster.slots.items():
        is_ours = slot.added is not None or slot.known_as
        if is_ours and name not in named and slot.path not in named:
            at = slot.added or Labels()
            places.append(StorePlace(slot.where, name, at.region, at.zone, at.host))
    return Placed(tuple(places), cluster, tuple(remarks))


def _replaced(place: StorePlace, cluster: Cluster) -> str | None:
    """The slot that has moved away from the path that is configured for it."""
    for name, slot in cluster.slots.items():
        if slot.instead_of == str(place.path) and place.slot in ("", name):
            return name
    return None


def _leaving(place: StorePlace, cluster: Cluster) -> str | None:
    """The slot whose store was replaced by another, and is at this path until it is empty. It is not that
    slot again because its replacement has gone: two lines would have one store, and the old one never end."""
    for slot in cluster.slots.values():
        if slot.known_as and slot.path == str(place.path) and place.slot in ("", slot.known_as):
            return slot.known_as
    return None


def _removed(place: StorePlace, cluster: Cluster) -> str | None:
    """The slot that was removed from this path, or from the one that replaced it, unless the path was taken
    into use again."""
    path = str(place.path)
    if any(slot.path == path for slot in cluster.slots.values()):
        return None
    gone_for_good = {retired.slot for retired in cluster.retired if retired.how == REMOVED} - {*cluster.slots}
    removed = (
        retired
        for retired in reversed(cluster.retired)
        if retired.how == REMOVED or retired.slot in gone_for_good
    )
    return next((gone.slot for gone in removed if gone.path == path and place.slot in ("", gone.slot)), None)


def _as_configured(place: StorePlace, cluster: Cluster) -> Cluster:
    """What commands said of a slot that the configuration names holds only as far as they do not differ."""
    for name, slot in cluster.slots.items():
        if name == place.slot or slot.path == str(place.path):
            moved = slot.path != str(place.path)
            slot = replace(slot, added=None, instead_of="" if moved else slot.instead_of)
            cluster = cluster.with_slot(name, slot)
    return cluster
