"""What the simulated clients write: bytes that follow from a name, and bodies that deliver them."""

import hashlib
import random
from collections.abc import AsyncIterator

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.clock import Clock
from holdfast.objects.model import ExpectedDigests


def make_bytes(name: str, size: int) -> bytes:
    """`size` bytes that no other name has."""
    return random.Random(name).randbytes(size)


def etag_of(data: bytes) -> str:
    """The ETag of a simple object."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def etag_of_parts(parts: list[bytes]) -> str:
    """The ETag of a multipart object."""
    digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


class ClientGone(Exception):
    """The client went away in the middle of its body."""


class SimulatedBody:
    """A request's body: arrives in pieces, with pauses. With `breaks_at`, the client goes away there; with
    `md5`, that is what it says the bytes have."""

    def __init__(
        self,
        data: bytes,
        clock: Clock,
        *,
        piece: int = 1 << 18,
        pause_s: float = 0.0,
        breaks_at: int | None = None,
        md5: bytes | None = None,
    ) -> None:
        self._data = memoryview(data)
        self._clock = clock
        self._piece = piece
        self._pause_s = pause_s
        self._breaks_at = breaks_at
        self._md5 = md5

    @property
    def length(self) -> int:
        return len(self._data)

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        return None

    def expected(self) -> ExpectedDigests:
        return ExpectedDigests(md5=self._md5)

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for at in range(0, len(self._data), self._piece):
            if self._breaks_at is not None and at >= self._breaks_at:
                raise ClientGone
            if self._pause_s:
                await self._clock.sleep(self._pause_s)
            yield self._data[at : at + self._piece]
        if self._breaks_at is not None:
            raise ClientGone
