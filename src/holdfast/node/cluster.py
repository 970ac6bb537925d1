"""Which stores belong together: the cluster's name, its slots, and the store that lives in each.

Kept in `cluster.json` in the data folder; each store carries its own line of it as its identity. So either
can be made again from the other: a lost data folder from the stores, a lost store from the data
folder. What must hold: a directory is given a slot by who it is, then by where it was, and only then as
something new, so that stores may be named in any order and disks may be mounted elsewhere; and the file
names a new store before that store exists, so that a crash in between is mended by starting again.
"""

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from enum import Enum
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import Damaged, Fenced
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal
from holdfast.cluster.claiming import new_cluster_name
from holdfast.node.config import StorePlace
from holdfast.node.config_cloud import Bucket, StorePath
from holdfast.stores.identity import Identity, Noted

FILE_NAME = "cluster.json"
FORMAT = 1
REMOVED, REPLACED = "removed", "replaced"


class Draining(Enum):
    """Whether a slot is being emptied. FORCED may give packs a smaller scheme where there are too few other
    stores for the one they have."""

    NO = ""
    YES = "yes"
    FORCED = "forced"


class Labels(Struct, frozen=True):
    """Where a store is, for one that no configuration names."""

    region: str = "local"
    zone: str = "local"
    host: str = "local"


class Slot(Struct, frozen=True):
    """A store's place. `store` is None until one has moved in; `noted` is the index revision that it
    was last known to have seen, `device` the disk it was last found on, `mounted` whether its directory was
    a mount point then.

    The rest is what commands said while the node ran. `added`: the configuration need not name it.
    `instead_of`: the path that the configuration may still name, of the directory that this one replaced.
    `known_as`: the slot in the identity of a store that was replaced and is being emptied.
    `stands_in_for`: the store in whose place it started, when it was a spare. `bucket`: all that is known of
    it, where it is one."""

    path: str
    store: StoreId | None = None
    noted: Noted | None = None
    device: str = ""
    added: Labels | None = None
    draining: Draining = Draining.NO
    instead_of: str = ""
    known_as: str = ""
    stands_in_for: str = ""
    mounted: bool = False
    bucket: Bucket | None = None

    @property
    def where(self) -> StorePath:
        """The directory or bucket that `path` says."""
        return self.bucket or Path(self.path)


class Retired(Struct, frozen=True):
    """A store that was taken out of service by command, and is not taken back. `how` is `removed` or
    `replaced`, `wall` when (seconds since 1970 UTC)."""

    slot: str
    path: str
    store: StoreId | None
    how: str
    wall: float

    @property
    def sentence(self) -> str:
        """What is said of it when it turns up again."""
        return (
            f"It is the store that was {self.how} from slot {self.slot!r}: it is not taken back. "
            "Empty what it lies in to use that as a new one."
        )


class Cluster(Struct, frozen=True):
    """All slots by name. `cluster` is random: it tells installations apart. `index` are the members that
    the index was begun with (it knows itself what became of them; none for one that is shared),
    `incarnation` says which one it is, `retired` are the stores that were removed or replaced by command.
    `node` is made with the data folder: it tells nodes of one name apart."""

    cluster: str
    slots: dict[str, Slot]
    format: int = FORMAT
    index: tuple[str, ...] = ()
    incarnation: str = ""
    retired: tuple[Retired, ...] = ()
    node: str = ""

    def with_slot(self, name: str, slot: Slot) -> "Cluster":
        """The same with another line for the slot called `name`."""
        return replace(self, slots={**self.slots, name: slot})

    def without_slot(self, name: str) -> "Cluster":
        """The same without the slot called `name`."""
        return replace(self, slots={other: slot for other, slot in self.slots.items() if other != name})

    def with_retired(self, retired: Retired) -> "Cluster":
        """The same with one more store that is not taken back."""
        return replace(self, retired=(*self.retired, retired))

    def retired_store(self, store: StoreId) -> Retired | None:
        """What is known of a store that was taken out of service; None for others."""
        return next((retired for retired in self.retired if retired.store == store), None)


