"""Names of things. All ids come from injected randomness; none carries a clock.

A `PackId` is 16 random bytes, written as 32 lower-case hex digits wherever text is needed. A shard's
name at its store is `<pack>.<shard>.<attempt>`; it is used once and never again.
"""

from typing import NewType

from holdfast.base.randomness import Randomness

PackId = NewType("PackId", bytes)
StoreId = NewType("StoreId", str)
VersionId = NewType("VersionId", str)
UploadId = NewType("UploadId", str)
RequestId = NewType("RequestId", str)

PACK_ID_BYTES = 16


def new_pack_id(randomness: Randomness) -> PackId:
    """16 random bytes."""
    return PackId(randomness.token(PACK_ID_BYTES))


def new_version_id(randomness: Randomness) -> VersionId:
    """32 hex digits; unique, without order (versions are ordered by the counter in their head row)."""
    return VersionId(randomness.token(16).hex())


def new_upload_id(randomness: Randomness) -> UploadId:
    """32 hex digits."""
    return UploadId(randomness.token(16).hex())


def new_store_id(randomness: Randomness) -> StoreId:
    """A version 4 UUID in its usual text form; identifies a store for its lifetime."""
    raw = bytearray(randomness.token(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return StoreId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


def is_repeatable(request: str) -> bool:
    """Whether this is an id that a balancer gave, which is the same for all tries of a request: 32 lower-case
    hex digits. Those that nodes give are shorter, and no other try ever bears them."""
    return len(request) == 32 and all(digit in "0123456789abcdef" for digit in request)


def shard_name(pack: PackId, shard: int, attempt: int) -> str:
    """The name of one shard at its store: `<32 hex>.<shard>.<attempt>`."""
    return f"{pack.hex()}.{shard}.{attempt}"


def parse_shard_name(name: str) -> tuple[PackId, int, int] | None:
    """The parts of a shard name, or None when `name` is not one."""
    parts = name.split(".")
    if len(parts) != 3 or len(parts[0]) != 2 * PACK_ID_BYTES:
        return None
    try:
        pack, shard, attempt = PackId(bytes.fromhex(parts[0])), int(parts[1]), int(parts[2])
    except ValueError:
        return None
    return (pack, shard, attempt) if shard_name(pack, shard, attempt) == name else None
