"""Client-side encryption: any store, holding ciphertext alone (docs/formats-cloud.md, Sealed blobs)."""

from holdfast.stores.sealing.keys import Key, KeyMissing, KeyRing
from holdfast.stores.sealing.ring_file import change_ring, create_ring, read_ring, save_ring
from holdfast.stores.sealing.store import SealingStore
from holdfast.stores.sealing.survey import KeysInUse

__all__ = [
    "Key",
    "KeyMissing",
    "KeyRing",
    "KeysInUse",
    "SealingStore",
    "change_ring",
    "create_ring",
    "read_ring",
    "save_ring",
]