def new_cluster(randomness: Randomness, name: str = "") -> Cluster:
    """An installation without stores; its name is made up if it has none yet."""
    return Cluster(name or new_cluster_name(randomness), {})


def cluster_from(
    identities: Mapping[StorePath, Identity], named: Mapping[StorePath, str] | None = None
) -> Cluster | None:
    """The installation that these stores say they belong to; None when there are none. Where two say that
    they are of one slot, one of them was being replaced by the other. Which one is not known any more: that
    which the configuration has `named` so keeps the slot, else the first; the other is used beside it, under
    another name, and nothing is emptied until somebody says so.

    Raises Fenced when they do not agree: which one is right is for a person to say.
    """
    clusters = Counter(identity.cluster for identity in identities.values())
    if not clusters:
        return None
    if len(clusters) > 1:
        of_each = "; ".join(
            f"{name}: {', '.join(str(path) for path, found in identities.items() if found.cluster == name)}"
            for name in clusters
        )
        raise Fenced(
            f"These stores belong to {len(clusters)} different clusters ({of_each}).",
            hint="Name only those of one cluster.",
        )
    slots: dict[str, Slot] = {}
    wanted = named or {}
    for path, identity in sorted(identities.items(), key=lambda one: wanted.get(one[0]) != one[1].slot):
        slot = Slot(
            str(path), identity.store, identity.noted, bucket=path if isinstance(path, Bucket) else None
        )
        if identity.slot not in slots:
            slots[identity.slot] = slot
        else:
            other = slot_beside(identity.slot, slots)
            slots[other] = replace(slot, known_as=identity.slot)
    return Cluster(next(iter(clusters)), slots)


def slot_beside(slot: str, taken: Container[str]) -> str:
    """A name for a store that was replaced in its slot, and is still there."""
    names = (f"{slot}-old{number or ''}" for number in range(10_000))
    return next(name for name in names if name not in taken)


def assign_slots(
    places: Sequence[StorePlace], cluster: Cluster, identities: Mapping[StorePath, Identity]
) -> tuple[StorePlace, ...]:
    """Every place with its slot. What the configuration names stays as it is."""
    taken = {place.slot for place in places if place.slot}
    by_path = {slot.path: name for name, slot in cluster.slots.items()}
    slots: dict[StorePath, str] = {place.path: place.slot for place in places if place.slot}
    for place in places:
        identity = identities.get(place.path)
        if place.path in slots or identity is None or identity.cluster != cluster.cluster:
            continue
        if identity.slot not in taken:
            slots[place.path] = identity.slot
            taken.add(identity.slot)
    for place in places:
        known = by_path.get(str(place.path))
        if place.path not in slots and known is not None and known not in taken:
            slots[place.path] = known
            taken.add(known)
    free = (name for number in range(1, 10_000) if (name := f"disk{number}") not in taken)
    new = (name for name in free if name not in cluster.slots)
    for place in places:
        if place.path not in slots:
            slots[place.path] = next(new)
    return tuple(replace(place, slot=slots[place.path]) for place in places)


def read_cluster(data: Path) -> Cluster | None:
    """The cluster of a data folder; None when there is none. Raises Damaged."""
    path = data / FILE_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        cluster = msgspec.json.decode(raw, type=Cluster)
    except NOT_JSON as error:
        raise Damaged(
            f"{path} cannot be read ({error}).",
            hint="Move it away: it is made again from what the stores say.",
        ) from None
    if is_spoiled(raw):
        raise Damaged(
            f"{path} is damaged: its checksum does not fit.",
            hint="Move it away: it is made again from what the stores say.",
        )
    if cluster.format != FORMAT:
        raise Damaged(
            f"{path} has format {cluster.format}, this Holdfast knows {FORMAT}.",
            hint="Use the version that wrote it, or a newer one.",
        )
    return cluster


def write_cluster(data: Path, cluster: Cluster) -> None:
    """Replace the file; durable when it returns."""
    path = data / FILE_NAME
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(seal(cluster))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
