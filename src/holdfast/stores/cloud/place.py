"""The place of a bucket store: finding who lives there, and moving in.

    <prefix>/holdfast-store.json                        who: made once, never changed, never written over
    <prefix>/noted/<turn>.<incarnation>.<revision>      the highest index revision seen; the last name counts

What must hold: nothing but a probe is written to a bucket before it has been judged to be ours or empty; of
two who move in at once one wins, because the name is made by a conditional write; and what was noted never
goes back, whoever notes, because a note is a new name and older ones are removed after it is there. A
bucket has no lock: several nodes of one cluster may use it side by side.
"""

import contextlib
import re

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal
from holdfast.stores.cloud.requests import PAGE, Bucket
from holdfast.stores.identity import Found, Identity, Noted
from holdfast.stores.port import ShardExists, ShardMissing

IDENTITY = "holdfast-store.json"
NOTES = "noted"
KIND = "holdfast-bucket"
FORMAT = 1

_BYTES_MAX = 64 << 10
_STRANGERS_TOLD = 3
_NOTE = re.compile(r"([0-9]{8})\.([A-Za-z0-9_-]{1,64})\.([0-9]{20})\Z")


class Resident(Struct, frozen=True):
    """Who lives in a bucket. `key` is the id of the key that it was first sealed with, in hexadecimal digits;
    empty where it is not sealed."""

    identity: Identity
    key: str = ""


class _File(Struct, frozen=True):
    kind: str
    format: int
    store: str
    cluster: str
    slot: str
    key: str
    crc32c: str | msgspec.UnsetType = msgspec.UNSET


class _Header(Struct):
    kind: str = ""
    format: int = 0


def encode_resident(resident: Resident) -> bytes:
    """The file: JSON that a person can read, with a checksum."""
    who = resident.identity
    return seal(_File(KIND, FORMAT, str(who.store), who.cluster, who.slot, resident.key))


def decode_resident(raw: bytes) -> Resident:
    """Who a file says lives there, without what was noted. Raises Damaged."""
    try:
        header = msgspec.json.decode(raw, type=_Header)
        if header.kind != KIND:
            raise Damaged(f"Its {IDENTITY} is not one of Holdfast's for a bucket.")
        if header.format != FORMAT:
            raise Damaged(
                f"Its {IDENTITY} has format {header.format}, and this Holdfast knows format {FORMAT}.",
                hint="Use the version of Holdfast that wrote it, or a newer one.",
            )
        file = msgspec.json.decode(raw, type=_File)
    except NOT_JSON:
        raise Damaged(f"Its {IDENTITY} cannot be read.") from None
    if is_spoiled(raw) or file.crc32c is msgspec.UNSET:
        raise Damaged(f"Its {IDENTITY} is damaged: the checksum does not fit.")
    return Resident(Identity(StoreId(file.store), file.cluster, file.slot), file.key)


async def look(bucket: Bucket, timeout_s: float) -> tuple[Found, Resident | None]:
    """Who lives there, without touching anything. Raises what requests raise."""
    try:
        raw = await bucket.read_small(IDENTITY, _BYTES_MAX, timeout_s)
    except ShardMissing:
        strangers = await bucket.first(_STRANGERS_TOLD, timeout_s)
        ours = [path for path in strangers if path.startswith(("probe/", f"{NOTES}/"))]
        if len(ours) == len(strangers) == _STRANGERS_TOLD:
            strangers = await bucket.first(1000, timeout_s)
        strangers = [path for path in strangers if path not in ours and not path.startswith("probe/")]
        return Found(exists=True, strangers=tuple(strangers[:_STRANGERS_TOLD])), None
    try:
        resident = decode_resident(raw)
    except Damaged as error:
        return Found(exists=True, problem=str(error)), None
    noted = newest(await _notes(bucket, timeout_s))
    identity = msgspec.structs.replace(resident.identity, noted=noted)
    return Found(exists=True, identity=identity), msgspec.structs.replace(resident, identity=identity)


async def move_in(bucket: Bucket, resident: Resident, timeout_s: float) -> None:
    """Make it theirs. Raises InvalidInput when somebody else was quicker, and what requests raise."""
    try:
        await bucket.create(IDENTITY, encode_resident(resident), timeout_s)
    except ShardExists:
        raise InvalidInput(
            f"Somebody else moved into {bucket.address} at the same time.", hint="Name another prefix."
        ) from None


def newest(names: list[str]) -> Noted | None:
    """What the notes of these names say, which are in order."""
    found = [match for name in names if (match := _NOTE.match(name))]
    return Noted(found[-1][2], int(found[-1][3])) if found else None


def note_name(before: list[str], noted: Noted) -> str:
    """What a note is called that comes after those of the names."""
    found = [match for name in before if (match := _NOTE.match(name))]
    turn = int(found[-1][1]) if found else 0
    if not found or found[-1][2] != noted.incarnation:
        turn += 1
    name = f"{turn:08d}.{noted.incarnation}.{noted.revision:020d}"
    assert _NOTE.match(name), name
    return name


async def note(bucket: Bucket, noted: Noted, timeout_s: float) -> Noted:
    """Note a revision; answers what is noted then, which is more where somebody else noted more."""
    before = await _notes(bucket, timeout_s)
    name = note_name(before, noted)
    if before and name <= before[-1]:
        found = newest(before)
        assert found is not None
        return found
    with contextlib.suppress(ShardExists):  # another node has noted the same
        await bucket.create(f"{NOTES}/{name}", b"", timeout_s)
    for older in before:
        await bucket.remove(f"{NOTES}/{older}", timeout_s)
    return noted


async def _notes(bucket: Bucket, timeout_s: float) -> list[str]:
    found: list[str] = []
    while page := await bucket.page(NOTES, found[-1] if found else "", PAGE, timeout_s):
        found += [name for name, _ in page]
        if len(page) < PAGE:
            break
    return sorted(name for name in found if _NOTE.match(name))
