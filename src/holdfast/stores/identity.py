"""Who a store is, and whether what was found at its place is that store.

Every store keeps an identity: its uuid, the cluster and the slot it belongs to, and the highest index
revision it has seen. When a store is attached, what was found is judged against what was expected, so
that a swapped, stale, foreign or empty disk is recognised before anything is read from or written to
it. What must hold: only READY and NEW are ever written to; whatever is in doubt is FOREIGN.

Pure: finding is the adapters' work. The file's layout is in `docs/formats.md`.
"""

import msgspec
from msgspec import Struct

from holdfast.base.checksums import crc32c
from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.base.sealed import NOT_JSON
from holdfast.stores.port import Attachment

FORMAT = 1
KIND = "holdfast-store"


class Noted(Struct, frozen=True):
    """An index revision, of one incarnation of the index. Revisions of different incarnations have no
    order."""

    incarnation: str
    revision: int


class Identity(Struct, frozen=True):
    """Who a store is. `noted` is the highest index revision it has seen; None when it has seen none."""

    store: StoreId
    cluster: str
    slot: str
    noted: Noted | None = None


class Expected(Struct, frozen=True):
    """What should be found at a slot. `store` and `noted` (the least that the store must have seen) are
    what the index says of this slot; None when it says nothing. `device` is the one that the slot's store
    was last found on, empty when that is not known; `mounted` says that its directory was a mount point."""

    cluster: str
    slot: str
    store: StoreId | None = None
    noted: Noted | None = None
    device: str = ""
    mounted: bool = False


class Found(Struct, frozen=True):
    """What is there. `identity` when one could be read, `problem` when one is there and could not;
    `strangers` are a few entries that are not ours. `changed` are the times of the last changes of the
    directory and of its shards' folder: while they move, somebody is at work in it. `device`, and whether
    the directory is a mount point (`mounted`), are looked up where it is empty."""

    exists: bool
    identity: Identity | None = None
    problem: str = ""
    strangers: tuple[str, ...] = ()
    changed: tuple[int, ...] = ()
    device: str = ""
    mounted: bool = False


class Judgement(Struct, frozen=True):
    """What a store turned out to be, and why, as a sentence for a person."""

    attachment: Attachment
    reason: str


def judge(found: Found, expected: Expected) -> Judgement:
    """Whether `found` is the store that is `expected`."""
    if not found.exists:
        return Judgement(Attachment.MISSING, "There is no directory at this path.")
    if found.problem:
        return Judgement(Attachment.FOREIGN, found.problem)
    identity = found.identity
    if identity is None:
        return _judge_nameless(found, expected)
    if identity.cluster != expected.cluster:
        return Judgement(
            Attachment.FOREIGN,
            f"It belongs to cluster {identity.cluster!r}, not to {expected.cluster!r}.",
        )
    if identity.slot != expected.slot:
        return Judgement(
            Attachment.SWAPPED,
            f"It is slot {identity.slot!r} of this cluster, not {expected.slot!r}: were disks swapped?",
        )
    if expected.store is not None and identity.store != expected.store:
        return Judgement(
            Attachment.SWAPPED,
            f"It is store {identity.store}, but slot {expected.slot!r} holds store {expected.store}.",
        )
    if expected.noted is not None and _is_older(identity.noted, expected.noted):
        return Judgement(
            Attachment.STALE,
            f"It has seen the index up to {_told(identity.noted)}, but had seen "
            f"{_told(expected.noted)} before: is it an old copy of the disk?",
        )
    return Judgement(Attachment.READY, "It is the store that was expected.")


def index_went_back(identity: Identity, current: Noted) -> bool:
    """Whether the index shows less than this store has seen: it was rolled back, and nothing may be
    deleted on its word. Of another incarnation nothing can be said (False)."""
    seen = identity.noted
    return seen is not None and seen.incarnation == current.incarnation and seen.revision > current.revision


