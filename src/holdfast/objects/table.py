"""The table of a version that has too many extents or parts for its head row.

It lies in a pack, is written once, and is read in small pieces: entries have a fixed width and say
where they end in the object, so that any byte of 5 TiB is found by bisection. Little-endian:

    0    4    magic "HFTB"
    4    2    format, 1
    6    1    checksum algorithm of the parts: 0 none, 1 CRC32, 2 CRC32C, 3 CRC64NVME, 4 SHA1, 5 SHA256
    7    1    bytes of each part's checksum, 0 for none
    8    4    number of extents
    12   4    number of parts
    16   8    size of the object
    24   8    zero
    32        extents, 32 bytes each: pack (16), offset in it (4), length (4), end in the object (8)
    ..        parts, 24 bytes and the checksum each: number (4), zero (4), size (8), end in the object (8)

What must hold: ends ascend, the last one is the object's size, and part numbers ascend.
"""

import struct
from collections.abc import AsyncGenerator, Callable, Container, Mapping, Sequence

from msgspec import Struct

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.errors import Damaged
from holdfast.base.ids import PackId
from holdfast.objects.model import PARTS_MAX, Checksum, PartInfo
from holdfast.packs.model import PACK_BYTES_MAX, Extent, PackStorage

_HEADER = struct.Struct("<4sHBBIIQ8x")
_EXTENT = struct.Struct("<16sIIQ")
_PART = struct.Struct("<I4xQQ")
_MAGIC = b"HFTB"
_FORMAT = 1
_CODES = {None: 0} | {algorithm: code for code, algorithm in enumerate(ChecksumAlgorithm, 1)}
_ALGORITHMS = {code: algorithm for algorithm, code in _CODES.items()}

WINDOW = 1024
"""Extents that are read at once."""

EXTENTS_MAX = (PACK_BYTES_MAX - _HEADER.size - PARTS_MAX * (_PART.size + 32)) // _EXTENT.size
"""A table fits one pack with this many extents and the most parts possible."""

assert EXTENTS_MAX * PACK_BYTES_MAX >= 5 << 40, "5 TiB in whole packs"
assert _HEADER.size == _EXTENT.size == 32


class TableBuilder:
    """Collects extents and parts in order."""

    def __init__(self, algorithm: ChecksumAlgorithm | None) -> None:
        self._algorithm = algorithm
        self._width = algorithm.length if algorithm is not None else 0
        self._extents = bytearray()
        self._parts = bytearray()
        self._extents_end = 0
        self._parts_end = 0

    @property
    def extents(self) -> int:
        """How many so far."""
        return len(self._extents) // _EXTENT.size

    def add_extents(self, extents: Sequence[Extent]) -> None:
        """The next extents; empty ones are left out."""
        for extent in extents:
            if extent.length:
                self._extents_end += extent.length
                self._extents += _EXTENT.pack(extent.pack, extent.offset, extent.length, self._extents_end)

    def add_part(self, part: PartInfo) -> None:
        """The next part."""
        value = part.checksum.value if part.checksum is not None else b""
        assert len(value) == self._width
        self._parts_end += part.size
        self._parts += _PART.pack(part.number, part.size, self._parts_end) + value

    def finish(self) -> list[Buffer]:
        """The table."""
        assert self._extents_end == self._parts_end or not self._parts
        assert self.extents <= EXTENTS_MAX
        header = _HEADER.pack(
            _MAGIC,
            _FORMAT,
            _CODES[self._algorithm],
            self._width,
            self.extents,
            len(self._parts) // (_PART.size + self._width),
            self._extents_end,
        )
        return [header, bytes(self._extents), bytes(self._parts)]


def extents_in(
    table: Buffer, packs: Container[PackId], start: int, count: int
) -> list[tuple[int, Extent]] | None:
    """Of a whole table's extents number `start` to `start + count`, those in `packs`, with their numbers;
    None behind the last one. Raises Damaged."""
    header = _parse(table[: _HEADER.size])
    if start >= header.extents:
        return None
    end = min(start + count, header.extents)
    entries = table[_HEADER.size + start * _EXTENT.size : _HEADER.size + end * _EXTENT.size]
    return [
        (number, Extent(PackId(pack), offset, length))
        for number, (pack, offset, length, _) in enumerate(_EXTENT.iter_unpack(entries), start)
        if pack in packs
    ]


