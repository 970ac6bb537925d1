"""A store in memory, for tests and simulation."""

from holdfast.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
