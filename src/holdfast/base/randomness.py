"""Randomness is passed in, so that one seed replays a whole cluster.

`SystemRandomness` asks the kernel; `SeededRandomness` is for simulations and tests and must never
make a credential.
"""

import os
import random
from typing import Protocol


class Randomness(Protocol):
    """Where chance comes from."""

    def token(self, length: int) -> bytes:
        """`length` random bytes."""
        ...

    def below(self, limit: int) -> int:
        """A whole number, 0 <= n < limit. `limit` is at least 1."""
        ...

    def fraction(self) -> float:
        """A number, 0.0 <= x < 1.0."""
        ...


class SystemRandomness:
    """The kernel's randomness: good enough for keys and ids."""

    def __init__(self) -> None:
        self._source = random.SystemRandom()
        self._pool = b""
        self._used = 0

    def token(self, length: int) -> bytes:
        # One system call fills ids for a few hundred requests; nothing of the pool is used twice.
        if length > 512:
            return os.urandom(length)
        if self._used + length > len(self._pool):
            self._pool, self._used = os.urandom(4096), 0
        start, self._used = self._used, self._used + length
        return self._pool[start : self._used]

    def below(self, limit: int) -> int:
        return self._source.randrange(limit)

    def fraction(self) -> float:
        return self._source.random()


class SeededRandomness:
    """The same numbers for the same seed."""

    def __init__(self, seed: int | str) -> None:
        self._source = random.Random(seed)

    def token(self, length: int) -> bytes:
        return self._source.randbytes(length)

    def below(self, limit: int) -> int:
        return self._source.randrange(limit)

    def fraction(self) -> float:
        return self._source.random()