def with_extents(table: Buffer, changed: Mapping[int, Extent]) -> bytes:
    """A whole table anew, with other places for some of its extents: by their numbers."""
    result = bytearray(table)
    for number, extent in changed.items():
        at = _HEADER.size + number * _EXTENT.size
        _, _, length, end = _EXTENT.unpack_from(result, at)
        assert length == extent.length, "bytes that move stay the same bytes"
        _EXTENT.pack_into(result, at, extent.pack, extent.offset, extent.length, end)
    return bytes(result)


class _Header(Struct, frozen=True):
    algorithm: ChecksumAlgorithm | None
    width: int
    extents: int
    parts: int
    size: int


def _parse(data: Buffer) -> _Header:
    magic, format_, code, width, extents, parts, size = _HEADER.unpack(data)
    if magic != _MAGIC or format_ != _FORMAT or code not in _ALGORITHMS:
        raise Damaged(
            "The table of a large object cannot be read.", hint="A newer Holdfast may have written it."
        )
    return _Header(_ALGORITHMS[code], width, extents, parts, size)


class LocatedPart(Struct, frozen=True):
    """A part, and where it begins in the object."""

    info: PartInfo
    first: int


class Table:
    """Reads a table. All raise what `packs.read_small` raises, and Damaged."""

    def __init__(self, packs: PackStorage, at: Extent) -> None:
        self._packs = packs
        self._at = at
        self._known: _Header | None = None

    async def count(self) -> int:
        """How many extents there are."""
        return (await self._header()).extents

    async def extents(self, start: int, count: int) -> list[Extent]:
        """Up to `count` extents from number `start` on."""
        header = await self._header()
        count = min(count, header.extents - start)
        if count <= 0:
            return []
        data = await self._bytes(_HEADER.size + start * _EXTENT.size, count * _EXTENT.size)
        return [Extent(PackId(pack), offset, length) for pack, offset, length, _ in _EXTENT.iter_unpack(data)]

    async def from_byte(self, first: int) -> AsyncGenerator[tuple[list[Extent], int], None]:
        """Windows of extents that follow each other; with the first one, where in it byte `first` lies."""
        header = await self._header()
        place = await self._first(
            _HEADER.size, _EXTENT.size, header.extents, lambda entry: int(_EXTENT.unpack(entry)[3]) > first
        )
        if place == header.extents:
            return
        entry = await self._bytes(_HEADER.size + place * _EXTENT.size, _EXTENT.size)
        _, _, length, end = _EXTENT.unpack(entry)
        inside = first - (end - length)
        while window := await self.extents(place, WINDOW):
            yield window, inside
            inside = 0
            place += len(window)

    async def part(self, number: int) -> LocatedPart | None:
        """The part with this number."""
        header = await self._header()
        base = _HEADER.size + header.extents * _EXTENT.size
        width = _PART.size + header.width
        place = await self._first(
            base, width, header.parts, lambda entry: int(_PART.unpack_from(entry)[0]) >= number
        )
        if place == header.parts:
            return None
        entry = await self._bytes(base + place * width, width)
        found, size, end = _PART.unpack_from(entry)
        if found != number:
            return None
        checksum = None
        if header.algorithm is not None:
            checksum = Checksum(header.algorithm, bytes(entry[_PART.size :]))
        return LocatedPart(PartInfo(number, size, checksum), end - size)

    async def _first(self, base: int, width: int, count: int, is_it: Callable[[bytes], bool]) -> int:
        """The first entry for which `is_it` holds, as it does for all after it; `count` for none."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if is_it(bytes(await self._bytes(base + middle * width, width))):
                high = middle
            else:
                low = middle + 1
        return low

    async def _header(self) -> _Header:
        if self._known is None:
            self._known = _parse(await self._bytes(0, _HEADER.size))
        return self._known

    async def _bytes(self, offset: int, length: int) -> Buffer:
        assert offset + length <= self._at.length
        return await self._packs.read_small(Extent(self._at.pack, self._at.offset + offset, length))
