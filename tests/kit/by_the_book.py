"""What a shard file has to hold, made from the byte tables of `docs/formats.md` alone.

Deliberately slow and plain, and without a line of the code that writes and reads packs: a second opinion,
so that "it was repaired" never rests on the word of whoever repaired it. Only the CRC-32C is shared.
"""

import struct
from functools import lru_cache

from holdfast.base.checksums import crc32c

BLOCK = 4096
MIB = 1 << 20


def _field() -> tuple[list[int], list[int]]:
    """Powers and logarithms of GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1."""
    powers, logarithms, value = [0] * 255, [0] * 256, 1
    for exponent in range(255):
        powers[exponent], logarithms[value] = value, exponent
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return powers, logarithms


_POWERS, _LOGARITHMS = _field()


@lru_cache(256)
def _times(factor: int) -> bytes:
    """A table that multiplies every byte by `factor`."""
    return bytes(
        _POWERS[(_LOGARITHMS[factor] + _LOGARITHMS[byte]) % 255] if factor and byte else 0
        for byte in range(256)
    )


def _inverse(value: int) -> int:
    return _POWERS[-_LOGARITHMS[value] % 255]


def _cut(stored: bytes, k: int) -> list[list[bytes]]:
    """Stripes of k data units each, as "Cutting" says."""
    unit = MIB // k // BLOCK * BLOCK
    stripes = []
    while len(stored) >= k * unit:
        stripes.append([stored[at : at + unit] for at in range(0, k * unit, unit)])
        stored = stored[k * unit :]
    if stored:
        unit = -(-len(stored) // (k * BLOCK)) * BLOCK
        stored = stored.ljust(k * unit, b"\0")
        stripes.append([stored[at : at + unit] for at in range(0, k * unit, unit)])
    return stripes


def _parity(units: list[bytes], row: int) -> bytes:
    total = 0
    for column, unit in enumerate(units):
        factor = 1 if len(units) == 1 else _inverse(row ^ column)
        total ^= int.from_bytes(unit.translate(_times(factor)), "little")
    return total.to_bytes(len(units[0]), "little")


@lru_cache(64)
def shard_data(stored: bytes, k: int, shard: int) -> bytes:
    """The data region of a shard of a pack with these stored bytes."""
    return b"".join(units[shard] if shard < k else _parity(units, shard) for units in _cut(stored, k))


def shard_file(
    stored: bytes, payload_bytes: int, pack: bytes, k: int, m: int, shard: int, attempt: int
) -> bytes:
    """The whole file of a shard, from its first byte to its last."""
    data = shard_data(stored, k, shard)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    head = struct.pack("<8sHBBB3x16s", b"HOLDFAST", 1, k, m, shard, pack)
    head += struct.pack("<IIQII", attempt, len(stored) - payload_bytes, payload_bytes, len(blocks), BLOCK)
    head += struct.pack("<I4x", crc32c(head))
    seed = crc32c(pack + bytes([shard]) + struct.pack("<I", attempt))
    table = b"".join(
        struct.pack("<I", crc32c(block, (seed + number) % 2**32)) for number, block in enumerate(blocks)
    )
    front = head + table
    return front + bytes(-len(front) % BLOCK) + data
