"""Keys of an installation, and the ring that holds them. Pure.

What must hold: a key's id is worked out of the key, so that no key is ever taken for another; and no key
appears in a `repr`, an error or a log. New blobs are sealed with the newest key; all of them open.
"""

import hmac

import msgspec
from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.base.sealed import FIELD, NOT_JSON, is_spoiled, seal
from holdfast.stores.port import StoreFailed

KEY_BYTES = 32
KEY_ID_BYTES = 16
KEYS_MAX = 1000
KIND = "holdfast-key-ring"
FORMAT = 1

_ID = b"holdfast sealing key id"
_WRAPPING = b"holdfast sealing wrapping key"


class KeyMissing(StoreFailed):
    """A blob is sealed with a key that is not in the ring. Nothing is known to be wrong with the blob."""


class Key:
    """One key of the installation: 32 bytes. `id` finds it and gives nothing away; `wrapping` wraps data
    keys."""

    __slots__ = ("id", "secret", "wrapping")

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == KEY_BYTES
        self.secret = secret
        self.id = hmac.digest(secret, _ID, "sha256")[:KEY_ID_BYTES]
        self.wrapping = hmac.digest(secret, _WRAPPING, "sha256")

    def __repr__(self) -> str:
        return f"Key({self.id.hex()})"


def new_key(randomness: Randomness) -> Key:
    """A key that nobody has."""
    return Key(randomness.token(KEY_BYTES))


class KeyRing:
    """Keys, the newest last. At least one, and none twice."""

    __slots__ = ("_by_id", "keys")

    def __init__(self, keys: tuple[Key, ...]) -> None:
        assert 1 <= len(keys) <= KEYS_MAX
        self.keys = keys
        self._by_id = {key.id: key for key in keys}
        assert len(self._by_id) == len(keys), "a key is in the ring twice"

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(key.id.hex() for key in self.keys)})"

    @property
    def newest(self) -> Key:
        """What new blobs are sealed with."""
        return self.keys[-1]

    def find(self, id: bytes) -> Key | None:
        """The key of that id."""
        return self._by_id.get(id)

    def joined(self, other: "KeyRing") -> "KeyRing":
        """All keys of both; those that only the other has count as older. Raises InvalidInput when they are
        too many."""
        older = tuple(key for key in other.keys if key.id not in self._by_id)
        if len(older) + len(self.keys) > KEYS_MAX:
            raise InvalidInput(f"Two key rings have more than {KEYS_MAX} keys together.")
        return KeyRing((*older, *self.keys)) if older else self

    def with_newest(self, key: Key) -> "KeyRing":
        """This ring, with a key as its newest."""
        return KeyRing((*(one for one in self.keys if one.id != key.id), key))

    def rotated(self, randomness: Randomness) -> "KeyRing":
        """This ring with a new key as its newest. Raises InvalidInput when the ring is full."""
        if len(self.keys) >= KEYS_MAX:
            raise InvalidInput(
                f"The key ring has {KEYS_MAX} keys, which is all that it can have.",
                hint="Take keys out that no blob is sealed with any more.",
            )
        return KeyRing((*self.keys, new_key(randomness)))

    def without(self, id: bytes) -> "KeyRing":
        """This ring without a key that no blob is sealed with any more. Raises InvalidInput for the newest,
        and for one that is not there."""
        if id == self.newest.id:
            raise InvalidInput(
                f"Key {id.hex()} seals new blobs and cannot leave the ring.", hint="Add a newer one first."
            )
        if id not in self._by_id:
            raise InvalidInput(f"There is no key {id.hex()} in the ring.")
        return KeyRing(tuple(key for key in self.keys if key.id != id))


class _KeyEntry(Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    key: str

    def __repr__(self) -> str:
        return f"_KeyEntry({self.id})"


class _Ring(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    format: int
    keys: tuple[_KeyEntry, ...]
    crc32c: str | msgspec.UnsetType = msgspec.UNSET


class _Head(Struct, frozen=True):
    kind: str = ""
    format: int = 0


def encode_ring(ring: KeyRing) -> bytes:
    """The content of a ring's file."""
    entries = tuple(_KeyEntry(key.id.hex(), key.secret.hex()) for key in ring.keys)
    return seal(_Ring(KIND, FORMAT, entries))


def decode_ring(raw: bytes, where: str) -> KeyRing:
    """The ring in a file that is called `where`. Raises InvalidInput; no error repeats what is in it."""
    if is_spoiled(raw):
        raise _refused(where, "is damaged: its checksum does not fit")
    try:
        head = msgspec.json.decode(raw, type=_Head)
        if head.kind != KIND:
            raise _refused(where, "is no key ring")
        if head.format != FORMAT:
            raise _refused(where, f"has format {head.format}, and this Holdfast knows format {FORMAT}")
        ring = msgspec.json.decode(raw, type=_Ring)
    except NOT_JSON:
        raise _refused(where, "cannot be read as one") from None
    if ring.crc32c is msgspec.UNSET:
        raise _refused(where, f"has no checksum (the field `{FIELD}`)")
    if not 1 <= len(ring.keys) <= KEYS_MAX:
        raise _refused(where, f"has {len(ring.keys)} keys, and 1 to {KEYS_MAX} are what it can have")
    keys = tuple(_decode_key(entry, where) for entry in ring.keys)
    if len({key.id for key in keys}) != len(keys):
        raise _refused(where, "has a key twice")
    return KeyRing(keys)


def _decode_key(entry: _KeyEntry, where: str) -> Key:
    try:
        secret = bytes.fromhex(entry.key)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES or secret.hex() != entry.key:
        raise _refused(where, f"has a key that is not {2 * KEY_BYTES} lower-case hex digits")
    key = Key(secret)
    if key.id.hex() != entry.id:
        raise _refused(where, "has a key that is not the one its id says")
    return key


def _refused(where: str, what: str) -> InvalidInput:
    return InvalidInput(f"The key ring {where} {what}.", hint="Put it back from a copy.")
