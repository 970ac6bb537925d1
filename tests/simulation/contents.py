"""What the simulated clients write: bytes that follow from a name, and bodies that deliver them."""

import hashlib
import random
from collections.abc import AsyncIterator
from functools import cache

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.clock import Clock
from holdfast.objects.model import ExpectedDigests

_POOL_BYTES = 32 << 20


@cache
def _pool() -> bytes:
    """Chance of which everybody's bytes are cut: quicker than chance for each."""
    return random.Random("contents").randbytes(_POOL_BYTES)


def make_bytes(name: str, size: int) -> bytes:
    """`size` bytes that no other name has: its digest, and from there on what two names have only with a
    chance of one in millions at the same place."""
    digest = hashlib.sha256(name.encode()).digest()
    at = int.from_bytes(digest[:8], "big") % (_POOL_BYTES - size)
    return (digest + _pool()[at : at + size])[:size]


def etag_of(data: bytes) -> str:
    """The ETag of a simple object."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def etag_of_parts(etags: list[str]) -> str:
    """The ETag of a multipart object, from those of its parts."""
    return f"{etag_of(bytes.fromhex(''.join(etags)))}-{len(etags)}"


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
