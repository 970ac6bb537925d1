"""Whether many blocks are right, by one checksum over all of them instead of one for each.

A CRC is linear. The CRC of a block, begun with the seed s, is A(block) ^ M(s): M is what 4,096 bytes of
zeros do to a CRC, a matrix over GF(2). So the CRC of n blocks in a row can be computed from the n entries
of the table, each without its seed, by applying M again and again; and the CRC of n blocks of data is one
call of the library, which lets go of the interpreter lock for so much. Where the two are the same, all
blocks are right. What must hold: one wrong block, or one wrong entry, is found exactly when its own checksum
would find it, since M can be inverted; several make up for each other with a chance of 2 ** -32.

Two neighbours are folded into one, all pairs at once, by `bytes.translate`: the words lie in four
planes, their lowest bytes first, and 16 tables of 256 bytes are the matrix.
"""

from collections.abc import Sequence
from functools import cache

from msgspec import Struct

from holdfast.base.checksums import Buffer, crc32c
from holdfast.packs.format import pack_table
from holdfast.packs.layout import BLOCK_BYTES

_MASK = 0xFFFFFFFF


class Run(Struct, frozen=True):
    """Blocks in a row of one shard, their entries of the table, and the seed of the first one."""

    data: Buffer
    entries: Buffer
    seed: int


def prepare(blocks_max: int) -> None:
    """Make the tables for runs of so many blocks, half a millisecond each, before anybody waits."""
    for level in range((blocks_max - 1).bit_length()):
        _tables(level)


def wrong_runs(runs: Sequence[Run]) -> list[int]:
    """Which of some runs of equal length have wrong blocks, by their place among them."""
    if not runs:
        return []
    count = len(runs[0].data) // BLOCK_BYTES
    assert count >= 1
    assert all(len(run.data) == count * BLOCK_BYTES and len(run.entries) == 4 * count for run in runs)
    expected = _expected(runs, count)
    return [at for at, run in enumerate(runs) if crc32c(run.data) != expected[at]]


def _expected(runs: Sequence[Run], count: int) -> list[int]:
    """What the CRC of all blocks of each run is if they are right."""
    # An entry takes part at the beginning of the next block, where the seed of that one does.
    width = 1 << (count - 1).bit_length()
    words = bytearray()
    for run in runs:
        seeds = pack_table(_from(run.seed, count))
        mixed = int.from_bytes(seeds, "little") ^ int.from_bytes(run.entries[:-4], "little") << 32
        words += bytes(4 * (width - count))
        words += mixed.to_bytes(4 * count, "little")
    planes = [bytes(words[at::4]) for at in range(4)]
    level = 0
    while width > 1:
        shifted = _apply(level, [plane[0::2] for plane in planes])
        planes = [_xor(one, plane[1::2]) for one, plane in zip(shifted, planes, strict=True)]
        width, level = width // 2, level + 1
    planes = _apply(0, planes)
    return [
        int.from_bytes(bytes([plane[at] for plane in planes]), "little")
        ^ int.from_bytes(run.entries[-4:], "little")
        for at, run in enumerate(runs)
    ]


def _from(seed: int, count: int) -> Sequence[int]:
    """The seeds of so many blocks."""
    if seed + count <= _MASK:
        return range(seed, seed + count)
    return [(seed + number) & _MASK for number in range(count)]


def _apply(level: int, planes: Sequence[bytes]) -> list[bytes]:
    """What 4,096 << level bytes of zeros do to each word."""
    low, second, third, high = planes
    return [
        _xor(
            _xor(low.translate(of_low), second.translate(of_second)),
            _xor(third.translate(of_third), high.translate(of_high)),
        )
        for of_low, of_second, of_third, of_high in _tables(level)
    ]


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


@cache
def _tables(level: int) -> tuple[tuple[bytes, ...], ...]:
    """For each byte of a result, lowest first, what each byte of a word adds to it."""
    columns = [_shifted(1 << bit, level) for bit in range(32)]
    by_byte: list[list[int]] = []
    for first in range(0, 32, 8):
        values = [0] * 256
        for value in range(1, 256):
            lowest = value & -value
            values[value] = values[value ^ lowest] ^ columns[first + lowest.bit_length() - 1]
        by_byte.append(values)
    return tuple(
        tuple(bytes(value >> 8 * at & 0xFF for value in values) for values in by_byte) for at in range(4)
    )


def _shifted(word: int, level: int) -> int:
    if level:
        return _times(_columns(level - 1), _times(_columns(level - 1), word))
    zeros = bytes(BLOCK_BYTES)
    return crc32c(zeros, word) ^ crc32c(zeros, 0)


@cache
def _columns(level: int) -> tuple[int, ...]:
    return tuple(_shifted(1 << bit, level) for bit in range(32))


def _times(columns: Sequence[int], word: int) -> int:
    result = 0
    for bit, column in enumerate(columns):
        if word >> bit & 1:
            result ^= column
    return result
