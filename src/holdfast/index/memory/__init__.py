"""The index in memory: for simulations and tests; nothing of it outlives the process."""

from holdfast.index.memory.index import Fault, MemoryIndex, Mishap
from holdfast.index.memory.rows import MemoryRows

__all__ = ["Fault", "MemoryIndex", "MemoryRows", "Mishap"]
