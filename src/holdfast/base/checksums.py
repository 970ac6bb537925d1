"""The checksums of the house, as plain functions over buffers.

CRC32C guards blocks, records and rows. The five that S3 knows (CRC32, CRC32C, CRC64NVME, SHA-1,
SHA-256) and MD5 for ETags are made by `Hasher`s. awscrt does the CRCs with the processor's own
instructions.
"""

import hashlib
import zlib
from enum import Enum
from typing import Protocol, assert_never

from awscrt import checksums as _crt

Buffer = bytes | bytearray | memoryview


class _Crc32c(Protocol):
    def __call__(self, data: Buffer, previous: int = 0, /) -> int: ...


crc32c: _Crc32c = _crt.crc32c
"""CRC-32C (Castagnoli, RFC 3720) of `data`, continued from `previous`; 0 <= n < 2**32. The library's own
function, because it is called for every 4 KiB that moves."""


_HELD_BYTES = 1984
"""hashlib lets go of the interpreter lock for updates of 2,048 bytes and more, and beside threads that want
it, getting it back takes many times as long as hashing so little. A multiple of the digests' blocks."""

_HELD_BYTES_MAX = 16 << 10
assert _HELD_BYTES < 2048
assert _HELD_BYTES % 64 == 0


class ChecksumAlgorithm(Enum):
    """The additional checksums of S3; the value is the name on the wire."""

    CRC32 = "CRC32"
    CRC32C = "CRC32C"
    CRC64NVME = "CRC64NVME"
    SHA1 = "SHA1"
    SHA256 = "SHA256"

    @property
    def length(self) -> int:
        """Bytes of a digest."""
        return _LENGTHS[self]


_LENGTHS = {
    ChecksumAlgorithm.CRC32: 4,
    ChecksumAlgorithm.CRC32C: 4,
    ChecksumAlgorithm.CRC64NVME: 8,
    ChecksumAlgorithm.SHA1: 20,
    ChecksumAlgorithm.SHA256: 32,
}


class Hasher(Protocol):
    """What hashlib's objects look like, as far as the house needs."""

    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...


def feed(hasher: Hasher, data: Buffer) -> None:
    """Update a hasher on the event loop: with a few KiB, without letting go of the interpreter lock."""
    size = len(data)
    if size <= _HELD_BYTES or size > _HELD_BYTES_MAX or isinstance(hasher, _Crc):
        hasher.update(data)
        return
    view = memoryview(data)
    for at in range(0, size, _HELD_BYTES):
        hasher.update(view[at : at + _HELD_BYTES])


_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


class HmacSha256:
    """HMAC-SHA-256 (RFC 2104) with one key, for many short messages. Quicker than `hmac.digest`, which
    lets go of the interpreter lock for each, however short."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
        self._inner = hashlib.sha256(block.translate(_INNER))
        self._outer = hashlib.sha256(block.translate(_OUTER))

    def hexdigest(self, message: bytes) -> str:
        """The code of `message`, in hexadecimal digits."""
        return self.digest(message).hex()

    def digest(self, message: bytes) -> bytes:
        """The code of `message`, 32 bytes."""
        return self.end(self.begin(message))

    def begin(self, message: bytes) -> Hasher:
        """The code of a message that begins so: feed the rest of it, then `end`."""
        inner = self._inner.copy()
        feed(inner, message)
        return inner

    def end(self, begun: Hasher) -> bytes:
        """The code of what was fed, 32 bytes."""
        outer = self._outer.copy()
        outer.update(begun.digest())
        return outer.digest()


class _Crc:
    """A CRC of `length` bytes, most significant byte first, as S3 writes it."""

    def __init__(self, algorithm: ChecksumAlgorithm) -> None:
        self._algorithm = algorithm
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        match self._algorithm:
            case ChecksumAlgorithm.CRC32:
                self._value = zlib.crc32(data, self._value)
            case ChecksumAlgorithm.CRC32C:
                self._value = int(_crt.crc32c(data, self._value))
            case _:
                self._value = int(_crt.crc64nvme(data, self._value))

    def digest(self) -> bytes:
        return self._value.to_bytes(self._algorithm.length, "big")


def new_hasher(algorithm: ChecksumAlgorithm) -> Hasher:
    """A fresh hasher for one of S3's checksums."""
    match algorithm:
        case ChecksumAlgorithm.SHA1:
            return hashlib.sha1(usedforsecurity=False)
        case ChecksumAlgorithm.SHA256:
            return hashlib.sha256()
        case ChecksumAlgorithm.CRC32 | ChecksumAlgorithm.CRC32C | ChecksumAlgorithm.CRC64NVME:
            return _Crc(algorithm)
        case _ as unreachable:
            assert_never(unreachable)


def new_md5() -> Hasher:
    """MD5, for ETags and Content-MD5 only."""
    return hashlib.md5(usedforsecurity=False)


def combine_crcs(algorithm: ChecksumAlgorithm, first: bytes, second: bytes, second_length: int) -> bytes:
    """The CRC of two pieces laid end to end, from the CRCs of the pieces.

    For S3's full-object checksums of multipart uploads, which only CRCs have.
    """
    a, b = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    match algorithm:
        case ChecksumAlgorithm.CRC32:
            value = _crt.combine_crc32(a, b, second_length)
        case ChecksumAlgorithm.CRC32C:
            value = _crt.combine_crc32c(a, b, second_length)
        case ChecksumAlgorithm.CRC64NVME:
            value = _crt.combine_crc64nvme(a, b, second_length)
        case _:
            raise AssertionError(f"{algorithm.value} cannot be combined")
    return int(value).to_bytes(algorithm.length, "big")