def is_unmounted(found: Found, expected: Expected) -> bool:
    """Whether a directory is what is below the mount point of the slot's disk, as far as can be told: not a
    mount point, while the slot's store was one or lay on another device. Two partitions of a disk are one
    device, and names of devices may change at a start, so neither fact is enough alone."""
    elsewhere = bool(expected.device and found.device) and found.device != expected.device
    return not found.mounted and (expected.mounted or elsewhere)


def _judge_nameless(found: Found, expected: Expected) -> Judgement:
    if found.strangers:
        return Judgement(
            Attachment.FOREIGN,
            f"It has no Holdfast identity and is not empty (there is {', '.join(found.strangers)}). "
            "Give an empty directory, or move what is in it elsewhere.",
        )
    if is_unmounted(found, expected):
        return Judgement(
            Attachment.MISSING,
            "Its disk is not mounted: mount it. To use the empty directory that is there as a new store, say "
            f"`holdfast store replace {expected.slot}` with its path.",
        )
    return Judgement(Attachment.NEW, "It is empty.")


def _is_older(seen: Noted | None, least: Noted) -> bool:
    """A store that once noted a new incarnation never shows an older one again."""
    return seen is None or seen.incarnation != least.incarnation or seen.revision < least.revision


def _told(noted: Noted | None) -> str:
    return f"revision {noted.revision} of incarnation {noted.incarnation!r}" if noted else "nothing"


class _Body(Struct, frozen=True, kw_only=True):
    """The identity file without its checksum; the checksum is over the compact JSON of this."""

    kind: str = KIND
    format: int = FORMAT
    store: str
    cluster: str
    slot: str
    incarnation: str = ""
    revision: int = 0


class _File(_Body, frozen=True, kw_only=True):
    crc32c: str


class _Header(Struct):
    kind: str = ""
    format: int = 0


def encode_identity(identity: Identity) -> bytes:
    """The identity file: JSON that a person can read, with a checksum."""
    noted = identity.noted
    fields = {
        "store": str(identity.store),
        "cluster": identity.cluster,
        "slot": identity.slot,
        "incarnation": noted.incarnation if noted else "",
        "revision": noted.revision if noted else 0,
    }
    file = _File(**fields, crc32c=_checksum(_Body(**fields)))  # type: ignore[arg-type]
    return msgspec.json.format(msgspec.json.encode(_in_order(file)), indent=2) + b"\n"


def decode_identity(raw: bytes) -> Identity:
    """The identity in a file. Raises Damaged with what is wrong, also for formats newer than ours."""
    try:
        header = msgspec.json.decode(raw, type=_Header)
    except NOT_JSON as error:
        raise Damaged("Its identity file cannot be read:", hint=f"{error}.") from error
    if header.kind != KIND:
        raise Damaged("Its identity file is not one of Holdfast's.")
    if header.format != FORMAT:
        raise Damaged(
            f"Its identity file has format {header.format}, and this Holdfast knows format {FORMAT}.",
            hint="Use the version of Holdfast that wrote it, or a newer one.",
        )
    try:
        file = msgspec.json.decode(raw, type=_File)
    except NOT_JSON as error:
        raise Damaged("Its identity file cannot be read:", hint=f"{error}.") from error
    body = _Body(
        store=file.store,
        cluster=file.cluster,
        slot=file.slot,
        incarnation=file.incarnation,
        revision=file.revision,
    )
    if file.crc32c != _checksum(body):
        raise Damaged("Its identity file is damaged: the checksum does not fit.")
    noted = Noted(file.incarnation, file.revision) if file.incarnation else None
    return Identity(StoreId(file.store), file.cluster, file.slot, noted)


def _checksum(body: _Body) -> str:
    return f"{crc32c(msgspec.json.encode(body)):08x}"


def _in_order(file: _File) -> dict[str, object]:
    """Fields in the order of the documentation, the checksum last."""
    fields = {name: getattr(file, name) for name in _Body.__struct_fields__}
    return fields | {"crc32c": file.crc32c}
