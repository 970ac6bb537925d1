"""Sealed stores under test, with keys that a seed makes."""

from holdfast.base.clock import Clock, SystemClock
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.port import Store
from holdfast.stores.sealing import Key, KeyRing, SealingStore


def ring(*seeds: str) -> KeyRing:
    """A ring with a key for each seed, the last one the newest."""
    return KeyRing(tuple(Key(SeededRandomness(f"key {seed}").token(32)) for seed in seeds))


def sealed(
    inner: Store, keys: KeyRing | None = None, *, seed: str = "data keys", clock: Clock | None = None
) -> SealingStore:
    """`inner` behind a ring of one key, or behind `keys`."""
    return SealingStore(
        inner, keys or ring("first"), clock=clock or SystemClock(), randomness=SeededRandomness(seed)
    )
